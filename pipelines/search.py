"""Search with a judge: several candidates of each image are drawn at once, and the best go on.

Letters: B images, M candidates of each, R = B M rows, those of an image side by side, S scales, T
tokens of one scale, Z latent channels, F and P sides of latents and images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from var_hf.generation import Generation, VARScaleOutput, generate

if TYPE_CHECKING:
    from var_hf.pipelines.pipeline_var import VARPipeline

ROWS_AT_A_TIME = 16  # of the likelihood, whose logits take 11 MB per row in d16


@dataclass
class Drawn:
    """The candidates that a judge rates.

    Attributes:
        pipe: The pipeline that draws them.
        scale: Number of the scale that was drawn last.
        class_ids: ``(R,)``; `num_classes` is the null class.
        token_maps: The drawn tokens, one map ``(R, T)`` per scale so far.
        history: The running sums ``(R, Z, F, F)`` before each scale, and after the last one.
    """

    pipe: "VARPipeline"
    scale: int
    class_ids: Tensor
    token_maps: list[Tensor]
    history: list[Tensor]

    @property
    def latents(self) -> Tensor:
        """Running sum of all scales so far, ``(R, Z, F, F)``, float32."""
        return self.history[-1]

    @cached_property
    def images(self) -> Tensor:
        """The images so far, ``(R, 3, P, P)``, float32 in [0, 1]. Decoded when first asked for."""
        images = self.pipe.decode(self.latents, "pt")
        assert isinstance(images, Tensor)
        return images


class Judge(Protocol):
    """Rates candidates: any function of images or latents."""

    def __call__(self, drawn: Drawn) -> Tensor:
        """Scores ``(R,)``; the highest of an image is the best."""


class ClassifierJudge:
    """Rates images by the log-probability of their class.

    Args:
        module: Maps images ``(R, 3, P, P)`` in [-1, 1] to logits ``(R, num_logits)``.
        logits_of_classes: Number of the logit of each of the model's classes; the same numbers by
            default.
    """

    def __init__(self, module: nn.Module, logits_of_classes: Sequence[int] | None = None):
        self.module, self.logits_of_classes = module, logits_of_classes

    def __call__(self, drawn: Drawn) -> Tensor:
        """See [`Judge`].

        Raises:
            ValueError: There is no logit for a class.
        """
        logits = self.module(drawn.images * 2 - 1)
        class_ids = drawn.class_ids.tolist()
        known = self.logits_of_classes
        known = range(logits.shape[-1]) if known is None else known
        if max(class_ids) >= len(known):
            raise ValueError(
                f"The judge is a classifier of {len(known)} classes, and class {max(class_ids)} is "
                "drawn. Use another judge."
            )
        columns = torch.tensor([known[class_id] for class_id in class_ids], device=logits.device)
        return logits.log_softmax(dim=-1).gather(1, columns[:, None])[:, 0]


def likelihood_judge(drawn: Drawn) -> Tensor:
    """Rate candidates by the log-probability of their tokens under their class; see [`Judge`].

    It takes one pass over all scales so far, without guidance.
    """
    quantizer, transformer = drawn.pipe.vqvae.quantizer, drawn.pipe.transformer
    grids = [quantizer.shrink(drawn.history[k], k) for k in range(1, drawn.scale + 1)]
    tokens = torch.cat(drawn.token_maps, dim=1)
    scores = []
    for rows in torch.arange(len(tokens)).split(ROWS_AT_A_TIME):
        labels = drawn.class_ids[rows]
        inputs = (
            torch.cat([grid[rows] for grid in grids], dim=1).to(labels.device) if grids else None
        )
        log_probabilities = transformer(labels, inputs).logits.log_softmax(dim=-1)  # (R, L, V)
        drawn_tokens = tokens[rows].to(labels.device)[..., None]
        scores.append(log_probabilities.gather(2, drawn_tokens).sum(dim=(1, 2)))
    return torch.cat(scores)


class Search:
    """Runs the loop over scales with M candidates of each image.

    Args:
        pipe: The pipeline.
        judge: A [`Judge`], a classifier, or `"likelihood"`.
        candidates: Number of candidates M.
        judged_scales: Scales after which the judge selects candidates; the last one is always
            among them.
        beams: Number of candidates of an image that go on after these scales, each with M / beams
            copies. One goes on after the last scale.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        pipe: "VARPipeline",
        judge: Judge | nn.Module | str | None,
        candidates: int,
        judged_scales: Sequence[int] = (),
        beams: int = 1,
    ):
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1. Got {candidates}.")
        if beams < 1 or candidates % beams:
            raise ValueError(
                f"beams must divide the {candidates} candidates of an image. Got {beams}."
            )
        wrong = [scale for scale in judged_scales if not 0 <= scale < pipe.num_timesteps]
        if wrong:
            raise ValueError(
                f"judged_scales must lie in [0, {pipe.num_timesteps - 1}]. Got {wrong[0]}."
            )
        self.pipe, self.judge = pipe, as_judge(judge)
        self.candidates, self.judged_scales, self.beams = candidates, set(judged_scales), beams

    def expand(self, per_image: Any) -> Any:
        """A list with an entry per image as one with an entry per row; anything else unchanged."""
        if not isinstance(per_image, list):
            return per_image
        return [entry for entry in per_image for _ in range(self.candidates)]

    def __call__(self, generation: Generation) -> Iterator[VARScaleOutput]:
        """Draw the scales of R rows, as `generate` does. The last output has B rows.

        Raises:
            ValueError: The judge does not return R scores, or one of them is not a number.
        """
        token_maps: list[Tensor] = []
        for output in generate(generation):
            token_maps.append(output.tokens)
            last = output.scale == output.num_scales - 1
            if last or output.scale in self.judged_scales:
                rows = self.best_rows(generation, token_maps, last)
                generation.reorder(rows)
                token_maps = [tokens[rows] for tokens in token_maps]
                output = replace(
                    output,
                    tokens=output.tokens[rows],
                    logits=output.logits[rows],
                    latents=generation.latents,
                )
            yield output

    def best_rows(self, generation: Generation, token_maps: Sequence[Tensor], last: bool) -> Tensor:
        """The rows that go on: after the last scale B, before it R."""
        scale = len(token_maps) - 1
        drawn = Drawn(
            self.pipe, scale, generation.class_ids, list(token_maps), list(generation.history)
        )
        scores = checked_scores(self.judge(drawn), len(generation.class_ids))
        by_image = scores.view(-1, self.candidates)
        order = by_image.sort(dim=1, descending=True, stable=True).indices  # (B, M)
        first = self.candidates * torch.arange(len(by_image))[:, None]
        if last:
            return (first + order[:, :1]).flatten()
        copies = self.candidates // self.beams
        return (first + order[:, : self.beams].repeat_interleave(copies, dim=1)).flatten()


def as_judge(judge: Judge | nn.Module | str | None) -> Judge:
    """The judge that an argument names.

    Raises:
        ValueError: There is no such judge.
    """
    if judge == "likelihood":
        return likelihood_judge
    if isinstance(judge, nn.Module):
        return ClassifierJudge(judge)
    if callable(judge):
        return judge
    raise ValueError(
        'With several candidates, judge must be "likelihood", a classifier or a function that '
        f"rates them. Got {judge!r}."
    )


def checked_scores(scores: Any, count: int) -> Tensor:
    """Scores ``(R,)``, float64, on the CPU.

    Raises:
        ValueError: They are not R numbers.
    """
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.shape != (count,):
        raise ValueError(
            f"The judge must return one score for each of {count} candidates, of shape ({count},). "
            f"Got {tuple(scores.shape)}."
        )
    if scores.isnan().any():
        row = int(scores.isnan().nonzero()[0])
        raise ValueError(f"The judge must return numbers. Got NaN for candidate {row} of {count}.")
    return scores
