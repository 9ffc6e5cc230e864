"""The loop over scales, and what else every pipeline of this package shares."""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers.cache_utils import Cache

from var_hf.configuration_var import VARConfig
from var_hf.conversion.class_names import imagenet_class_names
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.hub import HubMixin
from var_hf.pipelines.memory import check_memory
from var_hf.pipelines.static import StaticPath, check_compiler
from var_hf.scheduling_next_scale import NextScaleScheduler

Images = list[Image.Image] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator] | None
Labels = int | str | None | Sequence[int | str | None] | Tensor  # None is the null class
Callback: TypeAlias = (
    Callable[[DiffusionPipeline, int, int, dict], dict] | PipelineCallback | MultiPipelineCallbacks
)


@dataclass
class VARScaleOutput:
    """The state of a generation after one scale.

    Attributes:
        scale: Number of the scale, 0 is the coarsest.
        num_scales: Number of scales S.
        tokens: The tokens drawn, ``(B, T)``.
        logits: Guided logits before any filter, ``(B, T, V)``, float32.
        latents: Running sum of all scales so far, ``(B, Z, F, F)``, float32.
        image: With ``preview=True`` the pictures so far, in the form of `output_type`.
    """

    scale: int
    num_scales: int
    tokens: Tensor
    logits: Tensor
    latents: Tensor
    image: Images | None = None


@dataclass
class SamplingSettings:
    """How tokens are drawn, after the stored defaults have been filled in; see `NextScaleScheduler`."""

    guidance_scale: float
    top_k: int
    top_p: float
    sampling: str


@dataclass
class KeptTokens:
    """What an edit keeps of a picture.

    Attributes:
        token_maps: The picture's S token maps ``(B, T)``.
        masks: Where they are kept, S masks ``(B, T)`` or ``(1, T)``, True = keep.
    """

    token_maps: list[Tensor]
    masks: list[Tensor]


class NextScalePipeline(HubMixin, DiffusionPipeline):
    r"""
    What all pipelines over next-scale prediction share: labels, and the loop over scales.

    Args:
        transformer ([`VARModel`]): Class and coarser scales to logits.
        vqvae ([`MultiScaleVQVAE`]): Tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Logits to tokens; holds the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, synonyms separated by commas.

    Raises:
        ValueError: Transformer and VQVAE do not belong together.
    """

    model_cpu_offload_seq = "transformer"
    _exclude_from_cpu_offload = [
        "vqvae"
    ]  # used at every scale: moving it each time would cost more than it saves
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: VARModel,
        vqvae: MultiScaleVQVAE,
        scheduler: NextScaleScheduler,
        id2label: dict[int, str] | dict[str, str] | None = None,
    ):
        super().__init__()
        check_components(transformer, vqvae)
        self.register_modules(transformer=transformer, vqvae=vqvae, scheduler=scheduler)
        id2label = {
            int(key): name for key, name in (id2label or {}).items()
        }  # JSON turns the ids into strings
        self.register_to_config(id2label=id2label)
        self.id2label = id2label
        self.image_processor = VaeImageProcessor(vae_scale_factor=vqvae.stride)
        self._static_path: StaticPath | None = None

    # Loading

    @classmethod
    def from_original(
        cls,
        transformer_file: str | PathLike[str],
        vqvae_file: str | PathLike[str],
        **overrides: Any,
    ) -> Self:
        """Load the two files of the VAR release.

        Args:
            transformer_file: `var_d16.pth` or the like, or a trainer checkpoint.
            vqvae_file: `vae_ch160v4096z32.pth`, or a trainer checkpoint.
            **overrides: `id2label`, and config values that the tensors cannot tell (see
                [`VARModel.from_original`] and [`MultiScaleVQVAE.from_original`]).

        Raises:
            ValueError: A file is no checkpoint of its kind, the two do not belong together, or an override is unknown.
        """
        id2label = overrides.pop("id2label", None)
        of_transformer = {
            key: overrides.pop(key) for key in list(overrides) if hasattr(VARConfig, key)
        }
        of_vqvae_names = set(inspect.signature(MultiScaleVQVAE.__init__).parameters)
        of_vqvae = {key: overrides.pop(key) for key in list(overrides) if key in of_vqvae_names}
        if overrides:
            raise ValueError(
                f"Unknown override {', '.join(sorted(overrides))}: neither a transformer nor a VQVAE has it."
            )
        transformer = VARModel.from_original(transformer_file, **of_transformer)
        of_vqvae["token_map_sizes"] = transformer.config.token_map_sizes
        vqvae = MultiScaleVQVAE.from_original(vqvae_file, **of_vqvae)
        if id2label is None and transformer.config.num_classes == 1000:
            id2label = imagenet_class_names()
        return cls(transformer, vqvae, NextScaleScheduler(), id2label)

    @classmethod
    def from_pipe(cls, pipeline: "NextScalePipeline", **changes: Any) -> Self:
        """A pipeline of this class on the components of another one; the weights are shared, not copied.

        Args:
            pipeline: Any pipeline of this package.
            **changes: Components to replace, `id2label`, or `dtype`. diffusers' own `from_pipe` casts the shared
                weights to float32 unless told otherwise; here they stay as they are.

        Raises:
            TypeError: A change is not an argument of the pipeline.
            ValueError: Transformer and VQVAE do not belong together.
        """
        dtype = changes.pop("dtype", None)
        source = {**pipeline.components, "id2label": pipeline.id2label}
        shared = cls(**{**source, **changes})
        name = getattr(pipeline.config, "_name_or_path", None)
        if name is not None:
            shared.register_to_config(_name_or_path=name)
        return shared if dtype is None else shared.to(dtype=dtype)

    # Labels

    def get_label_ids(self, labels: str | Sequence[str]) -> list[int]:
        """Class ids of class names; capitals do not matter.

        A name is a whole entry of `id2label` or one of its synonyms.

        Raises:
            ValueError: A name is unknown (close ones are suggested) or stands for several classes.
        """
        entries: dict[str, list[int]] = {}
        synonyms: dict[str, list[int]] = {}
        for class_id, entry in self.id2label.items():
            entries.setdefault(entry.lower(), []).append(class_id)
            for name in entry.lower().split(","):
                synonyms.setdefault(name.strip(), []).append(class_id)
        return [
            self._label_id(name, entries, synonyms)
            for name in ([labels] if isinstance(labels, str) else labels)
        ]

    def _label_id(
        self, name: str, entries: dict[str, list[int]], synonyms: dict[str, list[int]]
    ) -> int:
        wanted = name.strip().lower()
        found = entries.get(wanted) or synonyms.get(wanted, [])
        if len(found) > 1:
            raise ValueError(
                f"{name!r} is the name of classes {found}. Pass the number of the one you mean."
            )
        if not self.id2label:
            raise ValueError(
                f"This model has no class names, so {name!r} means nothing to it. "
                f"Pass class ids from 0 to {self.transformer.config.num_classes - 1}."
            )
        if not found:
            close = difflib.get_close_matches(wanted, {**entries, **synonyms}, n=3)
            hint = (
                f" Did you mean {' or '.join(map(repr, close))}?"
                if close
                else " See pipe.id2label for all names."
            )
            raise ValueError(
                f"There is no class {name!r} among the {len(self.id2label)} known names.{hint}"
            )
        return found[0]

    def _class_ids(self, class_labels: int | str | Sequence[int | str] | Tensor) -> list[int]:
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.tolist()
        if isinstance(class_labels, int | str) or not isinstance(class_labels, Sequence):
            class_labels = [class_labels]
        if len(class_labels) == 0:
            raise ValueError("class_labels is empty. Pass at least one class id or name.")
        num_classes = self.transformer.config.num_classes
        ids = []
        for label in class_labels:
            if isinstance(label, str):
                ids += self.get_label_ids(label)
                continue
            try:
                class_id = operator.index(label)
            except TypeError:
                raise ValueError(
                    f"A class label is an id or a name. Got {label!r} ({type(label).__name__})."
                ) from None
            if isinstance(label, bool) or not 0 <= class_id < num_classes:
                raise ValueError(
                    f"Class ids lie in [0, {num_classes - 1}] for this model. Got {label!r}."
                )
            ids.append(class_id)
        return ids

    def _class_ids_or_null(self, class_labels: Labels) -> list[int]:
        """Class ids, `num_classes` (the null class) where a label is `None`."""
        if class_labels is None:
            return [self.transformer.config.num_classes]
        if not isinstance(class_labels, list | tuple) or not class_labels:
            return self._class_ids(class_labels)  # type: ignore[arg-type]  # None is not among them
        return [
            self.transformer.config.num_classes if label is None else self._class_ids(label)[0]
            for label in class_labels
        ]

    @torch.no_grad()
    def _encode(self, images: Tensor) -> list[Tensor]:
        """Token maps, S times ``(B, T)``, of images ``(B, 3, P, P)`` in [0, 1]."""
        return self.vqvae.encode(images.to(self.vqvae.device) * 2 - 1).token_maps

    # Speed

    def compile(self, *, backend: str | Callable = "inductor", mode: str | None = None) -> None:
        """Compile generation: one graph per scale with transformer, guidance and drawing, and one for the decoder.

        The first call of every batch size then takes minutes, the following ones replay. Between the scales nothing waits
        for the device; on a CUDA device the default mode records CUDA graphs, over a cache whose memory is kept from call
        to call. Tokens and images are those of the uncompiled pipeline up to rounding. Worth it on a GPU; on a CPU the
        libraries' own kernels are as fast (docs/performance.md).

        Another batch size, `top_k`, `top_p` or `sampling` is compiled at its first use, `guidance_scale` is free to
        change. Nothing of it is saved.

        Args:
            backend: Of `torch.compile`.
            mode: Of `torch.compile`; `None` is `"reduce-overhead"` on a CUDA device and `"default"` elsewhere.

        Raises:
            ValueError: torch cannot compile with this backend, or the weights are offloaded: they have to stay in place.
        """
        check_compiler(backend)
        offloaded = [
            name
            for name in ("transformer", "vqvae")
            for module in getattr(self, name).modules()
            if hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
        ]
        if offloaded:
            raise ValueError(
                f"The weights of the {offloaded[0]} are offloaded, and compiled code needs them in place. "
                "Call compile() on a pipeline without offloading."
            )
        if mode is None and backend == "inductor" and self._execution_device.type == "cuda":
            mode = "reduce-overhead"
        self._static_path = StaticPath(draw_scale, backend, mode)
        self.vqvae.decoder.compile(backend=backend, mode=mode, dynamic=False)

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._static_path is not None

    # Generation

    @property
    def guidance_scale(self) -> float:
        """Guidance at the finest scale of the running call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of scales S, diffusers' steps."""
        return self.transformer.config.num_scales

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt` in a callback to stop after the current scale."""
        return self._interrupt

    def _check_generator(self, generator: Generators, batch_size: int) -> None:
        generators = (
            generator if isinstance(generator, list) else [generator] * (generator is not None)
        )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"generator is a list of {len(generator)} for {batch_size} images. "
                "Pass one generator for all or one per image (labels times num_images_per_prompt)."
            )
        device = self._execution_device
        for one in generators:
            if not isinstance(one, torch.Generator):
                raise ValueError(
                    f"generator must be a torch.Generator or a list of them. Got {type(one).__name__}."
                )
            if one.device.type not in ("cpu", device.type):
                raise ValueError(
                    f"The generator lives on {one.device} but the model on {device}. "
                    f"Use torch.Generator() (CPU; works everywhere) or torch.Generator({device.type!r})."
                )

    def _check_num_images(self, num_images_per_prompt: int) -> None:
        if num_images_per_prompt < 1:
            raise ValueError(
                f"num_images_per_prompt must be at least 1. Got {num_images_per_prompt}."
            )

    def _check_guided_scales(self, guided_scales: int | None) -> None:
        if guided_scales is not None and not 0 <= guided_scales <= self.num_timesteps:
            raise ValueError(
                f"guided_scales counts scales from the coarsest, from 0 to {self.num_timesteps} for this model. "
                f"Got {guided_scales}."
            )

    def _settings(
        self,
        guidance_scale: float | None,
        top_k: int | None,
        top_p: float | None,
        sampling: str | None,
    ) -> SamplingSettings:
        defaults = self.scheduler.config
        settings = SamplingSettings(
            guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
            top_k=defaults.top_k if top_k is None else top_k,
            top_p=defaults.top_p if top_p is None else top_p,
            sampling=defaults.sampling if sampling is None else sampling,
        )
        self.scheduler.check_settings(
            settings.guidance_scale, settings.top_k, settings.top_p, settings.sampling
        )
        return settings

    def _check_output(
        self,
        output_type: str,
        callback_on_step_end: Callback | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> Sequence[str]:
        """Check what comes out on the way and at the end; returns the names of the callback's tensors."""
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(
                f"output_type must be 'pil', 'np', 'pt' or 'latent'. Got {output_type!r}."
            )
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may hold {self._callback_tensor_inputs}. "
                f"Got {sorted(unknown)}."
            )
        return callback_on_step_end_tensor_inputs

    @torch.no_grad()
    def _generate(
        self,
        class_ids: Sequence[int],
        settings: SamplingSettings,
        generator: Generators,
        output_type: str,
        callback_on_step_end: Callback | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
        preview: bool,
        kept: KeptTokens | None = None,
        guided_scales: int | None = None,
    ) -> Iterator[VARScaleOutput]:
        """Draw the scales one after the other; the only place where that happens.

        Args:
            class_ids: B ids in [0, num_classes]; `num_classes` is the null class.
            settings: How tokens are drawn.
            generator: One for the batch or one per image.
            output_type: Form of the previews.
            callback_on_step_end: Called after every scale.
            callback_on_step_end_tensor_inputs: Names of the tensors it gets.
            preview: Decode the pictures after every scale.
            kept: Tokens to keep instead of the drawn ones, for editing.
            guided_scales: How many scales are guided, counted from the coarsest; all by default.
        """
        self._guidance_scale = settings.guidance_scale
        self._interrupt = False
        transformer, quantizer = self.transformer, self.vqvae.quantizer
        num_scales, batch_size = quantizer.num_scales, len(class_ids)
        guided_scales = num_scales if guided_scales is None else guided_scales
        guided = settings.guidance_scale > 1 and guided_scales > 0
        device = self._execution_device
        check_memory(
            transformer, self.vqvae.config, device, batch_size, guided_scales if guided else 0
        )
        labels = torch.tensor(class_ids, device=device)  # (B,)
        if guided:
            no_class = torch.full_like(labels, transformer.config.num_classes)
            labels = torch.cat([labels, no_class])  # (2B,)
        latents = quantizer.empty_latents(batch_size, self.vqvae.device)  # (B, Z, F, F)
        static = self._static_path
        cache = (
            transformer.new_cache() if static is None else static.cache(transformer, len(labels))
        )
        generation = None if static is None else static.generation
        all_finite = []  # one per scale

        try:
            with self.progress_bar(total=num_scales) as progress_bar:
                for scale in range(num_scales):
                    if guided and scale == guided_scales:
                        labels, guided = labels[:batch_size], False
                        cache.keep_rows(batch_size)
                    like = latents.new_empty(()).expand(
                        batch_size, quantizer.token_map_sizes[scale] ** 2, quantizer.num_codes
                    )
                    noise = self.scheduler.noise(like, settings.sampling, generator)
                    guidance_scale: float | Tensor | None = self._guidance_scale if guided else None
                    if static is not None:
                        static.check_generation(generation)
                        if guided:
                            # A number would become part of the compiled code, and another one compile it again.
                            guidance_scale = latents.new_full((), self._guidance_scale)
                    draw = draw_scale if static is None else static.draw_scale(scale)
                    tokens, logits, latents, finite = draw(
                        transformer,
                        quantizer,
                        self.scheduler,
                        cache,
                        scale,
                        labels,
                        latents,
                        guidance_scale,
                        noise,
                        settings.top_k,
                        settings.top_p,
                        settings.sampling,
                        None if kept is None else kept.masks[scale],
                        None if kept is None else kept.token_maps[scale],
                    )
                    if static is not None:
                        # CUDA graphs write the next result over this one.
                        tokens, logits, latents = tokens.clone(), logits.clone(), latents.clone()
                    all_finite.append(finite if static is None else finite.clone())
                    # A compiled path is to wait for the device only once, at the end.
                    if static is None or scale == num_scales - 1:
                        check_finite(all_finite, transformer.dtype)

                    if callback_on_step_end is not None:
                        tensors = {}
                        for name in callback_on_step_end_tensor_inputs:
                            tensors[name] = {"latents": latents}[name]
                        changed = callback_on_step_end(self, scale, scale, tensors)
                        latents = changed.pop("latents", latents)
                    progress_bar.update()
                    image = self._to_images(latents, output_type) if preview else None
                    yield VARScaleOutput(scale, num_scales, tokens, logits, latents, image)
                    if self._interrupt:
                        return
        finally:
            self.maybe_free_model_hooks()

    @torch.no_grad()
    def _to_images(self, latents: Tensor, output_type: str) -> Images:
        if output_type == "latent":
            return latents
        sample = self.vqvae.decode_latents(latents).sample.float()
        return self.image_processor.postprocess(sample, output_type=output_type)


def draw_scale(
    transformer: VARModel,
    quantizer: Any,
    scheduler: NextScaleScheduler,
    cache: Cache,
    scale: int,
    labels: Tensor,
    latents: Tensor,
    guidance_scale: float | Tensor | None,
    noise: tuple[Tensor, ...],
    top_k: int,
    top_p: float,
    sampling: str,
    kept_mask: Tensor | None,
    kept_tokens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One scale, from the latents so far to those with its tokens: what `_generate` repeats, and the compiler compiles.

    It depends on nothing but its arguments, and changes nothing but the cache.

    Args:
        transformer, quantizer, scheduler: The pipeline's.
        cache: What the transformer knows of the coarser scales.
        scale: Number of the scale.
        labels: ``(B,)``, or ``(2B,)`` where guided: the null class of every image follows all classes.
        latents: Running sum of the coarser scales, ``(B, Z, F, F)``.
        guidance_scale: Guidance at the finest scale; `None` is none.
        noise: What `NextScaleScheduler.noise` drew.
        top_k, top_p, sampling: How tokens are drawn.
        kept_mask: Where tokens are kept, ``(B, T)`` or ``(1, T)``, True = keep.
        kept_tokens: The tokens to keep, ``(B, T)``.

    Returns:
        Tokens ``(B, T)``, guided logits ``(B, T, V)``, the new latents, and whether all logits were finite, ``()``.
    """
    progress = scale / (quantizer.num_scales - 1)
    latent_inputs = None  # the coarsest scale is predicted from the class alone
    if scale > 0:
        # The picture so far, on the grid of this scale, is the question.
        latent_inputs = quantizer.shrink(latents, scale).to(labels.device)  # (B, T, Z)
        latent_inputs = latent_inputs.repeat(len(labels) // len(latents), 1, 1)
    output = transformer(labels, latent_inputs, past_key_values=cache)
    logits = output.logits.to(latents.device)  # (B or 2B, T, V)
    if guidance_scale is not None:
        conditional, unconditional = logits.chunk(2)
        logits = scheduler.guide(conditional, unconditional, progress, guidance_scale)  # (B, T, V)

    tokens, code_weights = scheduler.step(
        logits,
        progress,
        top_k=top_k,
        top_p=top_p,
        sampling=sampling,
        noise=noise,
        return_dict=False,
    )  # (B, T)
    if code_weights is None:
        codes = quantizer.codes(tokens)  # (B, T, Z)
    else:
        codes = code_weights @ quantizer.codebook.weight.float()
    if kept_mask is not None and kept_tokens is not None:
        tokens = torch.where(kept_mask, kept_tokens, tokens)
        codes = torch.where(kept_mask[..., None], quantizer.codes(kept_tokens), codes)
    latents = latents + quantizer.expand(codes, scale)
    return tokens, logits, latents, logits.sum().isfinite()


def check_finite(all_finite: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise a ``ValueError`` for the first scale whose logits were not finite; given one ``()`` per scale."""
    if not torch.stack(list(all_finite)).all():
        scale = [bool(finite) for finite in all_finite].index(False)
        advice = "Load the pipeline in bfloat16" if dtype == torch.float16 else "Check the weights"
        raise ValueError(
            f"The transformer's logits at scale {scale} are not finite, computed in {dtype}. {advice}."
        )


def check_components(transformer: VARModel, vqvae: MultiScaleVQVAE) -> None:
    """Raise a ``ValueError`` unless the transformer predicts the tokens of this VQVAE."""
    ours, theirs = transformer.config, vqvae.config
    for what, of_transformer, of_vqvae in (
        ("codes (vocab_size, codebook_size)", ours.vocab_size, theirs.codebook_size),
        ("latent channels (latent_channels)", ours.latent_channels, theirs.latent_channels),
        (
            "token map sizes (token_map_sizes)",
            tuple(ours.token_map_sizes),
            tuple(theirs.token_map_sizes),
        ),
    ):
        if of_transformer != of_vqvae:
            raise ValueError(
                f"Transformer and VQVAE do not belong together: they differ in {what}, the transformer has "
                f"{of_transformer} and the VQVAE {of_vqvae}. Load both from one checkpoint."
            )
