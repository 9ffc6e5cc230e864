"""Class labels to images."""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from var_hf.configuration_var import VARConfig
from var_hf.conversion.class_names import imagenet_class_names
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.scheduling_next_scale import NextScaleScheduler

Images = list[Image.Image] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator] | None
Callback = (
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


class VARPipeline(DiffusionPipeline):
    r"""
    Draws images of a class, coarse to fine, in one transformer pass per scale.

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
    _component_classes = {
        "transformer": VARModel,
        "vqvae": MultiScaleVQVAE,
        "scheduler": NextScaleScheduler,
    }

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

    # Loading

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path,
        return_unused_kwargs=False,
        return_commit_hash=False,
        **kwargs,
    ):
        """Read `model_index.json`; whatever code a repository carries, the installed classes load it."""
        loaded = super().load_config(
            pretrained_model_name_or_path,
            return_unused_kwargs=return_unused_kwargs,
            return_commit_hash=return_commit_hash,
            **kwargs,
        )
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config["_class_name"] = cls.__name__
        for name, component in cls._component_classes.items():
            config[name] = [component.__module__, component.__name__]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Fetch a pipeline repository from the Hub and return its folder.

        diffusers' own `download` refuses components that are defined outside diffusers and transformers.
        """
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return snapshot_download(
            pretrained_model_name,
            allow_patterns=["*.json", "*/*.json", "*/*.safetensors"],
            ignore_patterns=None
            if kwargs.get("variant")
            else ["*/*.*.safetensors", "*/*.index.*.json"],
            **options,
        )

    @classmethod
    def from_original(cls, transformer_file, vqvae_file, **overrides) -> "VARPipeline":
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

    @torch.no_grad()
    def stream(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        preview: bool = False,
    ) -> Iterator[VARScaleOutput]:
        """Generate scale by scale; arguments as in [`~VARPipeline.__call__`].

        Args:
            preview: Decode the pictures after every scale into `image`, at full size. Decoding takes as long as
                several scales.

        Yields:
            A [`VARScaleOutput`] after each of the S scales.
        """
        defaults = self.scheduler.config
        guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        top_k = defaults.top_k if top_k is None else top_k
        top_p = defaults.top_p if top_p is None else top_p
        sampling = defaults.sampling if sampling is None else sampling
        self.scheduler.check_settings(guidance_scale, top_k, top_p, sampling)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(
                f"output_type must be 'pil', 'np', 'pt' or 'latent'. Got {output_type!r}."
            )
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may hold {self._callback_tensor_inputs}. Got {sorted(unknown)}."
            )
        if num_images_per_prompt < 1:
            raise ValueError(
                f"num_images_per_prompt must be at least 1. Got {num_images_per_prompt}."
            )
        class_ids = [i for i in self._class_ids(class_labels) for _ in range(num_images_per_prompt)]
        batch_size = len(class_ids)
        self._check_generator(generator, batch_size)

        self._guidance_scale = guidance_scale
        self._interrupt = False
        transformer, quantizer = self.transformer, self.vqvae.quantizer
        device = self._execution_device
        labels = torch.tensor(class_ids, device=device)  # (B,)
        guided = guidance_scale > 1
        if guided:
            labels = torch.cat(
                [labels, torch.full_like(labels, transformer.config.num_classes)]
            )  # (2B,)
        latents = quantizer.empty_latents(batch_size, self.vqvae.device)  # (B, Z, F, F)
        latent_inputs = None  # the coarsest scale is predicted from the class alone
        cache = DynamicCache()
        num_scales = quantizer.num_scales

        try:
            with self.progress_bar(total=num_scales) as progress_bar:
                for scale in range(num_scales):
                    progress = scale / (num_scales - 1)
                    logits = transformer(
                        labels, latent_inputs, past_key_values=cache
                    ).logits  # (B or 2B, T, V)
                    logits = logits.to(latents.device)
                    if guided:
                        logits = self.scheduler.guide(
                            *logits.chunk(2), progress, self._guidance_scale
                        )  # (B, T, V)

                    drawn = self.scheduler.step(
                        logits,
                        progress,
                        top_k=top_k,
                        top_p=top_p,
                        sampling=sampling,
                        generator=generator,
                    )
                    if drawn.code_weights is not None:
                        codes = drawn.code_weights @ quantizer.codebook.weight.float()  # (B, T, Z)
                    else:
                        codes = quantizer.codes(drawn.tokens)
                    latents = latents + quantizer.expand(codes, scale)

                    if callback_on_step_end is not None:
                        available = {"latents": latents}
                        tensors = {
                            name: available[name] for name in callback_on_step_end_tensor_inputs
                        }
                        latents = callback_on_step_end(self, scale, scale, tensors).pop(
                            "latents", latents
                        )
                    progress_bar.update()
                    image = self._to_images(latents, output_type) if preview else None
                    yield VARScaleOutput(scale, num_scales, drawn.tokens, logits, latents, image)
                    if self._interrupt:
                        return

                    # The picture so far, on the next grid, is the next question.
                    if scale + 1 < num_scales:
                        latent_inputs = quantizer.shrink(latents, scale + 1).to(
                            device
                        )  # (B, T', Z)
                        if guided:
                            latent_inputs = latent_inputs.repeat(2, 1, 1)
        finally:
            self.maybe_free_model_hooks()

    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        sampling: str | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Images]:
        r"""
        Generate images of the given classes, one transformer pass per scale (10 at 256 px).

        Args:
            class_labels (`int`, `str` or a list of them):
                Class ids in [0, num_classes) or class names, one or many.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance at the finest scale; no unit. 1.0 (or less) is off and halves the work. It
                rises linearly from 1.0 at the coarsest scale. The VAR release counts from zero: its `cfg=1.5` is
                2.5 here.
            top_k (`int`, *optional*): Draw each token from its k likeliest codes; 0 is off.
            top_p (`float`, *optional*):
                Draw each token from the likeliest codes that together reach this probability; 1.0 is off.
            sampling (`str`, *optional*):
                `"multinomial"`, or `"gumbel_softmax"`, the release's `more_smooth`: smoother pictures, not for FID.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Images per label.
            generator (`torch.Generator` or a list of them, *optional*):
                One generator serves the whole batch and, for a seed, gives the images of the release. One per image
                makes each image independent of its batch mates, up to float rounding. A CPU generator works with a
                model on any device.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`; `"np"`, float32 `(B, P, P, 3)` in [0, 1]; `"pt"`, `(B, 3, P, P)` in [0, 1]; or `"latent"`,
                `(B, Z, F, F)` before the decoder.
            return_dict (`bool`, *optional*, defaults to `True`):
                Return an [`~pipelines.ImagePipelineOutput`], else a tuple with the images.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, scale, scale, tensors)` after every scale; returns a dict whose `latents`
                replace the current ones.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Tensors the callback gets: `latents`.

        `guidance_scale`, `top_k`, `top_p` and `sampling` default to what the checkpoint's scheduler stores; the
        published checkpoints are converted with 2.5, 900, 0.96 and `"multinomial"`, the release's FID settings.

        Returns:
            The images in the order of the labels.

        Raises:
            ValueError: An unknown class, or an argument out of range.

        Examples:
            ```py
            >>> import torch
            >>> from var_hf import VARPipeline

            >>> pipe = VARPipeline.from_pretrained("var-d16-256", dtype=torch.bfloat16).to("cuda")
            >>> images = pipe(["golden retriever", 207], generator=torch.Generator().manual_seed(0)).images
            ```

        Source: arXiv 2404.02905, section 3.2.
        """
        for output in self.stream(
            class_labels,
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            sampling=sampling,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        ):
            latents = output.latents
        images = self._to_images(latents, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def _to_images(self, latents: Tensor, output_type: str) -> Images:
        if output_type == "latent":
            return latents
        sample = self.vqvae.decode_latents(latents).sample.float()
        return self.image_processor.postprocess(sample, output_type=output_type)


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
