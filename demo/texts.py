"""The texts of the page."""

import html

from var_hf.demo.facts import ModelFacts
from var_hf.demo.film import mark

TITLE = "VAR, coarse to fine"


def head(facts: ModelFacts) -> str:
    """Title, one sentence, and what model this is."""
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
        "<p>This model begins with one token for the whole picture and then draws finer and finer grids over it, "
        f"from {sizes[0]}\u2009\u00d7\u2009{sizes[0]} to {sizes[-1]}\u2009\u00d7\u2009{sizes[-1]}. Choose a class and watch.</p>"
    )


def about(facts: ModelFacts) -> str:
    """What VAR is, and what this page is not."""
    sizes = facts.token_map_sizes
    name = html.escape(facts.name)
    grids = ", ".join(f"{size}\u2009\u00d7\u2009{size}" for size in sizes)
    return f"""
### What VAR is

Most image generators of the autoregressive kind write a picture like a text: token by token, row by row. Visual
autoregressive modeling (VAR) predicts **the next scale** instead. One pass of a transformer fills a whole grid of
tokens at once, given the class and all coarser grids. A second model, a multi-scale VQVAE, turns the sum of all grids
into pixels.

The model on this page, **{name}**, has {len(sizes)} scales: {grids}. That makes {facts.num_tokens} tokens in {len(sizes)} passes for a picture
of {facts.side} \u00d7 {facts.side} pixels, where one token at a time would need {sizes[-1] ** 2} passes for the finest grid alone.

The method: K. Tian, Y. Jiang, Z. Yuan, B. Peng, L. Wang,
[Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction](https://arxiv.org/abs/2404.02905),
NeurIPS 2024. This page is part of var-hf, an independent implementation.

### What to know before you judge it

- **It takes classes, no text.** It knows {facts.num_classes:,} of them and nothing else.
- **It draws what its training pictures show,** with their gaps and biases. Nothing is filtered.
- **Editing needs no training.** Tokens outside the painted part are put back at every scale. Your own photo is foreign to a small
  model: it will see the photo through its own few patterns.
- **Probabilities of classes are overconfident.** Hundreds of log-probabilities add up. Read the order, not the percentages.
- **Same seed, same picture,** on the same machine. Other machines round differently, and then a token may come out as another one.

### What happens to your pictures

They stay on the machine that runs this page, in a temporary folder, and are deleted after about an hour.
"""
