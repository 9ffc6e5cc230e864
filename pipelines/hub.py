"""Pipelines from the Hub and to the Hub."""

import os
from typing import TYPE_CHECKING, Any, Self

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import CommitInfo

from var_hf.hub import pull_pipeline, push_folder, push_model
from var_hf.hub.files import COMPONENTS, check_index

# What says where the files are, as opposed to how they are loaded.
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class HubMixin(DiffusionPipeline if TYPE_CHECKING else object):  # type: ignore[misc]
    """Loading and pushing for pipelines whose parts are defined outside diffusers and transformers."""

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
            verify: Refuse a repository that holds a pickle or unlisted code, or whose weights are not those of its
                ``provenance.json``. Folders are not checked; `var-hf verify` does that.
            **kwargs: Those of `DiffusionPipeline.from_pretrained`, among them `dtype`, `variant`, `revision`, `token`,
                `cache_dir`, `local_files_only`, `device_map`, and parts to use instead of stored ones. Code that a
                repository carries is never run, with or without `trust_remote_code`.

        Raises:
            HubError: The repository is not there, may not be read, cannot be reached, or is refused. An OSError.
            ValueError: A bad name, another kind of model, no weights, or not in this variant.
        """
        kwargs.pop("trust_remote_code", None)
        name = os.fspath(pretrained_model_name_or_path)
        if os.path.isdir(name):
            return super().from_pretrained(name, **kwargs)
        folder = cls.download(name, verify=verify, **kwargs)
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
        """Read `model_index.json`; whatever code a repository carries, the installed classes load it.

        Raises:
            ValueError: It is that of another kind of model.
        """
        loaded = super().load_config(
            pretrained_model_name_or_path,
            return_unused_kwargs=return_unused_kwargs,
            return_commit_hash=return_commit_hash,
            **kwargs,
        )
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        check_index(config, str(pretrained_model_name_or_path))
        config["_class_name"] = cls.__name__
        for name, component in COMPONENTS.items():
            config[name] = [component.module, component.class_name]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, *, verify: bool = True, **kwargs: Any) -> str:
        """Fetch a pipeline repository and return its folder in the cache; arguments as in `from_pretrained`.

        diffusers' own `download` refuses parts that are defined outside diffusers and transformers.
        """
        names = ("variant", "revision", "token", "cache_dir", "local_files_only", "force_download")
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        skip = [name for name in COMPONENTS if name in kwargs]
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
            safe_serialization: Only `True`: a pickle could not be loaded again.
            variant: Put into the names of the weight files, ``"fp16"`` say.
            max_shard_size: Split larger weight files, in bytes or as ``"5GB"``.
            push_to_hub: Push the folder afterwards, with `repo_id` (by default the folder's name) and the other
                arguments of `push_to_hub`.
            **kwargs: Those arguments.

        Raises:
            ValueError: `safe_serialization` is off, or the transformer carries an adapter.
        """
        # Layers stay wrapped after delete_adapter(), so the layers tell and not the flag.
        if any(hasattr(module, "base_layer") for module in self.transformer.modules()):
            raise ValueError(
                "The transformer carries an adapter; the folder would have no transformer that can be loaded. Save the "
                "adapter with pipe.transformer.save_pretrained(...), and for one model of both load it with "
                "peft.PeftModel.from_pretrained(transformer, folder).merge_and_unload()."
            )
        if not safe_serialization:
            raise ValueError(
                "safe_serialization=False would write pickles, which this package does not load. Leave it out."
            )
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, variant=variant, **options)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            push_folder(save_directory, repo_id, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push the pipeline in one commit, with model card, `provenance.json` and, if wanted, code.

        Args:
            repo_id: Such as ``"user/var-d16-256"``; made if it does not exist.
            **kwargs: `variant` and `max_shard_size`, and those of `push_folder`: `with_code`, `card`, `private`,
                `revision` (a branch), `create_pr`, `token`, `commit_message`, `commit_description`.

        Returns:
            The commit: `commit_url`, `oid` and, for a pull request, `pr_url`.

        Raises:
            HubError: The Hub refuses, or cannot be reached. An OSError.
            ValueError: A bad name or combination of arguments.
        """
        return push_model(self, repo_id, **kwargs)
