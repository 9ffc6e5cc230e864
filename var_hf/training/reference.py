"""Training against a frozen reference: what CCA and DDO share.

Both compare the log-probabilities that the trained model and the reference give to the same token
maps. With LoRA the reference is the model with its adapters switched off, and costs no second copy.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from var_hf.modeling_var import VARDecoderLayer, VARModel
from var_hf.training.agreement import check_agreement, weights_digest
from var_hf.training.merging import check_same_model
from var_hf.training.post_training import PostTrainingConfig, load_pipeline_to_train, origin_of
from var_hf.training.transformer import make_trainer, run_trainer
from var_hf.training.transformer_trainer import VARTrainer


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(PostTrainingConfig):
    """Settings of a training against a frozen reference.

    Attributes:
        reference: Pipeline that stays as it is, with the classes, the tokenizer and the sizes of
            `model`. ``None`` is `model` itself.
        beta: Factor on the log-ratios of model and reference. 0 trains nothing.
        uncond_ratio: Share of the images that get the null class, so that guidance stays possible;
            in [0, 1].
    """

    reference: str | None = None
    beta: float = 0.02
    uncond_ratio: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        self.check_range("beta", 0)
        self.check_range("uncond_ratio", 0, 1)


class MeanMeter:
    """Means over images of named values, summed up until they are read.

    Args:
        device: Where the values are.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self.sums: dict[str, Tensor] = {}  # of each name the sum and the number of values, (2,)

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add values ``(B,)`` by name."""
        for name, each in values.items():
            added = torch.stack([each.float().sum(), torch.tensor(len(each), device=each.device)])
            self.sums[name] = self.sums.get(name, torch.zeros(2, device=self.device)) + added

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last reading, and start anew.

        Args:
            reduce: Sums a tensor over all processes.
        """
        totals = {name: reduce(sums).tolist() for name, sums in sorted(self.sums.items())}
        self.sums = {}
        return {name: total / count for name, (total, count) in totals.items()}


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability in nats of token maps ``(B, L)`` under logits ``(B, L, V)``: ``(B,)``."""
    return logits.log_softmax(dim=-1).gather(2, tokens[:, :, None]).squeeze(2).sum(dim=1)


class ReferenceTrainer(VARTrainer):
    """Trainer that knows a frozen reference.

    Drop path is off in both, as in the authors' training of VAR-d16 by CCA: it would add noise to
    each log-ratio. In place of the model's class dropout, a share `uncond_ratio` of the images gets
    the null class.

    Args:
        model: The model to train, with the weights that it starts from.
        *args: As in `VARTrainer`.
        reference: The frozen reference; ``None`` is the model as it is now.
        origin: Method and base for the provenance.
        title: Name of the result in its card; ``None`` is that of the run folder.
    """

    config: ReferenceConfig

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        reference: VARModel | None = None,
        origin: Mapping[str, Any] | None = None,
        title: str | None = None,
    ):
        if reference is None and not hasattr(model, "disable_adapter"):
            reference = copy.deepcopy(cast(VARModel, model))
        for module in model.modules():
            if isinstance(module, VARDecoderLayer):
                module.drop_path_rate = 0.0
        super().__init__(model, *args)
        if reference is not None:
            self._move_model_to_device(reference.eval().requires_grad_(False), self.args.device)
        # In a tuple, for it is no part of the model that is trained and saved.
        self._reference = (reference,)
        self._origin, self._title = dict(origin or {}), title
        self.means = MeanMeter(self.args.device)

    @contextmanager
    def reference_of(self, model: nn.Module) -> Iterator[nn.Module]:
        """The reference, to be called inside the context.

        Args:
            model: The model that is trained, as it is wrapped for several processes.
        """
        (reference,) = self._reference
        if reference is not None:
            yield reference
            return
        with self.accelerator.unwrap_model(model).disable_adapter():
            yield model

    def log_ratios(
        self, model: nn.Module, class_labels: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How much likelier token maps are under the model than under the reference.

        Args:
            model: The model that is trained.
            class_labels: ``(B,)``.
            tokens: ``(B, L)``.

        Returns:
            The log-ratios in nats ``(B,)``, summed over all tokens, and the model's logits ``(B, L,
            V)``.
        """
        inputs = {"class_labels": class_labels, "latent_inputs": self.teacher_inputs(tokens)}
        with torch.no_grad(), self.accelerator.autocast(), self.reference_of(model) as reference:
            before = log_probability(reference(**inputs)["logits"], tokens)
        logits = model(**inputs)["logits"]
        return log_probability(logits, tokens) - before, logits

    def null_rows(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Which images of a batch get the null class, ``(B,)``: seed, epoch and index decide."""
        return inputs["dropout_noise"][:, 0] < self.config.uncond_ratio

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's own means to a line of the log."""
        if "loss" in logs:
            logs |= self.means.read(self._sum_over_processes)
        super().log(logs, start_time)

    @property
    def title(self) -> str:
        """Name of the result in its card."""
        return self._title or super().title

    @property
    def base_name(self) -> str | None:
        """Name of the base, which is not that of the last round."""
        return self._origin.get("base")

    def _more_provenance(self) -> dict[str, Any]:
        return {"post_training": self._origin}

    def _describe_training(self) -> str:
        return (
            f"{super()._describe_training()} They post-trained {self.base_name or 'a base model'} "
            f"by {self.config.title}."
        )


def train_against_reference(
    config: ReferenceConfig,
    output: Path,
    trainer_class: Callable[..., ReferenceTrainer],
    *,
    origin: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Post-train a pipeline against its reference, or continue; see `train_transformer`.

    Args:
        config: The settings.
        output: The run folder.
        trainer_class: The trainer of the method.
        origin: Method and base for the provenance; by default those of `config`.
        title: Name of the result in its card.

    Raises:
        ValueError: See `train_transformer`; or the reference differs from the model in shape,
            classes or tokenizer.
    """
    base = load_pipeline_to_train(config.model)
    reference = None
    if config.reference is not None:
        other = load_pipeline_to_train(config.reference)
        check_same_model(base, other, f"{config.reference} cannot be the reference.")
        reference = other.transformer
        weights = reference.state_dict()
        check_agreement({"reference": lambda: weights_digest(weights)})
    trainer = partial(
        trainer_class, reference=reference, origin=origin or origin_of(config, base), title=title
    )
    return run_trainer(make_trainer(config, output, trainer, start=base))
