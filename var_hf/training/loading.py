"""The models that a training starts from, in float32."""

from pathlib import Path

import torch

from var_hf.assets import shipped_model
from var_hf.modeling_var import VARModel
from var_hf.modeling_vqvae import MultiScaleVQVAE
from var_hf.pipelines.pipeline_var import VARPipeline


def find_model(name: str) -> str:
    """The folder of a model that ships with the package, else the name itself.

    Raises:
        FileNotFoundError: It is neither a folder nor could it be a Hub repository.
    """
    name = shipped_model(name)
    if not Path(name).is_dir() and name.count("/") != 1:
        raise FileNotFoundError(f"There is no folder {name}. Hub repositories are named user/name.")
    return name


def load_start(model: str | None) -> VARPipeline | VARModel | None:
    """The pipeline or the transformer alone to start from; ``None`` if `model` is ``None``.

    Raises:
        OSError: There is no such model.
    """
    if model is None:
        return None
    model = find_model(model)
    is_transformer = (Path(model) / "config.json").is_file()
    loader = VARModel if is_transformer else VARPipeline
    return loader.from_pretrained(model, dtype=torch.float32)


def load_vqvae(name: str) -> MultiScaleVQVAE:
    """A tokenizer from its own folder or Hub repository, or from a pipeline's.

    Raises:
        OSError: There is no such tokenizer.
    """
    name = find_model(name)
    folders: list[str | None] = ["vqvae", None]
    if Path(name).is_dir():
        folders = folders[:1] if (Path(name) / "vqvae").is_dir() else folders[1:]
    for folder in folders:
        try:
            return MultiScaleVQVAE.from_pretrained(
                name, subfolder=folder, torch_dtype=torch.float32
            )
        except OSError as error:
            failure = error
    raise failure
