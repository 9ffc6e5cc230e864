"""Sampling settings of published numbers and images, by name."""

from var_hf.sampling_settings import SamplingSettings

PRESETS = {
    # README of the release: cfg=1.5, top_k=900, top_p=0.96, more_smooth=False.
    "fid": SamplingSettings(2.5, 900, 0.96, "multinomial"),
    # arXiv 2404.02905 v1 and v2: cfg 2.0; in the ablation, top-k 600 and no top-p. The final text
    # gives 1.5. It is not public which settings gave table 1.
    "paper": SamplingSettings(3.0, 600, 1.0, "multinomial"),
    # demo_sample.ipynb of the release: cfg=4, top_k=900, top_p=0.95, more_smooth=False.
    "visual": SamplingSettings(5.0, 900, 0.95, "multinomial"),
}
