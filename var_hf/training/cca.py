"""Condition contrastive alignment (CCA, arXiv 2410.09347): images without guidance.

The model learns to tell the class of an image from another class, against a frozen reference. An
image becomes likelier under its own class and unlikelier under others, which guidance does at each
generation with a second pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from var_hf.processes import joined
from var_hf.training.reference import ReferenceConfig, ReferenceTrainer, train_against_reference
from var_hf.training.token_cache import TokenDataset


@dataclass(frozen=True, kw_only=True)
class CCAConfig(ReferenceConfig):
    """Settings of CCA; defaults are those of the authors for VAR-d16 (thu-ml/CCA, README).

    Attributes:
        lambda_: Weight of the term of the other class. The authors take 50 for VAR-d16 and d20, 100
            for d24 and 1,000 for d30.
    """

    lambda_: float = 50.0

    kind: ClassVar[str] = "cca"
    title: ClassVar[str] = "condition contrastive alignment (CCA, arXiv 2410.09347)"
    sampling_changes: ClassVar[Mapping[str, Any]] = {"guidance_scale": 1.0}

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        self.check_range("lambda_", 0)


class ContrastiveDataset(TokenDataset):
    """Training samples, each with the class of another image of the data.

    The authors take the class of the next image in the batch. Here seed, epoch and index choose the
    other image among all, so that losses depend neither on the batch size nor on the number of
    processes. Its class is the same as often as it is in the data.
    """

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = position if isinstance(position, tuple) else (0, position)
        rng = np.random.default_rng([self.seed, epoch, index, 1])
        label = int(self.cache.class_labels[rng.integers(len(self))])
        other = label if self.class_ids is None else self.class_ids[label]
        return {**super().__getitem__(position), "other_labels": torch.tensor(other)}


def cca_loss(
    log_ratios: Tensor, other_log_ratios: Tensor, is_own: Tensor, beta: float, lambda_: float
) -> Tensor:
    """The loss of CCA (arXiv 2410.09347, equation 12) in the form of the authors' code.

    It is ``-logsigmoid(beta * r) - lambda * logsigmoid(-beta * r_other)`` divided by ``max(lambda,
    1)``. Where the other class is the image's own, or the null class, its term counts as a further
    one of the image's own class: positive and with weight 1.

    Args:
        log_ratios: Log-ratios ``(B,)`` of model and reference under the image's own class.
        other_log_ratios: The same under the other class.
        is_own: Where the other class is the own one or both are null, ``(B,)``.
        beta: Factor on the log-ratios.
        lambda_: Weight of the other class.
    """
    sign = torch.where(is_own, 1.0, -1.0)
    weight = torch.where(is_own, 1.0, lambda_)
    own = functional.logsigmoid(beta * log_ratios)
    other = functional.logsigmoid(beta * sign * other_log_ratios)
    return -(own + weight * other).mean() / max(lambda_, 1.0)


class CCATrainer(ReferenceTrainer):
    """Trainer of CCA. While it measures, the loss is the cross-entropy, as in `VARTrainer`."""

    config: CCAConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        samples = self.train_dataset
        self.train_dataset = ContrastiveDataset(
            samples.cache, samples.num_noise, samples.seed, samples.class_ids
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """See `cca_loss`."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        tokens, is_null = inputs["labels"], self.null_rows(inputs)
        own, other = (
            inputs[name].masked_fill(is_null, self.var_config.num_classes)
            for name in ("class_labels", "other_labels")
        )
        ratios, logits = self.log_ratios(model, torch.cat([own, other]), tokens.repeat(2, 1))
        own_ratios, other_ratios = ratios.chunk(2)
        loss = cca_loss(
            own_ratios, other_ratios, own == other, self.config.beta, self.config.lambda_
        )
        own_logits = logits[: len(tokens)]
        self.meters["train"].update(own_logits, tokens)
        is_other = own != other
        self.means.update(
            {
                "log_ratio": own_ratios,
                "log_ratio_other_class": other_ratios[is_other],
                "told_apart": (own_ratios > other_ratios)[is_other],
            }
        )
        return (loss, {"loss": loss, "logits": own_logits}) if return_outputs else loss


@joined()
def train_cca(config: CCAConfig, output: str | Path) -> dict[str, Any]:
    """Post-train a pipeline by CCA, or continue a run that was cut off.

    Args:
        config: The settings.
        output: The run folder, as of `train_transformer`.

    Returns:
        As `train_transformer`.

    Raises:
        ValueError, DivergedError, OSError: See `train_against_reference`.
    """
    return train_against_reference(config, Path(output), CCATrainer)
