"""Direct discriminative optimisation (DDO, arXiv 2503.01103): GAN training without a discriminator.

The log-ratio of the model and a frozen reference tells real images from images that the reference
drew. In each round the reference draws images, the model is trained, and becomes the reference of
the next round. The authors publish no training code: the loss follows the paper.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from var_hf.files import new_folder
from var_hf.processes import joined, process_state
from var_hf.training.own_samples import draw_samples
from var_hf.training.post_training import claim_output, load_pipeline_to_train, origin_of
from var_hf.training.reference import ReferenceConfig, ReferenceTrainer, train_against_reference
from var_hf.training.token_cache import TokenCache, TokenDataset

#: The model's own distribution: neither guidance nor a filter.
UNFILTERED = {
    "guidance_scale": 1.0, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "ssg_scale": 0.0,
    "sampling": "multinomial",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DDOConfig(ReferenceConfig):
    """Settings of DDO.

    The paper's values for VAR are not at hand; these are this package's.

    Attributes:
        alpha: Weight of the drawn images.
        rounds: How often the reference is replaced. More rounds continue a finished run.
        samples_per_class: Images that the reference draws of each class of the data.
        draw: Sampling settings of these images. The loss supposes that they are drawn from the
            reference's own distribution, which the defaults do.
    """

    alpha: float = 1.0
    rounds: int = 1
    samples_per_class: int = 50
    draw: dict[str, Any] = field(default_factory=lambda: dict(UNFILTERED))

    kind: ClassVar[str] = "ddo"
    title: ClassVar[str] = "direct discriminative optimisation (DDO, arXiv 2503.01103)"
    sampling_changes: ClassVar[Mapping[str, Any]] = {"guidance_scale": 1.0}
    POSITIVE: ClassVar[tuple[str, ...]] = (
        *ReferenceConfig.POSITIVE, "rounds", "samples_per_class",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        self.check_range("alpha", 0)


class RealFakeDataset(TokenDataset):
    """Training samples, each with a drawn image of the same class.

    Seed, epoch and index choose the drawn image.

    Args:
        real: The real images.
        fakes: The drawn images; their class ids are the model's.

    Raises:
        ValueError: A class of the real images has no drawn one.
    """

    def __init__(self, real: TokenDataset, fakes: TokenCache):
        super().__init__(real.cache, real.num_noise, real.seed, real.class_ids)
        self.fakes = fakes
        self.of_class: dict[int, list[int]] = {}
        for number, label in enumerate(fakes.class_labels.tolist()):
            self.of_class.setdefault(label, []).append(number)
        if missing := set(real.classes) - self.of_class.keys():
            raise ValueError(f"No image of class {min(missing)} was drawn.")

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = position if isinstance(position, tuple) else (0, position)
        sample = super().__getitem__(position)
        numbers = self.of_class[int(sample["class_labels"])]
        rng = np.random.default_rng([self.seed, epoch, index, 1])
        return {**sample, "fakes": self.fakes.tokens(numbers[rng.integers(len(numbers))])}


def ddo_loss(log_ratios: Tensor, fake_log_ratios: Tensor, beta: float, alpha: float) -> Tensor:
    """The loss of DDO (arXiv 2503.01103): that of a GAN's discriminator ``sigmoid(beta * r)``.

    It is the mean of ``-log(sigmoid(beta * r)) - alpha * log(1 - sigmoid(beta * r_fake))``.

    Args:
        log_ratios: Log-ratios ``(B,)`` of model and reference on real images.
        fake_log_ratios: The same on images that the reference drew.
        beta: Factor on the log-ratios.
        alpha: Weight of the drawn images.
    """
    real = functional.logsigmoid(beta * log_ratios)
    fake = functional.logsigmoid(-beta * fake_log_ratios)
    return -(real + alpha * fake).mean()


class DDOTrainer(ReferenceTrainer):
    """Trainer of one round. While it measures, the loss is the cross-entropy."""

    config: DDOConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config, real = self.config, self.train_dataset
        fakes = draw_samples(
            load_pipeline_to_train(config.reference or config.model),
            self.run.path / "fakes",
            real.classes,
            config.samples_per_class,
            settings=config.draw,
            seed=config.seed + self._origin.get("round", 1),
        )
        self.train_dataset = RealFakeDataset(real, fakes)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """See `ddo_loss`."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        tokens = inputs["labels"]
        labels = inputs["class_labels"].masked_fill(
            self.null_rows(inputs), self.var_config.num_classes
        )
        ratios, logits = self.log_ratios(
            model, labels.repeat(2), torch.cat([tokens, inputs["fakes"]])
        )
        real_ratios, fake_ratios = ratios.chunk(2)
        loss = ddo_loss(real_ratios, fake_ratios, self.config.beta, self.config.alpha)
        real_logits = logits[: len(tokens)]
        self.meters["train"].update(real_logits, tokens)
        self.means.update(
            {
                "log_ratio": real_ratios,
                "log_ratio_fakes": fake_ratios,
                "told_apart": real_ratios > fake_ratios,
            }
        )
        return (loss, {"loss": loss, "logits": real_logits}) if return_outputs else loss


@joined()
def train_ddo(config: DDOConfig, output: str | Path) -> dict[str, Any]:
    """Post-train a pipeline by DDO, or continue a run that was cut off.

        output/
            config.json                              what the run was started with
            tokens/                                  the encoded images
            round-1/, round-2/                       one run folder for each round
            round-1/fakes/                           the images that its reference drew
            pipeline/                                the result of the last round

    Args:
        config: The settings.
        output: The folder.

    Returns:
        As `train_transformer`, of the last round.

    Raises:
        ValueError, DivergedError, OSError: See `train_against_reference`.
    """
    output = Path(output)
    origin = origin_of(config, load_pipeline_to_train(config.model))
    folder = claim_output(config, output, more_free=("rounds",))
    try:
        each = replace(config, rounds=1, token_cache=config.token_cache or str(output / "tokens"))
        for number in range(1, config.rounds + 1):
            result = train_against_reference(
                each,
                output / f"round-{number}",
                DDOTrainer,
                origin={**origin, "round": number},
                title=output.name,
            )
            each = replace(each, model=result["pipeline"], reference=None)
        if process_state().is_main_process:
            with new_folder(output / "pipeline") as draft:
                shutil.copytree(result["pipeline"], draft, dirs_exist_ok=True)
        process_state().wait_for_everyone()
    finally:
        folder.close()
    return {**result, "pipeline": str(output / "pipeline"), "rounds": config.rounds}
