"""The texts of the page."""

import html

from var_hf.demo.facts import ModelFacts
from var_hf.demo.film import mark

TITLE = "VAR, coarse to fine"


def head(facts: ModelFacts) -> str:
    """Title, one sentence, and facts about the model."""
    sizes = facts.token_map_sizes
    model = (
        facts.name,
        f"{facts.side} \u00d7 {facts.side} pixels",
        f"{facts.num_classes:,} classes",
        f"{len(sizes)} scales",
    )
    spans = "".join(f"<span>{html.escape(one)}</span>" for one in model)
    return (
        f'<div class="row">{mark()}<h1>{TITLE}</h1><div class="model">{spans}</div></div>'
        "<p>This model starts with one token for the whole image and continues with finer and "
        f"finer grids, from {sizes[0]}\u2009\u00d7\u2009{sizes[0]} to "
        f"{sizes[-1]}\u2009\u00d7\u2009{sizes[-1]}. Choose a class and watch.</p>"
    )


def about(facts: ModelFacts) -> str:
    """Explain VAR and the limits of this page."""
    sizes = facts.token_map_sizes
    name = html.escape(facts.name)
    grids = ", ".join(f"{size}\u2009\u00d7\u2009{size}" for size in sizes)
    return f"""
### About VAR

Most autoregressive image models generate an image like a text: token by token, row by row. Visual
Autoregressive modeling (VAR) predicts **the next scale** instead. One pass of a transformer
predicts a whole grid of tokens from the class and all coarser grids. A second model, a multi-scale
VQVAE, turns the sum of all grids into pixels.

The model on this page, **{name}**, has {len(sizes)} scales: {grids}. An image of
{facts.side} \u00d7 {facts.side} pixels takes {len(sizes)} passes for {facts.num_tokens} tokens. One
token at a time would take {sizes[-1] ** 2} passes for the finest grid alone.

The method: K. Tian, Y. Jiang, Z. Yuan, B. Peng, L. Wang,
[Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction](https://arxiv.org/abs/2404.02905),
NeurIPS 2024. This page is part of var-hf, an independent implementation.

### Limits

- **Class-conditional; no text prompts.** The model knows {facts.num_classes:,} classes.
- **Images reproduce the training images,** with their gaps and biases. There is no filter.
- **Editing needs no training.** At every scale, the tokens outside the painted part are restored. A
  small model reconstructs your own photo poorly.
- **Class probabilities are overconfident,** because hundreds of log-probabilities add up. Use the
  order, not the percentages.
- **The same seed gives the same image** on the same machine. Other machines round differently,
  which can change single tokens.

### Your images

They stay on the machine that runs this page, in a temporary folder, and are deleted after about an
hour.
"""
