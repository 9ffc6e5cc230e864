"""transformers' Trainer for VAR: teacher forcing over all scales, measured scale by scale."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from var_hf.configuration_var import VARConfig
from var_hf.files import new_folder, new_path, writing_errors
from var_hf.model_card import CardOptions, model_card, read_configs
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.visualization import image_grid
from var_hf.provenance import read_provenance, verify, write_provenance
from var_hf.scheduling_next_scale import NextScaleScheduler
from var_hf.training.config import steps_between
from var_hf.training.fine_tuning import merged
from var_hf.training.order import StepSampler
from var_hf.training.run_folder import RunFolder
from var_hf.training.schedules import learning_rate_factor, peak_learning_rate, weight_decay_at
from var_hf.training.sharding import ShardingTrainer, shares_out
from var_hf.training.token_cache import TokenDataset
from var_hf.training.tokenizer import DivergedError
from var_hf.training.transformer_config import FREE_SETTINGS, PLACES, TransformerTrainingConfig
from var_hf.training.transformer_optimizer import (
    decayed_parameters,
    muon_and_adamw,
    split_class_table,
)

logger = logging.getLogger(__name__)

#: Images in a grid of samples, and in one of its rows, at most.
GRID_IMAGES, GRID_COLUMNS = 24, 8


class ScaleMeter:
    """Loss and token accuracy per scale, summed up until they are read.

    Args:
        scale_slices: Where the tokens of each scale lie among all L tokens.
        device: Where logits and labels are.
    """

    def __init__(self, scale_slices: tuple[slice, ...], device: torch.device | str = "cpu"):
        self.scale_slices = scale_slices
        # Of each scale the losses and the hits, and the number of images; (3, S).
        self.sums = torch.zeros(3, len(scale_slices), device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits ``(B, L, V)``, true tokens ``(B, L)``."""
        losses = functional.cross_entropy(  # of rows: (B, V, L) with strides is slow on a CPU
            logits.flatten(0, 1), labels.flatten(), reduction="none"
        ).view_as(labels)
        hits = (logits.argmax(dim=-1) == labels).float()
        per_token = torch.stack([losses, hits]).sum(dim=1)  # (2, L)
        sums = torch.stack(
            [per_token[:, tokens].mean(dim=1) for tokens in self.scale_slices], dim=1
        )
        self.sums += torch.cat([sums, torch.full_like(sums[:1], len(labels))])

    def read(self, reduce: Callable[[Tensor], Tensor], prefix: str = "") -> dict[str, float]:
        """The means since the last reading, and start anew.

        Args:
            reduce: Sums a tensor over all processes.
            prefix: Put before each name.
        """
        total = reduce(self.sums.clone())
        self.sums.zero_()
        if not total[2].any():
            return {}
        losses, accuracies = (total[:2] / total[2]).tolist()
        lengths = [tokens.stop - tokens.start for tokens in self.scale_slices]
        mean_accuracy = sum(map(math.prod, zip(accuracies, lengths, strict=True))) / sum(lengths)
        values = {
            "loss": sum(map(math.prod, zip(losses, lengths, strict=True))) / sum(lengths),
            "accuracy": mean_accuracy,
            "loss_finest_scale": losses[-1],
            "accuracy_finest_scale": accuracies[-1],
        }
        for scale, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
            values |= {f"loss_scale_{scale}": loss, f"accuracy_scale_{scale}": accuracy}
        return {f"{prefix}{name}": value for name, value in values.items()}


class WeightDecaySchedule(TrainerCallback):
    """Moves the weight decay along its cosine before every step."""

    def __init__(self, initial: float, final: float):
        self.initial, self.final = initial, final

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):  # type: ignore[no-untyped-def]
        """Set the weight decay of the groups that have one."""
        value = weight_decay_at(state.global_step, state.max_steps, self.initial, self.final)
        for group in optimizer.param_groups:
            if group["weight_decay"] > 0:
                group["weight_decay"] = value


class LogWithCheckpoint(TrainerCallback):
    """Logs wherever a checkpoint is made.

    The loss is checked before the checkpoint, and a continued run logs alike.
    """

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Let a checkpoint bring a line of the log with it."""
        control.should_log |= control.should_save
        return control


class ProgressOnStderr(ProgressCallback):
    """The progress bar with the loss beside it; lines of the log are not printed."""

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Show the loss."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")


class SampleGrids(TrainerCallback):
    """Draws a grid of samples every few steps and at the end, always from the same seed."""

    def __init__(self, trainer: "VARTrainer", every: int):
        self.trainer, self.every = trainer, every

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Draw the grid when it is time."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.trainer.draw_samples()


class PipelineOfCheckpoint(TrainerCallback):
    """Writes the pipeline of the checkpoint that a run goes on from, before its first step.

    A run that was killed between the two has an older pipeline, or none.
    """

    def __init__(self, trainer: "VARTrainer", checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Write it from the weights that were just loaded."""
        self.trainer.write_pipeline(self.checkpoint)


class VARTrainer(ShardingTrainer):
    """Trainer whose losses depend on seed and step, not on processes or interruptions.

    Args:
        model: A `VARModel`, or one with LoRA adapters.
        vqvae: The frozen tokenizer, for the transformer's inputs and the pipeline.
        scheduler: Sampling defaults of the pipeline.
        id2label: Class names of the pipeline.
        config: The settings.
        run: Where logs, checkpoints and pipelines go.
        train_dataset: Tokens to learn from.
        eval_dataset: Tokens to measure on.
        decoder: What `tune_decoder` returned, for the card and the provenance.
    """

    train_dataset: Any  # samples of `TokenDataset`, or of a subclass
    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        vqvae: MultiScaleVQVAE,
        scheduler: NextScaleScheduler,
        id2label: Mapping[int, str],
        config: TransformerTrainingConfig,
        run: RunFolder,
        train_dataset: TokenDataset,
        eval_dataset: TokenDataset | None = None,
        decoder: Mapping[str, Any] | None = None,
    ):
        self.config, self.run, self.decoder = config, run, decoder
        self.vqvae, self.scheduler, self.id2label = vqvae, scheduler, dict(id2label)
        self.num_steps = math.ceil(config.num_train_epochs * len(train_dataset) / config.batch_size)
        arguments = training_arguments(
            config,
            cast(VARConfig, model.config).hidden_size,
            run.path / "trainer",
            self.num_steps,
            eval_dataset,
        )
        super().__init__(
            model=model,
            args=arguments,
            data_collator=default_collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[
                WeightDecaySchedule(config.weight_decay, config.final_weight_decay),
                LogWithCheckpoint(),
            ],
        )
        if config.torch_compile:
            # In place: the wrapper of TrainingArguments.torch_compile would rename all weights.
            model.compile(dynamic=False)
        # Both print their lines to standard output, which belongs to results.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressOnStderr())
        if config.sample_steps:
            self.add_callback(SampleGrids(self, steps_between(config.sample_steps, self.num_steps)))
        self.quantizer = vqvae.quantizer.to(self.args.device)
        slices = self.var_config.token_slices[: config.trained_scales]
        self.num_tokens = slices[-1].stop  # learned per image
        self.meters = {name: ScaleMeter(slices, self.args.device) for name in ("train", "eval")}
        self._last_log: tuple[int, float] | None = None

    @property
    def var_config(self) -> VARConfig:
        """Config of the transformer, adapters or not."""
        return self.model.config

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """Batches that depend on seed and step alone; no further sharding is needed."""
        config, accelerator = self.config, self.accelerator
        parts = config.gradient_accumulation_steps
        sampler = StepSampler(
            len(self.train_dataset), config.batch_size // parts, 0, self.num_steps * parts,
            config.seed,
            accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        return DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            num_workers=config.dataloader_num_workers,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean cross-entropy over the tokens of all scales (arXiv 2404.02905, section 3.2), or of
        the `trained_scales`.
        """
        labels = inputs["labels"][:, : self.num_tokens]
        latent_inputs = self.teacher_inputs(inputs["labels"])
        latent_inputs = latent_inputs[:, : self.num_tokens - self.var_config.token_slices[0].stop]
        outputs = model(**{**inputs, "labels": labels}, latent_inputs=latent_inputs)
        if model.training:
            self.meters["train"].update(outputs["logits"], labels)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    @torch.no_grad()
    def teacher_inputs(self, tokens: Tensor) -> Tensor:
        """The transformer's inputs ``(B, L - T, Z)`` for true tokens ``(B, L)``.

        T is the number of tokens of the coarsest scale, and Z that of latent channels.
        """
        return self.quantizer.teacher_inputs(self.quantizer.split(tokens))

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure on every image of a data set, once, whatever the number of processes.

        Trainer's own loop fills up the last batch with images it has seen and averages over
        batches.

        Args:
            eval_dataset: Tokens to measure on, or several data sets by name, whose metrics are then
                named ``eval_<name>_loss`` and so on; ``None`` takes the validation data of the
                trainer.
            ignore_keys: Not used; part of Trainer's signature.
            metric_key_prefix: Put before the name of each metric.

        Raises:
            ValueError: There is nothing to measure on.
        """
        samples = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(samples, Mapping):
            metrics: dict[str, float] = {}
            for name, dataset in samples.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if samples is None:
            raise ValueError("There is no data to measure on: give eval_dataset.")
        size = self.args.per_device_eval_batch_size
        model, accelerator = self.model_wrapped.eval(), self.accelerator
        first = accelerator.process_index * size
        for start in tqdm(
            range(0, len(samples), size * accelerator.num_processes),
            desc="evaluate",
            leave=False,
            disable=not self.is_world_process_zero(),
        ):
            numbers = range(start + first, start + first + size)
            inside = sum(number < len(samples) for number in numbers)
            # Sharded models need every process in every pass, so one without images repeats the
            # last one.
            batch = self._prepare_inputs(
                self.data_collator([samples[min(n, len(samples) - 1)] for n in numbers])
            )
            _, outputs = self.compute_loss(model, batch, return_outputs=True)
            if inside:
                labels = batch["labels"][:inside, : self.num_tokens]
                self.meters["eval"].update(outputs["logits"][:inside], labels)
        model.train()
        metrics = self.meters["eval"].read(self._sum_over_processes, prefix=f"{metric_key_prefix}_")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # Optimiser

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """See `decayed_parameters`."""
        return decayed_parameters(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW as Trainer makes it, or Muon and AdamW; a new class table may have its own rate."""
        if self.optimizer is not None:
            return self.optimizer
        config, model = self.config, model or self.model
        if config.optimizer == "muon":
            self.optimizer = muon_and_adamw(
                model, self.args.learning_rate, config.betas, config.weight_decay
            )
        optimizer = super().create_optimizer(model)
        if config.new_classes and config.class_lr_factor != 1:
            split_class_table(optimizer, model, config.class_lr_factor)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The release's learning-rate schedule; see `learning_rate_factor`."""
        config = self.config
        warmup_epochs = config.warmup_epochs
        if warmup_epochs is None:
            warmup_epochs = config.num_train_epochs / 50  # the release's choice
        warmup_steps = round(num_training_steps * warmup_epochs / config.num_train_epochs)

        def factor(step: int) -> float:
            return learning_rate_factor(
                step, num_training_steps, warmup_steps, config.warmup_start_factor,
                config.final_lr_factor,
                config.lr_scheduler_type,
            )  # fmt: skip

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a line of the log, and refuse to go on with a loss that is no number."""
        seen = self.state.global_step * self.config.batch_size
        self.state.epoch = seen / len(self.train_dataset)
        kind = "summary"
        if "loss" in logs:
            kind = "training"
            for name, value in self.meters["train"].read(self._sum_over_processes).items():
                logs.setdefault(name, value)
            now = (self.state.global_step, time.monotonic())
            if self._last_log is not None:
                steps, seconds = (new - old for new, old in zip(now, self._last_log, strict=True))
                logs["images_per_second"] = steps * self.config.batch_size / seconds
            self._last_log = now
            self._check_finite(logs)
        elif any(name.endswith("_loss_finest_scale") for name in logs):
            kind = "evaluation"
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.run.log(self.state.global_step, **_as_lists(kind, logs))

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _check_finite(self, logs: Mapping[str, float]) -> None:
        # In fp16 the gradient may overflow: the scaler leaves the step out and scales less.
        names = ("loss",) if self.args.fp16 else ("loss", "grad_norm")
        broken = [name for name in names if not math.isfinite(logs.get(name, 0.0))]
        if broken:
            raise DivergedError(
                f"Step {self.state.global_step}: {' and '.join(broken)} became NaN or infinite. "
                f"The last good checkpoint is {self.run.latest_checkpoint() or 'none'}. Lower the "
                f"learning rate (learning_rate; its peak is {self.args.learning_rate:g}), in a new "
                "run."
            )

    # What is written

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer fills its folder file by file; ours takes its place in the run only when it is
        # complete.
        step = self.state.global_step
        draft = Path(self.args.output_dir) / f"checkpoint-{step}"
        if self.args.should_save:
            shutil.rmtree(draft, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with writing_errors(draft):
                super()._save_checkpoint(model, trial)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise self.run.checkpoint_error(step, error) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.run.save_checkpoint(step, lambda folder: _adopt(draft, folder))
            shutil.rmtree(draft, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.write_pipeline(self.run.checkpoint(step))

    @property
    def pipeline_folder(self) -> Path:
        """Where the pipeline of the newest checkpoint lies."""
        return self.run.path / "pipeline"

    def has_pipeline_of(self, checkpoint: Path) -> bool:
        """Whether the run's pipeline was made from a checkpoint, and is complete."""
        try:
            made_from = read_provenance(self.pipeline_folder)["options"]["checkpoint"]
            found = verify(self.pipeline_folder)
        except (OSError, ValueError, LookupError, TypeError):
            return False
        changed = set(found.changed) - {"README.md"}  # a card may be edited
        return made_from == self.run.weights_digest(checkpoint) and not (changed or found.missing)

    def write_pipeline(self, checkpoint: Path) -> None:
        """Write the current weights as a checkpoint's pipeline. Every process has to call it."""
        pipeline = self.make_pipeline()
        if self.is_world_process_zero():
            with new_folder(self.pipeline_folder) as folder:
                self._fill_pipeline(pipeline, folder, self.run.weights_digest(checkpoint))
        self.accelerator.wait_for_everyone()

    def make_pipeline(self) -> VARPipeline:
        """A pipeline around the weights as they are now. Every process has to call it.

        With `shard` the first process alone gets weights; see `whole_model`.
        """
        is_cut = shares_out(self.config)
        model: Any = self.whole_model() if is_cut else self.accelerator.unwrap_model(self.model)
        if hasattr(model, "merge_and_unload"):
            transformer = model.merge_and_unload() if is_cut else merged(model)
        elif is_cut:
            transformer = model
        else:
            state_dict = self.accelerator.get_state_dict(self.model_wrapped)
            with torch.device("meta"):
                transformer = VARModel(self.var_config)
            transformer.load_state_dict(state_dict, assign=True)
        pipeline = VARPipeline(transformer.eval(), self.vqvae, self.scheduler, self.id2label)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _fill_pipeline(self, pipeline: VARPipeline, folder: Path, checkpoint: str) -> None:
        """Fill a pipeline folder; its provenance holds the settings, without local paths."""
        pipeline.save_pretrained(folder)
        settings = {
            name: value
            for name, value in self.config.to_dict().items()
            if name not in (*FREE_SETTINGS, *PLACES)
        }
        card = CardOptions(base_model=self.base_name, training_data=self._describe_training())
        write_provenance(
            folder,
            sources=[],
            options={
                "steps": self.state.global_step,
                "checkpoint": checkpoint,
                "training": settings,
                "decoder": self.decoder,
                **self._more_provenance(),
            },
            write_card=lambda provenance: str(
                model_card(read_configs(folder), provenance, card, self.title)
            ),
        )

    @property
    def title(self) -> str:
        """Name of the result in its card."""
        return self.run.path.name

    @property
    def base_name(self) -> str | None:
        """Name of the model to start from, unless it is a place on this machine."""
        model = self.config.model
        return None if model is None or Path(model).exists() else model

    def _more_provenance(self) -> dict[str, Any]:
        """What a method of its own adds to the provenance of the pipeline."""
        return {}

    def _describe_training(self) -> str:
        """The training data in words, for the model card."""
        text = f"{len(self.train_dataset):,} images in {self.var_config.num_classes} classes."
        if self.decoder is not None:
            text += (
                f" {self.decoder['steps']} steps trained the tokenizer's decoder on them first. "
                f"Held-out images then had a PSNR of {self.decoder['psnr_after']} dB"
            )
            before = self.decoder["psnr_before"]
            text += "." if before is None else f", and {before} dB before."
        return text

    def draw_samples(self) -> None:
        """Write a grid of samples of the data's classes; the same seed each time."""
        pipeline = self.make_pipeline()
        if not self.is_world_process_zero():
            return
        labels, columns = sample_labels(self.train_dataset.classes)
        images = pipeline.to(self.args.device)(
            labels, generator=torch.Generator().manual_seed(self.config.seed)
        ).images
        grid = image_grid(images, columns)
        file = self.run.path / "samples" / f"step-{self.state.global_step:08d}.png"
        with new_path(file, replace=True) as temporary:
            grid.save(temporary)


def sample_labels(classes: Sequence[int]) -> tuple[list[int], int]:
    """Labels of a grid of samples, and its columns.

    Up to eight classes have a row each. More have one image each, evenly spread over the classes.
    """
    if len(classes) <= GRID_COLUMNS:
        columns = min(GRID_COLUMNS, GRID_IMAGES // len(classes))
        return [label for label in classes for _ in range(columns)], columns
    count = min(GRID_IMAGES, len(classes))
    return [classes[i * len(classes) // count] for i in range(count)], GRID_COLUMNS


def _as_lists(kind: str, logs: Mapping[str, float]) -> dict[str, Any]:
    """A line of the run's log: values of scales, which TensorBoard needs one by one, as lists."""
    values: dict[str, Any] = {}
    for name, value in logs.items():
        name = name.removeprefix("eval_")
        value = value if name == "learning_rate" else round(value, 6)
        quantity, is_of_scale, _ = name.partition("_scale_")
        if is_of_scale:
            values.setdefault(f"{quantity}_per_scale", []).append(value)
        else:
            values[name] = value
    speed = {name: values.pop(name) for name in ("images_per_second",) if name in values}
    return {kind: values, **speed}


def _adopt(draft: Path, folder: Path) -> None:
    """Move the files of a finished checkpoint, except for an unused one that is a pickle."""
    for entry in draft.iterdir():
        if entry.name != "training_args.bin":
            os.replace(entry, folder / entry.name)


def check_batch(config: TransformerTrainingConfig) -> int:
    """Images that one process works through at once.

    Raises:
        ValueError: The global batch cannot be cut evenly; the message names the nearest numbers of
            processes with which it can.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    parts = world_size * config.gradient_accumulation_steps
    if config.batch_size % parts:
        whole = config.batch_size // config.gradient_accumulation_steps
        fit = [
            count
            for count in range(1, whole + 1)
            if config.batch_size % (count * config.gradient_accumulation_steps) == 0
        ]
        below = [count for count in fit if count < world_size][-1:]
        above = [count for count in fit if count > world_size][:1]
        nearest = " or ".join(map(str, below + above))
        raise ValueError(
            f"A global batch of {config.batch_size} images cannot be cut into {parts} equal parts "
            f"({world_size} processes, gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps}). "
            + (f"Start {nearest} processes, or choose" if nearest else "Choose")
            + f" a batch_size that is a multiple of {parts}."
        )
    return config.batch_size // parts


def asks_for_fsdp() -> bool:
    """Whether the processes were started with `accelerate launch --use_fsdp`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def training_arguments(
    config: TransformerTrainingConfig,
    hidden_size: int,
    folder: Path,
    num_steps: int,
    eval_dataset: TokenDataset | None,
) -> TrainingArguments:
    """The settings in the words of transformers.

    Raises:
        ValueError: The batch cannot be cut evenly, or `config.trainer` holds an unknown argument or
            one that has a setting of its own.
    """
    micro_batch = check_batch(config)
    learning_rate = config.learning_rate or peak_learning_rate(
        config.base_learning_rate, config.batch_size, hidden_size, config.lr_scaling
    )
    arguments = {
        "output_dir": str(folder),
        "max_steps": num_steps,
        "per_device_train_batch_size": micro_batch,
        "per_device_eval_batch_size": micro_batch,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": learning_rate,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "label_names": ["labels"],  # else class_labels counts as one
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # has to be said for bf16
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # a NaN is to be seen
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "eval_strategy": "no" if eval_dataset is None else "steps",
        "eval_steps": config.eval_steps,
        "prediction_loss_only": True,
        "ddp_find_unused_parameters": False,  # all take part in every step
        "report_to": "none",
    }
    if {"fsdp", "fsdp_config"} & config.trainer.keys() or asks_for_fsdp():
        raise ValueError(
            "trainer: accelerate's own FSDP is not used, because it trains CPU processes without "
            "it and says nothing. Leave it out of trainer and of the launch, and set shard "
            "(--shard)."
        )
    own = sorted(
        (arguments.keys() - {"report_to", "ddp_find_unused_parameters"}) & config.trainer.keys()
    )
    if own:
        raise ValueError(
            f"{', '.join(own)} cannot be set under trainer: settings of their own decide it."
        )
    try:
        return TrainingArguments(**arguments | config.trainer)
    except TypeError as error:
        raise ValueError(f"trainer: {error}") from error
