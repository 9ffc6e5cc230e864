"""What all methods of `var-hf post-train` have in common.

Each method is a file: `cca`, `ddo` and `neon`. Each starts from a trained pipeline and keeps its
classes, tokenizer and token maps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from var_hf.evaluation.sampling import model_digest
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.processes import process_state
from var_hf.training.loading import load_start
from var_hf.training.run_folder import RunFolder
from var_hf.training.transformer_config import FREE_SETTINGS, TransformerTrainingConfig

#: Settings of training that would change what the reference and the model have to share.
NOT_FOR_POST_TRAINING = (
    "architecture", "new_classes", "tokenizer", "token_map_sizes", "decoder_steps",
    "decoder_learning_rate", "trained_scales",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PostTrainingConfig(TransformerTrainingConfig):
    """Settings of one method; `TransformerTrainingConfig` describes those of its training.

    A recipe of the method's name holds the defaults that differ from those of training.
    """

    #: The method in words, with its source.
    title: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuse settings that change classes, tokenizer or token maps."""
        super().__post_init__()
        if self.model is None:
            raise ValueError("Name the pipeline to post-train (model).")
        given = [name for name in NOT_FOR_POST_TRAINING if getattr(self, name)]
        if given:
            raise ValueError(
                f"Post-training keeps the classes and the tokenizer of the model: leave out "
                f"{' and '.join(given)}."
            )

    @classmethod
    def from_recipe(cls, recipe: str | Path | None = None, **overrides: Any) -> Self:
        """Read settings from a recipe; ``None`` is that of the method.

        Raises:
            ValueError: See `TransformerTrainingConfig.from_recipe`.
        """
        return super().from_recipe(cls.kind if recipe is None else recipe, **overrides)

    def check_range(self, name: str, least: float, most: float | None = None) -> None:
        """Raise a ``ValueError`` unless a setting lies between two numbers, or at them."""
        value = getattr(self, name)
        if value < least or (most is not None and value > most):
            allowed = f"at least {least:g}" if most is None else f"between {least:g} and {most:g}"
            raise ValueError(f"{name} must be {allowed}. Got {value}.")


def load_pipeline_to_train(model: str | None) -> VARPipeline:
    """The pipeline to start from, in float32.

    Raises:
        ValueError: It is a transformer alone.
        OSError: There is no such model.
    """
    pipe = load_start(model)
    if not isinstance(pipe, VARPipeline):
        raise ValueError(
            f"{model} is a transformer without a tokenizer. Post-training starts from a pipeline."
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def origin_of(config: PostTrainingConfig, base: VARPipeline) -> dict[str, Any]:
    """Method and base of a result, for its provenance."""
    name = None if Path(str(config.model)).exists() else config.model
    return {"method": config.kind, "base": name, "base_sha256": model_digest(base)}


def claim_output(
    config: PostTrainingConfig, output: Path, more_free: tuple[str, ...] = ()
) -> RunFolder:
    """Bind the folder of a method of several stages to its settings, and lock it.

    Raises:
        ValueError: The folder belongs to something else.
        FolderInUseError: Another process runs in it.
    """
    with process_state().main_process_first():
        return RunFolder(
            output,
            {"kind": config.kind, **config.to_dict()},
            free=(*FREE_SETTINGS, *more_free),
            complete=config.complete,
        )
