"""Collaborative decoding: a large model drafts the coarse scales, a small one refines the rest.

Source: arXiv 2411.17787 (CoDe).
"""

import os
from numbers import Integral
from typing import Any, NoReturn, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from var_hf.generation import TransformerSchedule
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.base import NextScalePipeline
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.pipelines.pipeline_var_img2img import VARImg2ImgPipeline
from var_hf.pipelines.pipeline_var_inpaint import VARInpaintPipeline
from var_hf.scheduling_next_scale import NextScaleScheduler

# Arguments of `from_pretrained` that hold for the refiner as well.
_OF_REFINER = ("cache_dir", "device_map", "force_download", "local_files_only", "token")


class CollaborativePipeline(NextScalePipeline):
    r"""
    Base class of the pipelines with two transformers.

    Args:
        drafter, refiner, vqvae, scheduler, id2label, draft_scales: As in
            [`VARCollaborativePipeline`].

    Raises:
        ValueError: The two transformers and the VQVAE do not belong together, or there are fewer
            scales than `draft_scales`.
    """

    model_cpu_offload_seq = "drafter->refiner"

    def __init__(
        self,
        drafter: VARModel,
        refiner: VARModel,
        vqvae: MultiScaleVQVAE,
        scheduler: NextScaleScheduler,
        id2label: dict[int, str] | dict[str, str] | None = None,
        draft_scales: int | None = None,
    ):
        DiffusionPipeline.__init__(self)
        check_pair(drafter, refiner)
        self._set_up(vqvae, scheduler, id2label, drafter=drafter, refiner=refiner)
        self.draft_scales = drafter.config.num_scales - 2 if draft_scales is None else draft_scales

    @property
    def draft_scales(self) -> int:
        """Number of scales that the drafter predicts, from the coarsest. It is saved with the
        pipeline, and a new value holds from the next call on.

        Raises:
            ValueError: A new value is no number of scales of this model.
        """
        return self.config.draft_scales

    @draft_scales.setter
    def draft_scales(self, draft_scales: int) -> None:
        check_draft_scales(draft_scales, self.num_timesteps)
        self.register_to_config(draft_scales=draft_scales)

    @property
    def transformer(self) -> VARModel:
        """The drafter. Classes, scales and codes of both transformers are the same."""
        return self.drafter

    def schedule(self) -> TransformerSchedule:
        """The transformer of each scale in a new call."""
        drafter, refiner, draft_scales = self.drafter, self.refiner, self.draft_scales
        return lambda scale: drafter if scale < draft_scales else refiner

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        refiner: VARModel | str | os.PathLike[str] | None = None,
        verify: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a collaborative pipeline, or put one together from two plain pipelines.

        Args:
            pretrained_model_name_or_path: Folder or repository of a collaborative pipeline. With
                `refiner`, that of a plain pipeline, whose transformer becomes the drafter.
            refiner: The refiner, or the folder or repository of a plain pipeline that contains it.
            verify: As in [`VARPipeline.from_pretrained`].
            **kwargs: Those of [`VARPipeline.from_pretrained`], and `draft_scales`.

        Raises:
            HubError: As in [`VARPipeline.from_pretrained`].
            ValueError: A bad name, another kind of model, or two models that do not belong
                together.
        """
        from var_hf.hub.files import COLLABORATIVE, check_model, kind_of, read_index

        name = os.fspath(pretrained_model_name_or_path)
        if refiner is None:
            return super().from_pretrained(name, verify=verify, **kwargs)
        if not isinstance(refiner, VARModel):
            check_model(os.fspath(refiner))
            options = {key: kwargs[key] for key in _OF_REFINER if key in kwargs}
            dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32
            refiner = VARModel.from_pretrained(
                refiner, subfolder="transformer", verify=verify, dtype=dtype, **options
            )
        folder = name if os.path.isdir(name) else cls.download(name, verify=verify, **kwargs)
        if kind_of(read_index(folder)) is COLLABORATIVE:
            return super().from_pretrained(name, verify=verify, refiner=refiner, **kwargs)
        own = {key: kwargs.pop(key) for key in ("drafter", "draft_scales") if key in kwargs}
        plain = VARPipeline.from_pretrained(name, verify=verify, **kwargs)
        return cls.from_pipe(plain, refiner=refiner, **own)

    @classmethod
    def from_original(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: each of the two models is converted by itself.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Convert drafter and refiner one by one (var-hf convert), then load "
            f"{cls.__name__}.from_pretrained(drafter_folder, refiner=refiner_folder)."
        )

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> Self:
        """Build a pipeline of this class on the components of another one; both share the weights.

        Args:
            pipeline: Any pipeline of this package. The transformer of a plain one becomes the
                drafter.
            **changes: `refiner` if the pipeline is a plain one, components to replace, `id2label`,
                `draft_scales`, or `dtype`.

        Raises:
            TypeError: There is no refiner, or a change is not an argument of the pipeline.
            ValueError: The two transformers and the VQVAE do not belong together.
        """
        if not isinstance(pipeline, CollaborativePipeline):
            changes = {"drafter": pipeline.transformer, **changes}
        return super().from_pipe(pipeline, **changes)


def pair_settings(pipe: NextScalePipeline) -> dict[str, Any]:
    """What a record of images adds for two transformers: `draft_scales`."""
    return {"draft_scales": pipe.draft_scales} if isinstance(pipe, CollaborativePipeline) else {}


class VARCollaborativePipeline(CollaborativePipeline, VARPipeline):
    r"""
    Draws images of a class with two transformers: one drafts the coarse scales, one refines them.

    The last two of ten scales hold 62% of the tokens. The authors of the method found that a small
    model predicts them as well as a large one. The refiner reads the drafted scales in one pass.
    The loop then continues as in [`VARPipeline`], whose arguments apply here too.

    Args:
        drafter ([`VARModel`]): Predicts the first `draft_scales` scales; usually the larger model.
        refiner ([`VARModel`]): Reads those in one pass and predicts the others.
        vqvae ([`MultiScaleVQVAE`]): Decodes tokens to pixels.
        scheduler ([`NextScaleScheduler`]): Draws tokens from logits; stores the sampling defaults.
        id2label (`dict[int, str]`, *optional*): Class names, with synonyms separated by commas.
        draft_scales (`int`, *optional*):
            Number of scales that the drafter predicts, in [0, S]: 0 is the refiner alone, S the
            drafter alone. `None` is all scales but the last two, which is 8 of 10 in the paper.

    Raises:
        ValueError: The two transformers and the VQVAE do not belong together, or `draft_scales` is
            no number of scales of this model.

    Examples:
        ```py
        >>> from var_hf import VARCollaborativePipeline

        >>> pipe = VARCollaborativePipeline.from_pretrained(
        ...     "var-d30-256", refiner="var-d16-256", draft_scales=8
        ... )
        >>> image = pipe("golden retriever").images[0]
        >>> pipe.save_pretrained("var-d30-d16-256")
        ```

    Source: arXiv 2411.17787.
    """

    def log_likelihood(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a likelihood is that of one transformer.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Likelihoods and classification take one transformer. Measure one of the two: "
            "VARPipeline(pipe.refiner, pipe.vqvae, pipe.scheduler, pipe.id2label)."
        )

    classify = surprise_maps = log_likelihood


class VARCollaborativeImg2ImgPipeline(CollaborativePipeline, VARImg2ImgPipeline):
    r"""
    Draws variations of an image with two transformers; arguments as in [`VARImg2ImgPipeline`].

    `VARCollaborativeImg2ImgPipeline.from_pipe(pipe)` shares the weights of another pipeline.

    Args:
        drafter, refiner, vqvae, scheduler, id2label, draft_scales: As in
            [`VARCollaborativePipeline`].
    """


class VARCollaborativeInpaintPipeline(CollaborativePipeline, VARInpaintPipeline):
    r"""
    Redraws a part of an image with two transformers; arguments as in [`VARInpaintPipeline`].

    `VARCollaborativeInpaintPipeline.from_pipe(pipe)` shares the weights of another pipeline.

    Args:
        drafter, refiner, vqvae, scheduler, id2label, draft_scales: As in
            [`VARCollaborativePipeline`].
    """


def edit_classes(
    pipe: NextScalePipeline,
) -> tuple[type[VARImg2ImgPipeline], type[VARInpaintPipeline]]:
    """The pipelines for variations and for redrawing a part that fit a pipeline's components."""
    if isinstance(pipe, CollaborativePipeline):
        return VARCollaborativeImg2ImgPipeline, VARCollaborativeInpaintPipeline
    return VARImg2ImgPipeline, VARInpaintPipeline


def check_pair(drafter: VARModel, refiner: VARModel) -> None:
    """Raise unless two transformers predict the same tokens of the same classes."""
    for name in ("token_map_sizes", "vocab_size", "latent_channels", "num_classes"):
        of_drafter, of_refiner = getattr(drafter.config, name), getattr(refiner.config, name)
        if of_drafter != of_refiner:
            raise ValueError(
                f"Drafter and refiner do not belong together: they differ in {name}, the drafter "
                f"has {of_drafter} and the refiner {of_refiner}. Use two models that were trained "
                "with one VQVAE on the same classes."
            )


def check_draft_scales(draft_scales: int, num_scales: int) -> None:
    """Raise unless a value is a number of scales."""
    is_whole = isinstance(draft_scales, Integral) and not isinstance(draft_scales, bool)
    if not (is_whole and 0 <= draft_scales <= num_scales):
        raise ValueError(
            f"draft_scales must be a whole number from 0 (the refiner alone) to {num_scales}, the "
            f"number of scales of this model (the drafter alone). Got {draft_scales!r}."
        )
