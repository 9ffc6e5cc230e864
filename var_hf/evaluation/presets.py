"""Settings of the published numbers and pictures, by name."""

from var_hf.pipelines.base import SamplingSettings

PRESETS = {
    # README of the release: cfg=1.5, top_k=900, top_p=0.96, more_smooth=False.
    "fid": SamplingSettings(2.5, 900, 0.96, "multinomial"),
    # arXiv 2404.02905 v1 and v2 name a cfg of 2.0 and, in the ablation, a top-k of 600, and no top-p. The final text
    # says 1.5; which settings gave table 1 is not public.
    "paper": SamplingSettings(3.0, 600, 1.0, "multinomial"),
    # demo_sample.ipynb of the release: cfg=4, top_k=900, top_p=0.95, more_smooth=False.
    "visual": SamplingSettings(5.0, 900, 0.95, "multinomial"),
}
