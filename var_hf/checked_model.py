"""Loading and pushing of a single model, with the checks of this package."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from torch import nn


class CheckedModel(nn.Module if TYPE_CHECKING else object):  # type: ignore[misc]
    """A model whose files are checked before and after transformers or diffusers loads them.

    Attributes:
        component: Name of its part of a pipeline: `"transformer"` or `"vqvae"`.
    """

    component: str

    @classmethod
    @abstractmethod
    def stored_shapes(cls, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return every tensor of a saved model with its shape, from its ``config.json``."""

    @classmethod
    def from_pretrained(
        cls, *args: Any, verify: bool = True, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a saved model, as in transformers and diffusers. Weights that do not match the
        config are refused.

        Args:
            *args: Folder or Hub repository.
            verify: Refuse a repository that holds a pickle or unlisted code, or whose weights do
                not match its ``provenance.json``. For folders, use `var-hf verify` instead.
            output_loading_info: Return a tuple of the model and the loading info.
            **kwargs: All other arguments of the library.

        Raises:
            HubError: The repository does not exist, may not be read, or is refused. An OSError.
            ValueError: A value of the config has a wrong type or is out of range; a tensor is
                missing, is unknown, has another shape, has an integer dtype, or holds NaN or
                infinity; or the weights are a pickle. The libraries alone would make up a missing
                tensor and only warn.
        """
        from .stored import check_component, check_loaded

        if verify:
            from .hub import verified_place

            kwargs = verified_place(args, kwargs)
        kwargs = check_component(cls.component, args, kwargs, cls.stored_shapes)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_loaded(cls.component, args, kwargs, cls.stored_shapes, model, info)
        return (model, info) if output_loading_info else model

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push only this model, in one commit. Arguments as in [`VARPipeline.push_to_hub`]."""
        from .hub import push_model

        return push_model(self, repo_id, **kwargs)
