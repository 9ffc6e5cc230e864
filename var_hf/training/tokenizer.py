"""Training of the multi-scale VQVAE: `train_tokenizer`."""

import copy
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather,
    reduce,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from var_hf.evaluation.codebook_usage import CodebookUsage, count_codes
from var_hf.evaluation.perceptual import load_perceptual
from var_hf.evaluation.tokenizer import evaluate_tokenizer
from var_hf.files import new_folder, new_path, read_json
from var_hf.images import (
    ImageDataset,
    ImageTransform,
    TrainingSamples,
    collate,
    normalize,
    open_images,
)
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.processes import joined
from var_hf.training.adversary import Adversary
from var_hf.training.codebook import (
    fold_feature_scale,
    initialize_codebook,
    revive_dead_codes,
)
from var_hf.training.config import FREE_SETTINGS, steps_between
from var_hf.training.loading import load_vqvae
from var_hf.training.order import StepSampler
from var_hf.training.run_folder import RunFolder
from var_hf.training.schedules import learning_rate_factor
from var_hf.training.tokenizer_config import TokenizerTrainingConfig
from var_hf.training.tokenizer_losses import TokenizerPass
from var_hf.training.tokenizer_setup import (
    gather_features,
    hold_out,
    initialize_convolutions,
    make_optimizers,
    update_codebook_usage,
)

logger = logging.getLogger(__name__)


class DivergedError(ValueError):
    """The loss is no number any more; the message names the last good checkpoint."""


@joined()
def train_tokenizer(
    config: TokenizerTrainingConfig,
    output: str | Path,
    perceptual: nn.Module | None = None,
    start: MultiScaleVQVAE | None = None,
) -> dict[str, Any]:
    """Train a multi-scale VQVAE, or continue a run that was cut off.

    Started under `accelerate launch` it runs on all its processes; the losses do not depend on
    their number. The run folder is described in `RunFolder`; the result, the averaged weights in
    diffusers form, ends up in its folder ``vqvae``, and every checkpoint holds one as well.

    Args:
        config: The settings.
        output: The run folder.
        perceptual: A module that takes reconstructions and images, both ``(B, 3, P, P)`` in [-1,
            1], and returns distances, one per image or any shape; used instead of
            `config.perceptual`.
        start: The tokenizer that `config.model` names, if it is loaded already. It is not changed.

    Returns:
        The last measurement: PSNR, SSIM and codebook usage on the validation images; the PSNR
        before the first step, ``None`` if the log has lost it; and the path of the tokenizer.

    Raises:
        ValueError: Settings, images and tokenizer do not fit together, or the run folder belongs to
            another configuration.
        DivergedError: The loss became NaN or infinite.
        LostProcessError: Another process of the run has ended or cannot be reached.
        OSError: An image is unreadable and `config.strict` is set, or the disk is full.
    """
    trainer = TokenizerTrainer(config, output, perceptual, start)
    try:
        return trainer.train()
    finally:
        trainer.run.close()


class TokenizerTrainer:
    """The state of one run: models, optimisers, averages, and where it stands."""

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        output: str | Path,
        perceptual: nn.Module | None = None,
        start: MultiScaleVQVAE | None = None,
    ):
        self.config = config
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # The usage statistics are reduced by hand; nothing else is a buffer.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.run = self._open_run(output)
        try:
            self._make_parts(perceptual, start)
        except BaseException:
            self.run.close()
            raise

    def _make_parts(self, perceptual: nn.Module | None, start: MultiScaleVQVAE | None) -> None:
        config = self.config
        self.images, self.validation_images = self._open_data()

        vqvae = self._make_vqvae(start)
        self.transform = ImageTransform(
            vqvae.image_size,
            config.resize_factor,
            config.random_crop,
            config.horizontal_flip,
            config.seed,
        )
        self.vqvae = vqvae.to(memory_format=self._memory_format())
        self.ema = (
            copy.deepcopy(self.vqvae).eval().requires_grad_(False).to(self.accelerator.device)
        )
        self.ema_updates = 0
        self.perceptual = self._make_perceptual(perceptual)
        self.tokenizer_pass = self.accelerator.prepare(TokenizerPass(self.vqvae))
        self.optimizers = {
            name: self.accelerator.prepare(optimizer)
            for name, optimizer in make_optimizers(self.vqvae, config).items()
        }
        self.adversary = (
            Adversary(config, self.accelerator) if config.adversarial_weight > 0 else None
        )
        quantizer = self.vqvae.quantizer
        self.window_counts = torch.zeros(
            quantizer.num_scales, quantizer.codebook.num_embeddings, dtype=torch.int64,
            device=self.accelerator.device,
        )  # fmt: skip
        self.step = 0  # finished steps
        self.skipped: set[str] = set()
        self.codebook_ready = config.model is not None and not config.refit_codebook

    # ------------------------------------------------------------------ making the parts

    def _open_run(self, output: str | Path) -> RunFolder:
        settings = {"kind": "tokenizer", **self.config.to_dict()}
        with self.accelerator.main_process_first():
            return RunFolder(
                output,
                settings,
                free=FREE_SETTINGS,
                keep=self.config.save_total_limit,
                complete=self.config.complete,
            )

    def _open_data(self) -> tuple[ImageDataset, ImageDataset]:
        config = self.config
        with self.accelerator.main_process_first():
            images = open_images(config.data, config.split, config.image_column)
            if config.validation is not None:
                validation = open_images(
                    config.validation, config.validation_split, config.image_column
                )
                return images, validation
        return hold_out(images, config.validation_images, config.seed)

    def _make_vqvae(self, start: MultiScaleVQVAE | None) -> MultiScaleVQVAE:
        if self.config.model is not None:
            loaded = load_vqvae(self.config.model) if start is None else copy.deepcopy(start)
            vqvae = loaded.train().requires_grad_(True)
            if self.config.decoder_only:
                for part in (vqvae.encoder, vqvae.quant_conv, vqvae.quantizer):
                    part.requires_grad_(False)
            return vqvae
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)  # every process starts from the same weights
            vqvae = MultiScaleVQVAE(**self.config.architecture)
            initialize_convolutions(vqvae)
        return vqvae.train()

    def _memory_format(self) -> torch.memory_format:
        """Channels last feeds a GPU's tensor cores; on a CPU group norms are slower for it."""
        on_gpu = self.accelerator.device.type == "cuda"
        return torch.channels_last if on_gpu else torch.contiguous_format

    def _make_perceptual(self, given: nn.Module | None) -> nn.Module | None:
        if given is None and self.config.perceptual is not None:
            given = load_perceptual(self.config.perceptual)
        return None if given is None else given.to(self.accelerator.device)

    # ------------------------------------------------------------------ the loop

    def train(self) -> dict[str, Any]:
        """Train from where the run stands to the end."""
        config, accelerator = self.config, self.accelerator
        self._resume()
        if self.step == 0:
            self._prepare_codebook()
            self._evaluate()
        log_every, evaluate_every, save_every = (
            steps_between(interval, config.max_steps)
            for interval in (config.logging_steps, config.eval_steps, config.save_steps)
        )
        started, first = time.monotonic(), self.step
        bar = tqdm(
            total=config.max_steps,
            initial=self.step,
            unit="step",
            disable=not accelerator.is_main_process,
        )
        for pixels, _, skipped in self._batches():
            losses, targets = self._train_step(normalize(pixels.to(accelerator.device)))
            self.step += 1
            bar.update()
            self._note_skipped(skipped)
            if self.step % log_every == 0 or self.step == 1:
                bar.set_postfix(loss=losses["loss"], l1=losses["l1"])
                speed = (self.step - first) * config.batch_size / (time.monotonic() - started)
                self._log(training=losses, images_per_second=round(speed, 1))
            self._revive_codes(targets)
            self._prepare_codebook()
            if self.step % evaluate_every == 0 and self.step < config.max_steps:
                self._evaluate()
            if self.step % save_every == 0 and self.step < config.max_steps:
                self._save_checkpoint()
        bar.close()
        if first < config.max_steps:
            self._evaluate()
            self._save_checkpoint()
        return self._finish()

    def _batches(self) -> Iterable[Any]:
        config, accelerator = self.config, self.accelerator
        sampler = StepSampler(
            len(self.images), config.batch_size, self.step, config.max_steps, config.seed,
            accelerator.process_index, accelerator.num_processes, self.images.blocks,
        )  # fmt: skip
        samples = TrainingSamples(self.images, self.transform, config.strict)
        return DataLoader(
            samples,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=config.dataloader_num_workers,
        )

    def _train_step(self, images: Tensor) -> tuple[dict[str, Any], list[Tensor]]:
        """One optimisation step on this process's share ``(B, 3, P, P)`` of the batch.

        Returns:
            Values for the log, and what each scale wanted to describe, S tensors ``(B, T, Z)``.
        """
        config, accelerator = self.config, self.accelerator
        images = images.contiguous(memory_format=self._memory_format())
        self._set_learning_rate()
        quantize = self.codebook_ready
        has_come = self.step >= config.adversarial_start
        adversary = self.adversary if has_come else None

        parts = images.chunk(config.gradient_accumulation_steps)
        sums: dict[str, Tensor] = {}
        counts = torch.zeros_like(self.window_counts)
        fakes, targets_of_parts = [], []
        for number, part in enumerate(parts):
            share = len(part) / len(images)
            # Gradients travel between the processes with the last part only.
            is_last = number + 1 == len(parts)
            with nullcontext() if is_last else accelerator.no_sync(self.tokenizer_pass):
                losses, token_maps, targets, fake = self._tokenizer_losses(
                    part, quantize, adversary
                )
                accelerator.backward(losses["loss"] * share)
            fakes.append(fake)
            targets_of_parts.append(targets)
            counts += count_codes(token_maps, counts.shape[1])
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() * share
        sums["grad_norm"] = accelerator.clip_grad_norm_(
            self.vqvae.parameters(), config.max_grad_norm
        )
        means = self._mean_over_processes(sums)
        self._check_finite(means)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self._update_ema()
        if adversary is not None:
            loss = adversary.learn(images, torch.cat(fakes))
            means |= self._mean_over_processes({"discriminator": loss})
        if quantize:
            counts = reduce(counts, "sum")
            self.window_counts += counts
            update_codebook_usage(self.vqvae, counts)
        values = {name: round(value, 6) for name, value in means.items()} | {
            "learning_rate": self.optimizers["adamw"].param_groups[0]["lr"],
            "quantized": quantize,
            "usage": CodebookUsage.from_counts(self.window_counts).fractions if quantize else None,
        }
        return values, [torch.cat(parts) for parts in zip(*targets_of_parts, strict=True)]

    def _tokenizer_losses(
        self, images: Tensor, quantize: bool, adversary: Adversary | None
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], Tensor]:
        config = self.config
        reconstruction, codebook, commitment, token_maps, targets = self.tokenizer_pass(
            images, quantize
        )
        difference = reconstruction - images
        l1, l2 = difference.abs().mean(), difference.square().mean()
        total = config.l1_weight * l1 + config.l2_weight * l2
        losses = {"l1": l1, "l2": l2, "codebook": codebook, "commitment": commitment}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(reconstruction, images).mean()
            total = total + config.perceptual_weight * losses["perceptual"]
        if adversary is not None:
            last_layer = self.vqvae.decoder.conv_out.weight
            loss, weight = adversary.judge(reconstruction, total, last_layer)
            losses |= {"adversarial": loss, "adaptive_weight": weight}
            total = total + config.adversarial_weight * weight * loss
        total = total + config.codebook_weight * (codebook + config.commitment_weight * commitment)
        return {"loss": total, **losses}, token_maps, targets, reconstruction.detach()

    def _mean_over_processes(self, values: dict[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([value.detach().double() for value in values.values()])
        return dict(zip(values, reduce(stacked, "mean").tolist(), strict=True))

    def _check_finite(self, losses: dict[str, float]) -> None:
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        if self.accelerator.scaler is not None and broken == ["grad_norm"]:
            return  # fp16: the scaler skips this step and scales less
        if broken:
            raise DivergedError(
                f"Step {self.step + 1}: {', '.join(broken)} became NaN or infinite. The last good "
                f"checkpoint is {self.run.latest_checkpoint() or 'none'}. Lower the learning rate "
                "or the adversarial weight, or clip harder (max_grad_norm), in a new run."
            )

    def _set_learning_rate(self) -> None:
        config = self.config
        factor = learning_rate_factor(
            self.step, config.max_steps, config.warmup_steps, 1 / max(1, config.warmup_steps),
            config.final_learning_rate, "cosine",
        )  # fmt: skip
        optimizers = list(self.optimizers.values())
        if self.adversary is not None:
            optimizers.append(self.adversary.optimizer)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

    # ------------------------------------------------------------------ averages and codebook

    @torch.no_grad()
    def _update_ema(self) -> None:
        # A young average forgets its start faster, or it would be the start for thousands of steps.
        decay = min(self.config.ema_decay, (1 + self.ema_updates) / (10 + self.ema_updates))
        self.ema_updates += 1
        averages, values = list(self.ema.parameters()), list(self.vqvae.parameters())
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in zip(self.ema.buffers(), self.vqvae.buffers(), strict=True):
            average.copy_(value)

    @torch.no_grad()
    def _prepare_codebook(self) -> None:
        """When the autoencoder's time is over: make the codebook from what the encoder produces.

        The averaged weights are the better autoencoder, so training goes on from them.
        """
        config = self.config
        if self.codebook_ready or self.step < config.autoencoder_steps:
            return
        if self.step > 0:
            self._evaluate()
        self.vqvae.load_state_dict(self.ema.state_dict())
        samples = TrainingSamples(self.images, self.transform, config.strict)
        features = gather_features(
            self.ema,
            samples,
            config.codebook_images,
            config.batch_size,
            config.seed,
            self.accelerator,
        )
        deviation = fold_feature_scale(self.vqvae, features)
        initialize_codebook(
            self.vqvae, features / deviation, torch.Generator().manual_seed(config.seed)
        )
        self.ema.load_state_dict(self.vqvae.state_dict())
        self.ema_updates = 0
        for optimizer in self.optimizers.values():
            optimizer.state.clear()  # its moments belong to another loss
        self.codebook_ready = True
        self._evaluate()

    @torch.no_grad()
    def _revive_codes(self, targets: list[Tensor]) -> None:
        every = self.config.revive_every
        if not self.codebook_ready or every == 0 or self.step % every:
            return
        if self.config.decoder_only:
            return
        gathered = [gather(vectors).flatten(0, 1) for vectors in targets]
        codebook = self.vqvae.quantizer.codebook.weight
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        moved = revive_dead_codes(
            codebook, self.window_counts, gathered, generator, self.config.revive_below
        )
        self.ema.quantizer.codebook.weight[moved] = codebook[moved]
        moments = self.optimizers["adamw"].state[codebook]
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name][moved] = 0.0
        usage = CodebookUsage.from_counts(self.window_counts)
        self._log(usage=vars(usage), revived=len(moved))
        self.window_counts.zero_()

    # ------------------------------------------------------------------ measuring

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Measure the averaged weights on the validation images; draw a grid of reconstructions."""
        config = self.config
        if self.accelerator.is_main_process:
            quantized = self.codebook_ready
            transform = ImageTransform(self.vqvae.image_size, config.resize_factor)
            values, grid = evaluate_tokenizer(
                self.ema, self.validation_images, transform, config.validation_images, quantized
            )
            self._log(evaluation=values)
            logger.info("step %d: %s", self.step, json.dumps(values))
            file = self.run.path / "reconstructions" / f"step-{self.step:08d}.png"
            with new_path(file, replace=True) as temporary:
                grid.save(temporary)
            if quantized:
                usage = CodebookUsage(
                    values["distinct_codes"], values["possible_codes"], values["perplexity"]
                )
                self._tell_collapse(usage)
        self.accelerator.wait_for_everyone()

    def _tell_collapse(self, usage: CodebookUsage) -> None:
        message = usage.describe_collapse(self.vqvae.quantizer.token_map_sizes)
        if message is not None:
            logger.warning("step %d: %s", self.step, message)
            self._log(warning=message)

    def _note_skipped(self, names: Iterable[str]) -> None:
        new = set(names) - self.skipped
        if new:
            self.skipped |= new
            logger.warning("%d unreadable images skipped so far", len(self.skipped))

    def _log(self, **values: Any) -> None:
        if self.accelerator.is_main_process:
            self.run.log(self.step, **values)

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            self.run.save_checkpoint(self.step, self._write_checkpoint)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, folder: Path) -> None:
        self.ema.save_pretrained(folder / "vqvae")
        save_file(_contiguous(self.vqvae.state_dict()), folder / "weights.safetensors")
        optimizers = {name: each.state_dict() for name, each in self.optimizers.items()}
        if self.adversary is not None:
            optimizers["adversary"] = self.adversary.save(folder)
        if self.accelerator.scaler is not None:
            optimizers["scaler"] = self.accelerator.scaler.state_dict()
        torch.save(optimizers, folder / "optimizers.pt")
        save_file({"window_counts": self.window_counts}, folder / "usage.safetensors")
        state = {
            "ema_updates": self.ema_updates,
            "codebook_ready": self.codebook_ready,
            "skipped": sorted(self.skipped),
        }
        (folder / "state.json").write_text(json.dumps(state), "utf-8")

    def _resume(self) -> None:
        folder, done = self.run.resume_point(self.config.max_steps)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run.rewind_log(done)
        self.accelerator.wait_for_everyone()
        if folder is None:
            return
        state = read_json(folder / "state.json")
        self.step, self.ema_updates = done, state["ema_updates"]
        self.codebook_ready, self.skipped = state["codebook_ready"], set(state["skipped"])
        self.vqvae.load_state_dict(load_file(folder / "weights.safetensors"))
        self.ema.load_state_dict(
            load_file(folder / "vqvae" / "diffusion_pytorch_model.safetensors")
        )
        optimizers = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizers[name])
        if self.adversary is not None:
            self.adversary.load(folder, optimizers["adversary"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(optimizers["scaler"])
        self.window_counts.copy_(load_file(folder / "usage.safetensors")["window_counts"])
        logger.info("continuing %s after step %d", self.run.path, self.step)

    def _finish(self) -> dict[str, Any]:
        final = self.run.path / "vqvae"
        if self.accelerator.is_main_process:
            with new_folder(final) as folder:
                self.ema.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        if not self._evaluations():  # somebody removed the log
            self._evaluate()
        evaluations = self._evaluations()
        return {
            "tokenizer": str(final),
            "steps": self.step,
            "skipped_images": len(self.skipped),
            "psnr_at_start": evaluations.get(0, {}).get("psnr"),
            **next(reversed(evaluations.values()), {}),
        }

    def _evaluations(self) -> dict[int, dict[str, Any]]:
        """The measurements in the log of the first process, by their step, in its order."""
        entries = (entry for entry in self.run.read_log() if "evaluation" in entry)
        found = [{entry["step"]: entry["evaluation"] for entry in entries}]
        return broadcast_object_list(found)[0]


def _contiguous(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the plain memory order that safetensors demands."""
    return {name: tensor.detach().contiguous() for name, tensor in state_dict.items()}
