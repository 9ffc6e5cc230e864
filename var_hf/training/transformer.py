"""Training of the transformer: `train_transformer`."""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from var_hf.configuration_var import VARConfig, check_token_map_sizes
from var_hf.images import ImageDataset, ImageTransform, open_images
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.processes import joined, process_state
from var_hf.scheduling_next_scale import NextScaleScheduler
from var_hf.training.agreement import (
    check_agreement,
    data_digest,
    settings_digest,
    weights_digest,
)
from var_hf.training.decoder import tune_decoder
from var_hf.training.fine_tuning import (
    class_ids_of,
    freeze,
    with_lora,
    with_new_classes,
    with_schedule,
)
from var_hf.training.loading import load_start, load_vqvae
from var_hf.training.run_folder import RunFolder
from var_hf.training.token_cache import TokenCache, TokenDataset, encode_images, labels_of
from var_hf.training.transformer_config import FREE_SETTINGS, TransformerTrainingConfig
from var_hf.training.transformer_trainer import PipelineOfCheckpoint, VARTrainer, check_batch

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

TrainerT = TypeVar("TrainerT", bound=VARTrainer)


@joined()
def train_transformer(config: TransformerTrainingConfig, output: str | Path) -> dict[str, Any]:
    """Train a VAR transformer, or continue a run that was cut off.

    Started under `accelerate launch` it runs on all its processes; the losses do not depend on
    their number.

        output/
            config.json, log.jsonl, checkpoints/     see `RunFolder`
            decoder/                                 the decoder's training, see `tune_decoder`
            tokens/, tokens-validation/              the encoded images, see `token_cache`
            samples/step-00001000.png                grids of samples
            pipeline/                                the model as of the newest checkpoint, complete
            trainer/                                 TensorBoard curves and such

    Args:
        config: The settings.
        output: The run folder.

    Returns:
        Path of the pipeline, steps, numbers of images and classes, and the last values of the log.

    Raises:
        ValueError: Settings, data, tokenizer and model do not fit together, or the run folder or
            the token cache belongs to something else.
        DivergedError: The loss became NaN or infinite.
        LostProcessError: Another process of the run has ended or cannot be reached.
        OSError: An image is unreadable and `config.strict` is set, or the disk is full.
    """
    return run_trainer(make_trainer(config, Path(output)))


def run_trainer(trainer: VARTrainer) -> dict[str, Any]:
    """Train, or continue, and let others write to the run folder; see `train_transformer`."""
    try:
        return _train(trainer)
    finally:
        trainer.run.close()


def _train(trainer: VARTrainer) -> dict[str, Any]:
    run, cache, model = trainer.run, trainer.train_dataset.cache, trainer.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        "%d images in %d classes, %.1fM parameters of which %.1fM are trained, %d steps; a guess "
        "costs %.3f",
        len(cache), model.config.num_classes, model.num_parameters() / 1e6, trained / 1e6,
        trainer.num_steps,
        math.log(model.config.vocab_size),
    )  # fmt: skip
    checkpoint, done = run.resume_point(trainer.num_steps)
    is_stale = checkpoint is not None and not trainer.has_pipeline_of(checkpoint)
    (is_stale,) = broadcast_object_list([is_stale])  # the first process has the folder
    trainer.accelerator.wait_for_everyone()  # before anything that was read just now is written
    if trainer.is_world_process_zero():
        run.rewind_log(done)
    trainer.accelerator.wait_for_everyone()
    if checkpoint is not None and is_stale:
        trainer.add_callback(PipelineOfCheckpoint(trainer, checkpoint))
    if done < trainer.num_steps or is_stale:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return {
        "pipeline": str(run.path / "pipeline"),
        "steps": trainer.num_steps,
        "images": len(cache),
        "skipped_images": cache.num_skipped,
        "classes": model.config.num_classes,
        **last_values(run),
    }


def make_trainer(
    config: TransformerTrainingConfig,
    output: Path,
    trainer_class: Callable[..., TrainerT] = VARTrainer,
    start: VARPipeline | None = None,
) -> TrainerT:
    """Everything that a run needs, checked against each other, with the images encoded.

    Args:
        config, output: See `train_transformer`.
        trainer_class: What to make; it takes the arguments of `VARTrainer`.
        start: The model of `config`, if it is loaded already. It is trained in place.

    Raises:
        ValueError, OSError: See `train_transformer`.
    """
    check_agreement({"settings": lambda: settings_digest(config.to_dict())})
    start = start or load_start(config.model)
    vqvae = load_tokenizer(config, start)
    images = open_source(config, validation=False)
    validation_images = open_source(config, validation=True)
    # A run folder belongs to its settings once it is made, so what does not fit together shows
    # before. A cache of its own belongs to the data alone.
    cache = None
    if config.token_cache is not None:
        cache = open_tokens(config, images, vqvae, Path(config.token_cache))
    validation_cache = None
    if config.validation_cache is not None:
        folder = Path(config.validation_cache)
        validation_cache = open_tokens(config, validation_images, vqvae, folder, validation=True)
    classes = classes_of(images or cache, config)
    measured = validation_images or validation_cache
    if measured is not None and measured.class_names != classes.names:
        raise ValueError(
            f"{config.validation or config.validation_cache} has other classes than the training "
            f"data: {len(measured.class_names or [])} against {len(classes)}, or other names. "
            "Give both the same class folders."
        )
    set_seed(config.seed)  # every process starts from the same weights
    model, class_ids, id2label = make_model(config, start, vqvae, classes)
    model.set_attn_implementation(config.attn_implementation)
    check_batch(config)
    if (config.trained_scales or 0) > vqvae.quantizer.num_scales:
        raise ValueError(
            f"trained_scales must be at most {vqvae.quantizer.num_scales}, the number of scales of "
            f"the tokenizer. Got {config.trained_scales}."
        )

    with process_state().main_process_first():
        settings = {"kind": config.kind, **config.to_dict()}
        run = RunFolder(
            output,
            settings,
            free=FREE_SETTINGS,
            keep=config.save_total_limit,
            complete=config.complete,
        )
    with ExitStack() as undo:
        undo.callback(run.close)
        decoder = tune_decoder(config, vqvae, output / "decoder")
        if cache is None:
            cache = open_tokens(config, images, vqvae, output / "tokens")
        num_noise = 1 + 2 * model.config.num_hidden_layers
        samples = TokenDataset(cache, num_noise, config.seed, class_ids)
        if validation_cache is None and validation_images is not None:
            folder = output / "tokens-validation"
            validation_cache = open_tokens(
                config, validation_images, vqvae, folder, validation=True
            )
        validation_samples = None
        if validation_cache is not None:
            validation_samples = TokenDataset(validation_cache, num_noise, config.seed, class_ids)
        check_agreement(
            {
                "training data": lambda: data_digest(samples),
                "validation data": lambda: data_digest(validation_samples),
                "model": lambda: weights_digest(model.state_dict()),
                "tokenizer": lambda: weights_digest(vqvae.state_dict()),
            }
        )
        vqvae.to("cpu")  # only its quantizer is needed from here on, and the trainer places it
        trainer = trainer_class(
            model,
            vqvae,
            scheduler_for(config, start),
            id2label,
            config,
            run,
            samples,
            validation_samples,
            decoder,
        )
        undo.pop_all()
    return trainer


def scheduler_for(
    config: TransformerTrainingConfig, start: VARPipeline | VARModel | None
) -> NextScaleScheduler:
    """The sampling defaults of the result: those of the settings, else of the pipeline to start
    from with the changes of the method, else the release's.
    """
    if config.sampling or not isinstance(start, VARPipeline):
        return NextScaleScheduler(**config.sampling)
    return NextScaleScheduler.from_config(start.scheduler.config, **config.sampling_changes)


def load_tokenizer(
    config: TransformerTrainingConfig, start: VARPipeline | VARModel | None
) -> MultiScaleVQVAE:
    """The tokenizer in float32, for the schedule that the settings ask for.

    Raises:
        ValueError: There is none, or image size, schedule and stride do not fit.
    """
    if config.tokenizer is not None:
        vqvae = load_vqvae(config.tokenizer)
    elif isinstance(start, VARPipeline):
        vqvae = start.vqvae
    else:
        raise ValueError(
            f"{config.model} is a transformer without a tokenizer: name one (tokenizer)."
        )
    sizes = vqvae.quantizer.token_map_sizes
    if config.token_map_sizes is not None and tuple(config.token_map_sizes) != sizes:
        vqvae = tokenizer_with_schedule(vqvae, config.token_map_sizes)
    size, stride = config.image_size, vqvae.stride
    if size is not None and size % stride:
        raise ValueError(
            f"image_size must be a multiple of the tokenizer's stride, {stride} pixels. Got "
            f"{size}; {size // stride * stride} or {(size // stride + 1) * stride} would be."
        )
    if size is not None and size != vqvae.image_size:
        raise ValueError(
            f"Images of {size} pixels need a schedule that ends with {size // stride}. Got "
            f"token_map_sizes {vqvae.quantizer.token_map_sizes}, which makes images of "
            f"{vqvae.image_size}."
        )
    vqvae.register_to_config(_name_or_path="")  # else a path of this machine is saved with it
    return vqvae.eval().requires_grad_(False).to(process_state().device)


def tokenizer_with_schedule(vqvae: MultiScaleVQVAE, token_map_sizes: Any) -> MultiScaleVQVAE:
    """A copy of the tokenizer that writes other token maps; its weights serve any schedule.

    Raises:
        ValueError: The schedule is none, or the tokenizer has one refiner for each of another
            number of scales.
    """
    sizes = check_token_map_sizes(token_map_sizes)
    settings = {name: value for name, value in vqvae.config.items() if not name.startswith("_")}
    settings |= {"token_map_sizes": sizes, "refiner_of_scale": None}
    changed = MultiScaleVQVAE(**settings)
    weights = {name: t for name, t in vqvae.state_dict().items() if "codebook_usage" not in name}
    if len(changed.quantizer.refiners) != len(vqvae.quantizer.refiners):
        raise ValueError(
            f"The tokenizer has one refiner for each of its {vqvae.quantizer.num_scales} scales; "
            f"it cannot serve the {len(sizes)} scales of {sizes}."
        )
    changed.load_state_dict(weights, strict=False)  # the usage of codes is unknown for other scales
    logger.warning(
        "the tokenizer was trained for token maps %s and now writes %s: look at its "
        "reconstructions",
        vqvae.quantizer.token_map_sizes, sizes,
    )  # fmt: skip
    return changed


def open_source(config: TransformerTrainingConfig, *, validation: bool) -> ImageDataset | None:
    """The training or validation images, if the settings name any."""
    source = config.validation if validation else config.data
    split = config.validation_split if validation else config.split
    if source is None:
        return None
    with process_state().main_process_first():
        return open_images(source, split, config.image_column, config.label_column)


def open_tokens(
    config: TransformerTrainingConfig,
    images: ImageDataset | None,
    vqvae: MultiScaleVQVAE,
    folder: Path,
    *,
    validation: bool = False,
) -> TokenCache:
    """Encode images as far as that has not been done; without images, open what has been."""
    if images is None:
        cache = TokenCache(folder)
        cache.check_tokenizer(vqvae)
        return cache
    transform = ImageTransform(
        vqvae.image_size,
        config.resize_factor,
        random_crop=config.random_crop and not validation,
        horizontal_flip=config.horizontal_flip and not validation,
        seed=config.seed,
    )
    return encode_images(
        images,
        vqvae,
        transform,
        folder,
        copies=1 if validation else config.copies,
        batch_size=config.encode_batch_size,
        num_workers=config.dataloader_num_workers,
        strict=config.strict,
    )


@dataclass(frozen=True)
class Classes:
    """The classes of the data: how many there are, and their names if they have any."""

    count: int
    names: list[str] | None

    def __len__(self) -> int:
        return self.count


def classes_of(
    data: ImageDataset | TokenCache | None, config: TransformerTrainingConfig
) -> Classes:
    """The classes of images or tokens; ids without names count up to the largest one.

    Raises:
        ValueError: There are none, or there is one only and the model is to be guided.
    """
    if isinstance(data, ImageDataset):
        labels, names = labels_of(data), data.class_names
    elif data is not None:
        labels, names = data.class_labels.tolist(), data.class_names
    else:  # the settings were checked for it
        raise ValueError("Name the images (data), or a folder with their tokens (token_cache).")
    if names is None:
        classes = Classes(max(labels) + 1, None)
    else:
        classes = Classes(len(names), list(names))
    if len(classes) == 1 and config.architecture.get("class_dropout_prob") != 0:
        raise ValueError(
            f"The data has one class only{f' ({names[0]!r})' if names else ''}: guidance leads "
            "away from images of any class, and there is nothing to lead away from. Give images "
            "of more classes, or train without a null "
            'class (architecture: {"class_dropout_prob": 0}) and draw with guidance_scale 1.'
        )
    return classes


def make_model(
    config: TransformerTrainingConfig,
    start: VARPipeline | VARModel | None,
    vqvae: MultiScaleVQVAE,
    classes: Classes,
) -> tuple["VARModel | PeftModel", list[int] | None, dict[int, str]]:
    """The transformer to train, its id for each class of the data, and its class names.

    Raises:
        ValueError: Tokenizer, data and the model to start from do not fit together.
    """
    num_classes, names = len(classes), dict(enumerate(classes.names or []))
    quantizer = vqvae.quantizer
    from_tokenizer = {
        "vocab_size": quantizer.codebook.num_embeddings,
        "latent_channels": quantizer.codebook.embedding_dim,
    }
    if start is None:
        given = {"token_map_sizes": quantizer.token_map_sizes, "num_classes": num_classes}
        settings = {**config.architecture, **from_tokenizer, **given}
        changed = [name for name, value in config.architecture.items() if value != settings[name]]
        if changed:
            raise ValueError(
                f"architecture: {changed[0]} is {config.architecture[changed[0]]!r}, but tokenizer "
                f"and data make it {settings[changed[0]]!r}. Leave it out."
            )
        return VARModel(VARConfig(**settings)), None, names

    is_pipeline = isinstance(start, VARPipeline)
    model = start.transformer if is_pipeline else start
    id2label = start.id2label if is_pipeline else {}
    for name, value in from_tokenizer.items():
        if getattr(model.config, name) != value:
            raise ValueError(
                f"{config.model} has {name} {getattr(model.config, name)}, the tokenizer {value}: "
                "they were not trained together. Give the tokenizer that the model was trained "
                "with."
            )
    new_schedule = tuple(model.config.token_map_sizes) != quantizer.token_map_sizes
    if new_schedule:
        model = with_schedule(model, quantizer.token_map_sizes)
    class_ids = None
    if config.new_classes:
        model, id2label = with_new_classes(model, num_classes), names
    else:
        class_ids = class_ids_of(classes.names, num_classes, model, id2label)
    if config.freeze:
        freeze(model, config.freeze)
    if config.lora_rank:
        in_full = ["embeddings"] if new_schedule else ["class_embedding"] * config.new_classes
        return with_lora(model, config.lora_rank, in_full), class_ids, id2label
    return model, class_ids, id2label


def last_values(run: RunFolder) -> dict[str, Any]:
    """The last training and evaluation lines of a run's log."""
    values: dict[str, Any] = {}
    for entry in run.read_log():
        values |= {
            name: entry[name] for name in ("engine", "training", "evaluation") if name in entry
        }
    return values
