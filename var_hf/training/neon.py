"""Neon (arXiv 2510.03597): negative extrapolation from self-training.

The model draws images and is trained shortly on them, which makes it worse. The result is a step
from it in the opposite direction. How far is found by measuring several steps against real images.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from var_hf.evaluation.evaluate import Reference, evaluate_samples, prepare_reference
from var_hf.evaluation.features import INCEPTION, FeatureExtractor, load_features
from var_hf.evaluation.image_sources import open_samples, open_source
from var_hf.evaluation.sample_plan import SamplePlan
from var_hf.evaluation.sampling import sample_images
from var_hf.files import read_json, write_json
from var_hf.model_card import CardOptions
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.processes import joined, process_state
from var_hf.scheduling_next_scale import NextScaleScheduler
from var_hf.training.merging import extrapolate, merge_to_folder
from var_hf.training.own_samples import draw_samples
from var_hf.training.post_training import (
    PostTrainingConfig,
    claim_output,
    load_pipeline_to_train,
    origin_of,
)
from var_hf.training.transformer import train_transformer
from var_hf.training.transformer_config import TransformerTrainingConfig

logger = logging.getLogger(__name__)

#: Metrics that choose a step, and whether more of it is better.
METRICS = {"fid": False, "sfid": False, "inception_score": True, "precision": True, "recall": True}


@dataclass(frozen=True, kw_only=True)
class NeonConfig(PostTrainingConfig):
    """Settings of Neon. The images of `validation`, else of `data`, choose the step.

    Attributes:
        samples_per_class: Images of each class that the model draws to train on.
        draw: Sampling settings of these images; others are as stored with `model`.
        weights: Lengths of the steps to try, in units of the distance to the self-trained model. 0
            is `model` itself.
        guidance_scales: Guidance scales to try with each of them; empty is the stored one alone.
            The best one is stored with the result.
        metric: What chooses the step: ``"fid"``, ``"sfid"``, ``"inception_score"``,
            ``"precision"`` or ``"recall"``.
        scan_per_class: Images of each class that are drawn to measure a step.
        features: Feature extractor of the metric; see `load_features`.
        feature_weights: File of Inception's weights, which do not ship with the package.
    """

    samples_per_class: int = 1
    draw: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    guidance_scales: tuple[float, ...] = ()
    metric: str = "fid"
    scan_per_class: int = 10
    features: str = INCEPTION
    feature_weights: str | None = None

    kind: ClassVar[str] = "neon"
    title: ClassVar[str] = "negative extrapolation from self-training (Neon, arXiv 2510.03597)"
    POSITIVE: ClassVar[tuple[str, ...]] = (
        *PostTrainingConfig.POSITIVE, "samples_per_class", "scan_per_class",
    )  # fmt: skip
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **PostTrainingConfig.CHOICES,
        "metric": tuple(METRICS),
    }

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not self.weights:
            raise ValueError("weights must name at least one step to try. Got none.")

    def check_data(self) -> None:
        """Raise a ``ValueError`` unless there are real images to measure against, and no others."""
        if self.token_cache is not None or (self.data is None and self.validation is None):
            raise ValueError(
                "Neon trains on images that the model draws, and measures against real ones: name "
                "these (validation or data), and leave out token_cache."
            )

    def of_self_training(self, samples: Path) -> TransformerTrainingConfig:
        """Settings of the training on the model's own samples.

        Args:
            samples: Their token cache.
        """
        values = {each.name: getattr(self, each.name) for each in fields(TransformerTrainingConfig)}
        return TransformerTrainingConfig(
            **values
            | {
                "data": None,
                "split": None,
                "validation": None,
                "validation_split": None,
                "token_cache": str(samples),
                "copies": 1,
            }
        )


@joined()
def train_neon(config: NeonConfig, output: str | Path) -> dict[str, Any]:
    """Post-train a pipeline by Neon, or continue a run that was cut off.

        output/
            config.json                          what the run was started with
            samples/                             the images that the model drew, as tokens
            self-trained/                        the run folder of the training on them
            scan/weight-1-guidance-2/            the images of one step, and their metrics
            scan.json                            the metrics of all steps
            pipeline/                            the result

    Args:
        config: The settings.
        output: The folder.

    Returns:
        Path of the pipeline, the chosen weight and guidance scale, and the scan.

    Raises:
        ValueError, DivergedError, OSError: See `train_transformer`, `merge_to_folder` and
            `evaluate_samples`.
    """
    output = Path(output)
    extractor = load_features(config.features, config.feature_weights)
    base = load_pipeline_to_train(config.model)
    origin = origin_of(config, base)
    folder = claim_output(config, output, more_free=("feature_weights",))
    try:
        samples = output / "samples"
        draw_samples(
            base,
            samples,
            range(base.transformer.config.num_classes),
            config.samples_per_class,
            settings=config.draw,
            seed=config.seed,
        )
        result = train_transformer(config.of_self_training(samples), output / "self-trained")
        scan = scan_steps(config, Path(result["pipeline"]), output, extractor)
        sign = -1 if METRICS[config.metric] else 1
        best = min(scan, key=lambda point: sign * point[config.metric])
        if best["weight"] == 0:
            logger.warning("no step improved the %s: the result is the base", config.metric)
        if process_state().is_main_process and not (output / "pipeline").exists():
            write_result(config, Path(result["pipeline"]), best, scan, origin, output)
        process_state().wait_for_everyone()
    finally:
        folder.close()
    chosen = {name: best[name] for name in ("weight", "guidance_scale", config.metric)}
    return {"pipeline": str(output / "pipeline"), "steps": result["steps"], **chosen, "scan": scan}


def load_merged(model: str | None, self_trained: Path, weight: float) -> VARPipeline:
    """The pipeline one step away from the self-trained one."""
    base = load_pipeline_to_train(model)
    extrapolate(base, load_pipeline_to_train(str(self_trained)), weight)
    return base


def scan_steps(
    config: NeonConfig, self_trained: Path, output: Path, extractor: FeatureExtractor
) -> list[dict[str, Any]]:
    """Measure each step with each guidance scale, as far as that has not been done.

    All processes draw; each of them returns the whole scan.

    Returns:
        For each step ``weight``, ``guidance_scale``, ``images`` and all `METRICS`.
    """
    file = output / "scan.json"
    state = process_state()
    if state.is_main_process:
        reference = reference_of(config, extractor)
    points: list[dict[str, Any]] = []
    for weight in config.weights:
        pipe = load_merged(config.model, self_trained, weight).to(state.device)
        for scale in config.guidance_scales or (pipe.scheduler.config.guidance_scale,):
            place = output / "scan" / f"weight-{weight:g}-guidance-{scale:g}"
            plan = SamplePlan(
                pipe.transformer.config.num_classes, config.scan_per_class, seed=config.seed
            )
            settings = replace(pipe.resolve_settings(), guidance_scale=scale)
            sample_images(pipe, place / "samples", plan, settings)
            if state.is_main_process:
                point = {"weight": weight, "guidance_scale": scale}
                points.append(point | measured(place, reference, extractor))
        state.wait_for_everyone()
    if state.is_main_process:
        write_json(file, {"points": points})
    state.wait_for_everyone()
    scan: list[dict[str, Any]] = read_json(file)["points"]
    return scan


def reference_of(config: NeonConfig, extractor: FeatureExtractor) -> Reference:
    """The real images of the scan, or their statistics, prepared."""
    if config.validation is not None:
        source, split = config.validation, config.validation_split
    else:
        source, split = str(config.data), config.split
    return prepare_reference(open_source(source, split), extractor)


def measured(place: Path, reference: Reference, extractor: FeatureExtractor) -> dict[str, Any]:
    """The metrics of the sample set in a folder, from the file beside it if it is there."""
    file = place / "result.json"
    if not file.exists():
        source = open_samples(place / "samples")
        found = evaluate_samples(source, reference, extractor, min_images=2).result
        write_json(file, {name: found[name] for name in ("images", *METRICS)})
    result: dict[str, Any] = read_json(file)
    return result


def write_result(
    config: NeonConfig,
    self_trained: Path,
    best: Mapping[str, Any],
    scan: list[dict[str, Any]],
    origin: Mapping[str, Any],
    output: Path,
) -> None:
    """Write the pipeline of the best step, with its guidance scale."""
    base = load_pipeline_to_train(config.model)
    base.scheduler = NextScaleScheduler.from_config(
        base.scheduler.config, guidance_scale=best["guidance_scale"]
    )
    card = CardOptions(
        base_model=origin["base"],
        training_data=(
            f"{config.samples_per_class} images of each class that the base model drew, by "
            f"{config.title}: the result is {best['weight']:g} steps away from a model that was "
            f"trained on them. The {config.metric} of {len(scan)} steps chose it, against real "
            "images."
        ),
    )
    merge_to_folder(
        base,
        load_pipeline_to_train(str(self_trained)),
        best["weight"],
        output / "pipeline",
        card=card,
        title=output.name,
        about={"post_training": {**origin, "metric": config.metric, "scan": scan}},
    )
