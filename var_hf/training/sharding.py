"""Sharded training: FSDP2 (torch's `fully_shard`) and its checkpoints.

Each process keeps one part of every weight, of its gradient and of its optimizer state. A layer is
gathered while it is computed, and freed again. accelerate has no FSDP for CPU processes, and this
way is the same on every device: what the tests prove on CPUs is what runs on GPUs.

Checkpoints are those of `torch.distributed.checkpoint`, in its safetensors format: every process
writes its part, and any number of processes reads them. They hold no pickle.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME

from var_hf.modeling_var import VARDecoderLayer
from var_hf.processes import process_state
from var_hf.provenance import sha256 as file_digest
from var_hf.training.agreement import check_agreement
from var_hf.training.run_folder import RunFolder
from var_hf.training.transformer_config import TransformerTrainingConfig

logger = logging.getLogger(__name__)

#: Folder of the weights and the optimizer's state in a checkpoint.
SHARDS_NAME = "shards"

_MODEL, _OPTIMIZER = "model.", "optimizer."
_SHARDED = StateDictOptions(flatten_optimizer_state_dict=True)


def shares_out(config: TransformerTrainingConfig) -> bool:
    """Whether the model is to be cut up: the settings say so, and there are several processes."""
    return config.shard and process_state().num_processes > 1


def shard_model(model: nn.Module, device: torch.device) -> None:
    """Cut the weights of a transformer into one part for each process, in place.

    Each decoder layer is gathered and freed as one unit. Embeddings and head are another, which
    stays gathered from the forward to the end of the backward pass.

    Args:
        model: A `VARModel`, or one with adapters; the same in every process. It may be on the CPU:
            no process ever has more than one whole layer on `device`.
        device: Where the parts go.
    """
    mesh = init_device_mesh(device.type, (process_state().num_processes,))
    for module in list(model.modules()):
        if isinstance(module, VARDecoderLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def empty_copy(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters have no memory (meta device)."""
    memo = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The complete state dict on the CPU, in the first process; empty in the others.

    Every process has to call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state_dict: dict[str, Any] = get_model_state_dict(model, options=options)
    return state_dict


def engine_of(model: nn.Module, config: TransformerTrainingConfig) -> dict[str, Any]:
    """What a model trains with, judged by the model itself and not by the settings.

    Args:
        model: The model as Trainer has wrapped it.
        config: The settings.

    Returns:
        ``name`` (``"one process"``, ``"DDP"``, ``"FSDP2"`` or ``"DeepSpeed"``), ``processes``,
        ``device``, ``backend`` and ``mixed_precision``.

    Raises:
        RuntimeError: It is not what the settings ask for.
    """
    state = process_state()
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    if all(isinstance(parameter, DTensor) for parameter in model.parameters()):
        name = "FSDP2"
    elif isinstance(model, DistributedDataParallel):
        name = "DDP"
    elif type(model).__name__ == "DeepSpeedEngine":
        name = "DeepSpeed"
    else:
        name = "one process"
    if (name == "FSDP2") != shares_out(config) or (name == "one process") != (
        state.num_processes == 1
    ):
        raise RuntimeError(
            f"{state.num_processes} processes with shard {config.shard} would train with {name}: "
            "this version of transformers or accelerate wraps models in a way that is not known."
        )
    return {
        "name": name,
        "processes": state.num_processes,
        "device": state.device.type,
        "backend": None if state.num_processes == 1 else torch.distributed.get_backend(),
        "mixed_precision": config.mixed_precision,
    }


# Checkpoints


def save_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state, each process its part. Every process has to call it.

    Raises:
        OSError: A process could not write.
    """
    with _own_errors():
        save(
            _tensors(*get_state_dict(model, optimizer, options=_SHARDED)),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
        )


def load_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what any number of processes wrote. Every process has to call it.

    Numbers of the optimizer that are no tensors, such as learning rates, keep their values.

    Raises:
        ValueError: The checkpoint holds another model; the message names the first difference.
    """
    weights, state = get_state_dict(model, optimizer, options=_SHARDED)
    tensors = _tensors(weights, state)
    reader = HuggingFaceStorageReader(str(folder))
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    for name in sorted(stored.keys() | tensors.keys()):
        was = tuple(stored[name].size) if name in stored else "not there"
        now = tuple(tensors[name].shape) if name in tensors else "none of its own"
        if was != now:
            raise ValueError(
                f"{folder.parent} is a checkpoint of another model: {name} is {was} in it, and "
                f"{now} in this run. Continue it with the model that it was made with, or choose "
                "another run folder."
            )
    with _own_errors():
        load(tensors, storage_reader=reader)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=_without_prefix(tensors, _MODEL),
        optim_state_dict={**state, **_without_prefix(tensors, _OPTIMIZER)},
        options=_SHARDED,
    )


def _tensors(weights: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights and optimizer state under names that tell them apart."""
    of_optimizer = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {_MODEL + name: value for name, value in weights.items()} | {
        _OPTIMIZER + name: value for name, value in of_optimizer.items()
    }


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the error of the first process that failed in place of torch's collection of them."""
    try:
        with warnings.catch_warnings():
            # One process without a launcher reads and writes a checkpoint alone, which is meant.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        _, (cause, _) = min(error.failures.items())
        raise cause from None


# Trainer


class EngineRecord(TrainerCallback):
    """Prints and records what a run trains with, and refuses another engine than was asked for."""

    def __init__(self, trainer: "ShardingTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Look at the model as it is wrapped now."""
        engine = engine_of(self.trainer.model_wrapped, self.trainer.config)
        logger.info(
            "engine: %s, %d process(es) on %s, mixed precision %s",
            engine["name"], engine["processes"], engine["device"], engine["mixed_precision"],
        )  # fmt: skip
        log = self.trainer.run.log_file
        if state.is_world_process_zero:
            self.trainer.run.log(max(state.global_step, 0), engine=engine)
        if shares_out(self.trainer.config):  # all write to one folder
            process_state().wait_for_everyone()
            check_agreement(
                {"files in the run folder": lambda: file_digest(log) if log.exists() else "absent"}
            )


class ShardingTrainer(Trainer):
    """Trainer that cuts its model up where the setting `shard` says so.

    Subclasses set `config` and `run` before they call this class's constructor.
    """

    config: TransformerTrainingConfig
    run: RunFolder
    optimizer: Any  # made by `create_optimizer`, and wrapped later

    def __init__(self, model: nn.Module, **arguments: Any):
        if shares_out(self.config):
            self._empty_copy = empty_copy(model)
        super().__init__(model=model, **arguments)
        self.add_callback(EngineRecord(self))
        if shares_out(self.config):
            # Trainer's name for models that own their placement: it neither moves nor wraps them.
            self.is_distributed_loading_by_transformers = True
            # Autocast would keep the half-precision copy of every gathered weight.
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not shares_out(self.config):
            super()._move_model_to_device(model, device)
            return
        shard_model(model, device)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See Trainer."""
        with warnings.catch_warnings():
            # The logits are a view, and nothing changes them in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            return super().train(*args, **kwargs)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        yield  # nothing is deferred: gradients stay cut up between the parts of a step

    def whole_model(self) -> nn.Module:
        """A copy of a model that is cut up, with all weights. Every process has to call it.

        The weights are gathered on the CPU of the first process. In the others the copy has no
        memory (meta device).
        """
        state_dict = whole_state_dict(self.model)
        model = copy.deepcopy(self._empty_copy)
        if state_dict:
            model.load_state_dict(state_dict, assign=True)
        return model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model; a checkpoint of a run with `shard` holds parts instead."""
        if not self.config.shard or (not _internal_call and not shares_out(self.config)):
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:
            model: Any = self.whole_model()
            if self.args.should_save:
                model.save_pretrained(output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.config.shard:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_shards(Path(output_dir) / SHARDS_NAME, self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.config.shard:  # else weights are read together with the optimizer's state
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.config.shard or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_shards(Path(checkpoint) / SHARDS_NAME, self.model, self.optimizer.optimizer)
        scheduler = self.lr_scheduler
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        rates = scheduler.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
