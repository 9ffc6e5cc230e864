"""The part that all pipelines share: components, labels, settings, and the start of a call."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor

from var_hf.generation import (
    Controls,
    Generation,
    Generators,
    KeptTokens,
    ScheduledTokens,
    TokenChoice,
    TransformerSchedule,
    transformer_uses,
)
from var_hf.guidance import make_guidance
from var_hf.labels import Labels, label_ids, resolve_labels
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.checks import check_components
from var_hf.pipelines.hub import HubMixin
from var_hf.pipelines.streaming import CallbackControls
from var_hf.runner import EagerRunner, Runner
from var_hf.sampling_settings import SamplingSettings, fill_in_settings
from var_hf.scheduling_next_scale import NextScaleScheduler

Images: TypeAlias = list[Image.Image] | np.ndarray | Tensor


class NextScalePipeline(CallbackControls, HubMixin, DiffusionPipeline):
    r"""
    Base class of all pipelines for next-scale prediction.

    Args:
        transformer ([`VARModel`]): Predicts logits from the class and the coarser scales.
        vqvae ([`MultiScaleVQVAE`]): Decodes tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Draws tokens from logits; stores the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, with synonyms separated by commas.

    Raises:
        ValueError: Transformer and VQVAE do not belong together.
    """

    model_cpu_offload_seq = "transformer"
    # Used at every scale: moving it each time would cost more memory traffic than it saves.
    _exclude_from_cpu_offload = ["vqvae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: VARModel,
        vqvae: MultiScaleVQVAE,
        scheduler: NextScaleScheduler,
        id2label: dict[int, str] | dict[str, str] | None = None,
    ):
        super().__init__()
        self._set_up(vqvae, scheduler, id2label, transformer=transformer)

    def _set_up(
        self,
        vqvae: MultiScaleVQVAE,
        scheduler: NextScaleScheduler,
        id2label: dict[int, str] | dict[str, str] | None,
        **transformers: VARModel,
    ) -> None:
        for name, transformer in transformers.items():
            check_components(transformer, vqvae, name)
        self.register_modules(**transformers, vqvae=vqvae, scheduler=scheduler)
        self._transformer_names = tuple(transformers)
        # JSON turns the ids into strings.
        id2label = {int(key): name for key, name in (id2label or {}).items()}
        self.register_to_config(id2label=id2label)
        self.id2label = id2label
        self.image_processor = VaeImageProcessor(vae_scale_factor=vqvae.stride)
        self._runner: Runner = EagerRunner()
        self.controls = Controls(guidance_scale=1.0)

    @property
    def transformers(self) -> dict[str, VARModel]:
        """The transformers by the names of their components."""
        return {name: getattr(self, name) for name in self._transformer_names}

    # Labels and settings

    def get_label_ids(self, labels: str | Sequence[str]) -> list[int]:
        """Class ids of class names: entries of `id2label` or synonyms; case is ignored.

        Raises:
            ValueError: A name is unknown (close names are suggested) or belongs to several classes.
        """
        names = [labels] if isinstance(labels, str) else labels
        return label_ids(names, self.id2label, self.transformer.config.num_classes)

    def resolve_labels(self, class_labels: Labels | Tensor) -> list[int]:
        """Class ids of ids, names or `None`, one or many.

        Returns:
            One id per label; `num_classes` is the null class.

        Raises:
            ValueError: There is no label, an id is out of range, or a name is unknown or ambiguous.
        """
        return resolve_labels(class_labels, self.id2label, self.transformer.config.num_classes)

    def resolve_settings(self, **settings: Any) -> SamplingSettings:
        """Sampling settings; the scheduler's stored defaults take the place of absent ones and
        `None`.

        Args:
            **settings: Names and values as in [`SamplingSettings`].

        Raises:
            TypeError: There is no such setting.
            ValueError: A setting is out of range.
        """
        resolved = fill_in_settings(settings, self.scheduler.config)
        self.scheduler.check_settings(**vars(resolved))
        resolved.check_scales(self.num_timesteps)
        return resolved

    # Speed

    def compile(self, *, backend: str | Callable = "inductor", mode: str | None = None) -> None:
        """Compile generation: one graph per scale, and one for the decoder.

        The first call of every batch size or sampling setting takes minutes; later ones replay.
        Another `guidance_scale` compiles nothing. On a CUDA device the default mode records CUDA
        graphs. Tokens and images equal those of the uncompiled pipeline up to rounding. Compiling
        pays on a GPU only (docs/performance.md). Compiled code is not saved.

        Args:
            backend: As in `torch.compile`.
            mode: As in `torch.compile`; `None` is `"reduce-overhead"` on a CUDA device and
                `"default"` elsewhere.

        Raises:
            ValueError: torch cannot compile with this backend, or the weights are offloaded.
        """
        from var_hf.compiled import CompiledRunner, check_in_place

        check_in_place(**self.transformers, vqvae=self.vqvae)
        if self.precision == "int8":
            raise ValueError("A pipeline in int8 cannot be compiled. Load it again for compile().")
        runner = CompiledRunner(backend, mode, self._execution_device)
        self._runner = runner
        self.vqvae.decoder.compile(backend=backend, mode=runner.mode, dynamic=False)

    def enable_int8(self) -> None:
        """Compute the linear layers of the transformer's blocks in 8-bit integers, on a CPU.

        docs/performance.md states speed and error. On a device or processor without such a product,
        a warning says so and nothing changes. The float weights are released: from then on, all
        pipelines that share the transformer can neither save, train, compile nor move it.

        Raises:
            ValueError: The pipeline is compiled, or its weights are offloaded or quantized.
        """
        from var_hf.compiled import check_in_place
        from var_hf.int8 import convert_where_possible

        if self.is_compiled:
            raise ValueError("The pipeline is compiled. Call enable_int8() on one that is not.")
        check_in_place(**self.transformers)
        convert_where_possible(self.transformers.values(), self._execution_device)

    @property
    def precision(self) -> str:
        """Number format of the transformer: `"int8"` after `enable_int8`, else its dtype."""
        if self.transformer.is_int8:
            return "int8"
        return str(self.transformer.dtype).removeprefix("torch.")

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` was called."""
        return not isinstance(self._runner, EagerRunner)

    # Generation

    @property
    def num_timesteps(self) -> int:
        """Number of scales S, diffusers' steps."""
        return self.transformer.config.num_scales

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil") -> Images:
        """Images of latents ``(B, Z, F, F)``.

        Args:
            latents: As in `VARScaleOutput.latents`.
            output_type: As in [`VARPipeline`].
        """
        if output_type == "latent":
            return latents
        sample = self.vqvae.decode_latents(latents).sample.float()
        return self.image_processor.postprocess(sample, output_type=output_type)

    def schedule(self) -> TransformerSchedule:
        """The transformer of each scale in a new call."""
        return lambda scale: self.transformer

    def start(
        self,
        class_ids: Sequence[int],
        settings: SamplingSettings,
        generator: Generators,
        kept: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> Generation:
        """The state of a new call, for [`~generation.generate`].

        Args:
            class_ids: B ids in [0, num_classes]; `num_classes` is the null class.
            settings: Sampling settings.
            generator: One for the batch or one per image.
            kept: Token maps and masks of an edit; see [`KeptTokens`].
        """
        from var_hf.memory import check_memory

        quantizer = self.vqvae.quantizer
        null_class = self.transformer.config.num_classes
        guided = settings.num_guided_scales(quantizer.num_scales)
        if all(class_id == null_class for class_id in class_ids):
            guided = 0  # both predictions are the same
        schedule = self.schedule()
        check_memory(
            transformer_uses(schedule, quantizer.num_scales),
            self.vqvae.config,
            self._execution_device,
            len(class_ids),
            guided_scales=guided,
            held_bytes=self._runner.held_bytes,
        )
        choice: TokenChoice = ScheduledTokens(self.scheduler, quantizer, settings)
        if kept is not None:
            choice = KeptTokens(choice, quantizer, *kept)
        return Generation(
            transformers=schedule,
            guidance=make_guidance(
                self.scheduler, settings, quantizer.token_map_sizes, guided, self.vqvae.device
            ),
            choice=choice,
            quantizer=quantizer,
            run=self._runner.start(),
            controls=Controls(settings.guidance_scale),
            class_ids=torch.tensor(class_ids, device=self._execution_device),
            null_class=null_class,
            history=[quantizer.empty_latents(len(class_ids), self.vqvae.device)],
            generator=generator,
        )
