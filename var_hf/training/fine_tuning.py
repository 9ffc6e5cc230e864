"""Give a trained transformer other classes, another schedule, or adapters."""

import copy
import logging
import math
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from var_hf.configuration_var import VARConfig
from var_hf.modeling_var import VARModel

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

#: Where LoRA adapters go: every projection of attention and MLP, and the modulation by the class
#: (AdaLN).
LORA_TARGETS = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "fc1",
    "fc2",
    "modulation",
    "shared_modulation",
]


def class_ids_of(
    class_names: Sequence[str] | None,
    num_data_classes: int,
    model: VARModel,
    id2label: dict[int, str],
) -> list[int]:
    """The model's id for each class of the data.

    Classes are found by name, because another folder order means other numbers. Where the model
    knows none of the names, as with the WordNet ids that are ImageNet's folder names, and the
    numbers of classes agree, the order is taken to be the same, with a warning.

    Args:
        class_names: Names of the data's classes, if it has any.
        num_data_classes: How many classes the data has.
        model: A transformer that knows classes already.
        id2label: The names it knows.

    Raises:
        ValueError: The data has classes that the model does not know.
    """
    num_classes = model.config.num_classes
    advice = "To learn them, start with a new class table (new_classes)."
    if num_data_classes > num_classes:
        raise ValueError(
            f"The data has {num_data_classes} classes, more than the {num_classes} of the "
            f"checkpoint. {advice}"
        )
    known: dict[str, int] = {}
    for class_id, entry in id2label.items():
        for name in (entry, *entry.split(",")):
            known.setdefault(name.strip().lower(), class_id)
    names = list(class_names or [])
    unknown = [name for name in names if name.lower() not in known]
    if names and not unknown:
        return [known[name.lower()] for name in names]
    if len(unknown) < len(names) or num_data_classes != num_classes:
        raise ValueError(
            f"The checkpoint does not know {len(unknown) or num_data_classes} of the data's "
            f"{num_data_classes} "
            f"classes{f' ({unknown[0]!r} for one)' if unknown else ', which have no names'}. "
            f"{advice}"
        )
    if names:
        logger.warning(
            "none of the data's class names is known to the checkpoint, but both have %d classes: "
            "taken to be in the same order",
            num_classes,
        )
    return list(range(num_classes))


def with_new_classes(model: VARModel, num_classes: int) -> VARModel:
    """The model with a class table for other classes, in place.

    The null row is kept. Each new row starts as the null row plus the noise of a fresh table: the
    model begins with what it knows of images of any class, and the classes part from there.
    """
    old = model.embeddings.class_embedding
    width = model.config.hidden_size
    null_row = old.weight[-1].detach().clone()  # (C,)
    new = nn.Embedding(num_classes + 1, width)
    with torch.no_grad():
        nn.init.trunc_normal_(new.weight, std=model.config.initializer_range)
        new.weight[:-1] += null_row
        new.weight[-1] = null_row
    model.embeddings.class_embedding = new.to(old.weight.dtype)
    model.config.num_classes = num_classes
    return model


def with_schedule(model: VARModel, token_map_sizes: Sequence[int]) -> VARModel:
    """A copy of the model for another schedule.

    Each new scale takes its place and scale embedding from the old scale at the same share of the
    way from coarsest to finest; its positions are resized (bicubic).
    """
    old = model.config
    changes = {"token_map_sizes": tuple(token_map_sizes)}
    config = VARConfig(**{**_settings(old), **changes})
    with torch.device("meta"):
        changed = VARModel(config)
    state_dict = dict(model.state_dict())
    source = [
        math.floor(i * (old.num_scales - 1) / (config.num_scales - 1) + 0.5)
        for i in range(config.num_scales)
    ]
    prefix = "embeddings."
    positions = state_dict[f"{prefix}position_embedding"]
    state_dict[f"{prefix}position_embedding"] = torch.cat(
        [
            resize_positions(positions[:, old.token_slices[scale]], size)
            for scale, size in zip(source, config.token_map_sizes, strict=True)
        ],
        dim=1,
    )
    state_dict[f"{prefix}start_embedding"] = resize_positions(
        state_dict[f"{prefix}start_embedding"], config.token_map_sizes[0]
    )
    scales = state_dict[f"{prefix}scale_embedding.weight"]
    state_dict[f"{prefix}scale_embedding.weight"] = scales[source].clone()
    changed.load_state_dict(
        {name: tensor.detach().clone() for name, tensor in state_dict.items()}, assign=True
    )
    logger.warning(
        "the schedule changes from %s to %s: positions are interpolated, and until it is trained "
        "the model draws little of use",
        tuple(old.token_map_sizes), config.token_map_sizes,
    )  # fmt: skip
    return changed.train(model.training).requires_grad_(True)


def _settings(config: VARConfig) -> dict[str, Any]:
    return {
        name: getattr(config, name) for name in VARConfig.__annotations__ if name != "model_type"
    }


def resize_positions(positions: Tensor, size: int) -> Tensor:
    """Position embeddings ``(1, T, C)`` of a square map on a map of side `size`."""
    old_size = math.isqrt(positions.shape[1])
    if old_size == size:
        return positions
    grid = positions.transpose(1, 2).unflatten(2, (old_size, old_size))  # (1, C, h, w)
    grid = functional.interpolate(grid, size=(size, size), mode="bicubic")
    return grid.flatten(2).transpose(1, 2)


def freeze(model: VARModel, patterns: Sequence[str]) -> None:
    """Exclude the parameters that match a pattern from training.

    Args:
        model: Changed in place.
        patterns: As in a shell: ``"layers.[0-7].*"``, ``"*.mlp.*"``, ``"embeddings.*"``.

    Raises:
        ValueError: A pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(
                f"No parameter matches {pattern!r}; names are like {names[0]!r} and {names[-1]!r}."
            )
    for name, parameter in model.named_parameters():
        if any(fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{', '.join(map(repr, patterns))} freeze everything: nothing is left to train."
        )


def with_lora(model: VARModel, rank: int, train_modules: Sequence[str] = ()) -> "PeftModel":
    """The model with LoRA adapters of scale 1 (arXiv 2106.09685), and all else frozen.

    Args:
        model: The transformer; the adapters go into `LORA_TARGETS`.
        rank: Rank of the adapters.
        train_modules: Modules that are trained in full, such as a new class table.

    Raises:
        ImportError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA needs PEFT: pip install var-hf[peft]") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=LORA_TARGETS,
        modules_to_save=list(train_modules) or None,
    )
    return get_peft_model(model, config)


def merged(model: "PeftModel") -> VARModel:
    """A copy of a model with adapters in which they are part of the weights."""
    return copy.deepcopy(model).merge_and_unload()
