"""The strength of a variation, as the scales that are kept. Needs no torch."""


def first_redrawn_scale(strength: float, num_scales: int) -> int:
    """The first scale that is redrawn: ``S - round(strength * S)``, in [0, S]; S means none.

    Raises:
        ValueError: `strength` lies outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(
            f"strength must lie in [0, 1]: 0 keeps every scale, 1 redraws all. Got {strength}."
        )
    return num_scales - round(strength * num_scales)
