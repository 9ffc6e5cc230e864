"""Loading and saving pipelines: folders, the Hub, original checkpoints, other pipelines."""

import inspect
import os
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import CommitInfo
from transformers.utils import logging

# The Hub, conversion and their models are imported where they are used: drawing an image needs none
# of them.

logger = logging.get_logger(__name__)

# Arguments that locate the files; the others determine how they are loaded.
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class HubMixin(DiffusionPipeline if TYPE_CHECKING else object):  # type: ignore[misc]
    """Loading and saving for pipelines whose components are defined outside diffusers and
    transformers.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        verify: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline folder or a repository on the Hub, with the installed classes.

        Args:
            pretrained_model_name_or_path: Folder, or repository such as ``"user/var-d16-256"``.
            verify: Refuse a repository that holds a pickle or unlisted code, or whose weights are
                not those of its ``provenance.json``. Folders are not checked; `var-hf verify` does
                that.
            **kwargs: Those of `DiffusionPipeline.from_pretrained`, among them `dtype` (float32 by
                default, whatever is stored), `variant`, `revision`, `token`, `cache_dir`,
                `local_files_only`, `device_map`, and parts to use instead of stored ones. Code that
                a repository carries is never run, with or without `trust_remote_code`.

        Raises:
            HubError: The repository is not there, may not be read, cannot be reached, or is
                refused. An OSError.
            ValueError: A bad name, another kind of model, no weights, or not in this variant.
        """
        kwargs.pop("trust_remote_code", None)
        if kwargs.get("torch_dtype") is None:  # else transformers' part would stay as stored
            kwargs["dtype"] = kwargs.get("dtype") or torch.float32
        name = os.fspath(pretrained_model_name_or_path)
        from var_hf.stored import check_pipeline

        if os.path.isdir(name):
            check_pipeline(name)
            return super().from_pretrained(name, **kwargs)
        folder = cls.download(name, verify=verify, **kwargs)
        check_pipeline(folder)
        loading = {key: value for key, value in kwargs.items() if key not in _PLACE}
        pipeline = super().from_pretrained(folder, **loading)
        pipeline.register_to_config(_name_or_path=name)
        return pipeline

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read `model_index.json`; whatever code a repository carries, the installed classes load
        it.

        Raises:
            ValueError: It is that of another kind of model.
        """
        loaded = super().load_config(
            pretrained_model_name_or_path,
            return_unused_kwargs=return_unused_kwargs,
            return_commit_hash=return_commit_hash,
            **kwargs,
        )
        from var_hf.hub.files import COMPONENTS, check_index, kind_of

        config = loaded[0] if isinstance(loaded, tuple) else loaded
        check_index(config, str(pretrained_model_name_or_path))
        kind = kind_of(config)
        if not kind.parts.keys() <= inspect.signature(cls.__init__).parameters.keys():
            raise ValueError(
                f"{pretrained_model_name_or_path} holds the parts {', '.join(kind.parts)}, and a "
                f"{cls.__name__} has others. Load it with {kind.class_name}.from_pretrained."
            )
        config["_class_name"] = cls.__name__
        for name, part in kind.parts.items():
            config[name] = [COMPONENTS[part].module, COMPONENTS[part].class_name]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, *, verify: bool = True, **kwargs: Any) -> str:
        """Fetch a pipeline repository and return its folder in the cache; arguments as in
        `from_pretrained`.

        diffusers' own `download` refuses parts that are defined outside diffusers and transformers.
        """
        from var_hf.hub import pull_pipeline
        from var_hf.hub.files import COLLABORATIVE, PLAIN

        names = ("variant", "revision", "token", "cache_dir", "local_files_only", "force_download")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        skip = [name for name in (*PLAIN.parts, *COLLABORATIVE.parts) if name in kwargs]
        return pull_pipeline(pretrained_model_name, skip=skip, verify=verify, **options)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as `DiffusionPipeline.save_pretrained` does, always as safetensors.

        Args:
            save_directory: Folder to write.
            safe_serialization: Ignored, with a warning where it is off: weights are always
                safetensors.
            variant: Part of the names of the weight files, such as ``"fp16"``.
            max_shard_size: Split larger weight files, in bytes or as ``"5GB"``.
            push_to_hub: Push the folder afterwards, with `repo_id` (by default the folder's name)
                and the other arguments of `push_to_hub`.
            **kwargs: Those arguments.

        Raises:
            ValueError: The transformer carries an adapter, or computes in int8.
        """
        # Layers stay wrapped after delete_adapter(), so the layers tell and not the flag.
        for name, transformer in self.transformers.items():
            transformer.check_saveable()
            if any(hasattr(module, "base_layer") for module in transformer.modules()):
                raise ValueError(
                    f"The {name} carries an adapter; the folder would have no {name} that can be"
                    f" loaded. Save the adapter with pipe.{name}.save_pretrained(...), and for one"
                    f" model of both load it with peft.PeftModel.from_pretrained({name},"
                    " folder).merge_and_unload()."
                )
        if not safe_serialization:
            logger.warning_once(
                "safe_serialization=False is ignored: weights are always written as safetensors,"
                " since this package does not load pickles."
            )
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, variant=variant, **options)
        if push_to_hub:
            from var_hf.hub import push_folder

            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            push_folder(save_directory, repo_id, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push the pipeline in one commit, with model card, `provenance.json` and, if wanted, code.

        Args:
            repo_id: Such as ``"user/var-d16-256"``; made if it does not exist.
            **kwargs: `variant` and `max_shard_size`, and those of `push_folder`: `with_code`,
                `card`, `private`, `revision` (a branch), `create_pr`, `token`, `commit_message`,
                `commit_description`.

        Returns:
            The commit: `commit_url`, `oid` and, for a pull request, `pr_url`.

        Raises:
            HubError: The Hub refuses, or cannot be reached. An OSError.
            ValueError: A bad name or combination of arguments.
        """
        from var_hf.hub import push_model

        return push_model(self, repo_id, **kwargs)

    @classmethod
    def from_original(
        cls,
        transformer_file: str | os.PathLike[str] | dict[str, torch.Tensor],
        vqvae_file: str | os.PathLike[str] | dict[str, torch.Tensor],
        **overrides: Any,
    ) -> Self:
        """Load the two files of the VAR release.

        Args:
            transformer_file: `var_d16.pth` or the like, a trainer checkpoint, or the result of
                `read_original`.
            vqvae_file: `vae_ch160v4096z32.pth`, a trainer checkpoint, or the result of
                `read_original`.
            **overrides: `id2label`, and config values that the tensors do not determine (see
                [`VARModel.from_original`] and [`MultiScaleVQVAE.from_original`]).

        Raises:
            ValueError: A file is no checkpoint of its kind, the two do not belong together, or an
                override is unknown.
        """
        from var_hf.pipelines.original import load_original

        return cls(**load_original(transformer_file, vqvae_file, **overrides))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> Self:
        """Build a pipeline of this class on the components of another one; both share the weights.

        Args:
            pipeline: Any pipeline of this package.
            **changes: Components to replace, `id2label`, or `dtype`. By default the weights keep
                their dtype; `from_pipe` in diffusers casts them to float32.

        Raises:
            TypeError: A change is not an argument of the pipeline.
            ValueError: Transformer and VQVAE do not belong together.
        """
        dtype = changes.pop("dtype", None)
        taken = inspect.signature(cls.__init__).parameters
        parts = {**pipeline.config, **pipeline.components}
        source = {key: part for key, part in parts.items() if key in taken}
        shared = cls(**{**source, **changes})
        name = getattr(pipeline.config, "_name_or_path", None)
        if name is not None:
            shared.register_to_config(_name_or_path=name)
        return shared if dtype is None else shared.to(dtype=dtype)
