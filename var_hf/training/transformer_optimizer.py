"""Which optimiser teaches which of the transformer's parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from var_hf.training.muon import Muon

#: Parameters without weight decay besides vectors and biases, as in the release (`filter_params`).
NOT_DECAYED = (
    "start_embedding", "position_embedding", "scale_embedding", "modulation_table", "logit_scale",
)  # fmt: skip

#: What Muon takes: the matrices between features. Embeddings, modulation and head are AdamW's.
MUON_MATRICES = tuple(
    f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
)


def decayed_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay acts on: matrices, the class table among them."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and not name.endswith("bias")
        and not any(word in name for word in NOT_DECAYED)
    ]


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimiser of two kinds: the first group is Muon's, the others are AdamW's.

    Args:
        matrices: Parameters of Muon.
        groups: Parameter groups of AdamW.
        lr: Learning rate of all; Muon's steps are scaled to the size of AdamW's.
        betas: Of AdamW.
        weight_decay: Of Muon, and of the groups that name none.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
    ):
        matrices, groups = list(matrices), list(groups)
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay)
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; takes no closure."""
        # Groups and state are this object's: loading a state dict makes new ones.
        for optimizer, groups in (
            (self._muon, self.param_groups[:1]),
            (self._adamw, self.param_groups[1:]),
        ):
            optimizer.param_groups, optimizer.state = groups, self.state
            optimizer.step()


def muon_and_adamw(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> MuonAndAdamW:
    """`MuonAndAdamW` for what is to be trained of a transformer.

    Raises:
        ValueError: No matrix is trained that Muon could take.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [name for name in trained if name.endswith(MUON_MATRICES)]
    if not matrices:
        raise ValueError("Every matrix that Muon could take is frozen: use the optimizer adamw.")
    decayed = set(decayed_parameters(model))
    rest = [name for name in trained if name not in set(matrices)]
    groups: list[dict[str, Any]] = [
        {"params": [trained[name] for name in rest if name in decayed]},
        {"params": [trained[name] for name in rest if name not in decayed], "weight_decay": 0.0},
    ]
    return MuonAndAdamW([trained[name] for name in matrices], groups, lr, betas, weight_decay)


def split_class_table(optimizer: torch.optim.Optimizer, model: nn.Module, lr_factor: float) -> None:
    """Give the class table of a model a parameter group of its own, with its own learning rate.

    Args:
        optimizer: Changed in place; made for the model, before any step and any schedule.
        model: A `VARModel`, or one with adapters.
        lr_factor: Multiplies the learning rate of the group that the table was in.
    """
    tables = {p for name, p in model.named_parameters() if "class_embedding" in name}
    for group in list(optimizer.param_groups):
        found = [p for p in group["params"] if p in tables]
        if found:
            group["params"] = [p for p in group["params"] if p not in tables]
            settings = {name: value for name, value in group.items() if name != "params"}
            optimizer.add_param_group({**settings, "params": found, "lr": group["lr"] * lr_factor})
