"""Colours and type: warm paper, plum and orange, and the same by night. No font or file from another server."""

from gradio.themes import Base, Color, Size

# From the heat map of surprise: dark blue, violet, orange, pale yellow.
PLUM = Color(
    "#fdf3fa", "#f9e3f2", "#f1c5e3", "#e39bcb", "#cc6aab", "#a83c89", "#7a1c6d", "#641758", "#4d1145", "#370c31", "#22071e",
    name="plum",
)  # fmt: skip
ORANGE = Color(
    "#fff5ec", "#ffe7d3", "#ffcaa3", "#ffa86e", "#f98a47", "#ed6925", "#c9510f", "#a23f0b", "#7c310c", "#5a240b", "#3b1706",
    name="orange",
)  # fmt: skip
PAPER = Color(
    "#fbf9f6", "#f4f0ea", "#e7e0d6", "#d3cabd", "#a89d92", "#7f756d", "#5e554f", "#453e3c", "#2c2629", "#1e191d", "#141014",
    name="paper",
)  # fmt: skip
CORNERS = Size("2px", "4px", "6px", "10px", "14px", "18px", "24px", name="corners")


def theme() -> Base:
    """The theme of the page."""
    return Base(
        primary_hue=PLUM,
        secondary_hue=ORANGE,
        neutral_hue=PAPER,
        radius_size=CORNERS,
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_950",
        block_background_fill="#ffffff",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="#332b31",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#332b31",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="*background_fill_primary",
        block_label_background_fill_dark="*background_fill_primary",
        block_label_border_width="0px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_300",
        input_border_color_dark="#453b42",
        button_large_radius="*radius_lg",
        button_small_radius="*radius_md",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="*secondary_400",
        button_primary_background_fill_hover_dark="*secondary_300",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_text_color="*neutral_800",
        button_secondary_background_fill_dark="#2b2329",
        button_secondary_background_fill_hover_dark="#3a3037",
        button_secondary_text_color_dark="*neutral_100",
        slider_color="*primary_600",
        slider_color_dark="*secondary_400",
        color_accent="*primary_600",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#2b2329",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*secondary_500",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*secondary_500",
        link_text_color="*primary_600",
        link_text_color_dark="*secondary_300",
        link_text_color_hover="*primary_700",
        link_text_color_hover_dark="*secondary_200",
        link_text_color_visited="*primary_700",
        link_text_color_visited_dark="*secondary_300",
    )
