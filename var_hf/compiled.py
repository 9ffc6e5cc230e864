"""The compiled runner: one graph per scale, in memory that stays in place between calls."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .generation import ScaleInputs, ScaleResult, draw_scale
from .modeling_var import NextScaleCache, VARModel
from .runner import check_finite

# Graphs of one scale that are kept side by side: batch sizes, settings, with and without guidance.
MAX_GRAPHS = 64
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class CompiledRunner:
    """Compiles one graph per scale, and keeps the memory of keys and values from call to call.

    CUDA graphs replay work on fixed addresses, so the cache has to stay in place. Another batch
    size, model, dtype or device gets a cache of its own in place of the one before, and is compiled
    at its first call.

    Args:
        backend: As in `torch.compile`.
        mode: As in `torch.compile`; `None` is `"reduce-overhead"` on a CUDA device and `"default"`
            elsewhere.
        device: Where the scales are computed.

    Raises:
        ValueError: torch cannot compile with this backend.
    """

    def __init__(
        self, backend: str | Callable, mode: str | None, device: torch.device | str = "cpu"
    ):
        check_compiler(backend)
        if mode is None and backend == "inductor" and torch.device(device).type == "cuda":
            mode = "reduce-overhead"
        self.mode = mode
        self.options: dict[str, Any] = {
            "backend": backend,
            "mode": mode,
            "fullgraph": True,  # a break would bring the host back into the loop
            "dynamic": False,
            "recompile_limit": MAX_GRAPHS,
            "isolate_recompiles": True,  # else all scales would share one limit
        }
        self.compiled: dict[int, Callable[[ScaleInputs], ScaleResult]] = {}  # by scale
        self.caches: dict[tuple, NextScaleCache] = {}
        self.latest: CompiledRun | None = None

    @property
    def held_bytes(self) -> int:
        """See [`Runner`]."""
        layers = (layer for cache in self.caches.values() for layer in cache.layers)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def start(self) -> "CompiledRun":
        """Begin one call, to which the memory belongs from now on."""
        self.latest = CompiledRun(self)
        return self.latest

    def function(self, scale: int) -> Callable[[ScaleInputs], ScaleResult]:
        """The compiled function of one scale."""
        if scale not in self.compiled:
            self.compiled[scale] = torch.compile(draw_scale, **self.options)
        return self.compiled[scale]


class CompiledRun:
    """One call of a compiled pipeline; see [`Run`].

    The host waits for the device once, after the last scale.

    Args:
        runner: Owns graphs and memory.
    """

    def __init__(self, runner: CompiledRunner):
        self.runner = runner
        self.taken: set[tuple] = set()
        self.finite: list[Tensor] = []  # one per scale

    def new_cache(self, transformer: VARModel, rows: int, num_tokens: int) -> NextScaleCache:
        """An empty cache in the memory of the call before if that fits."""
        table = transformer.embeddings.class_embedding.weight
        key = (id(transformer), rows, num_tokens, table.dtype, table.device)
        caches = self.runner.caches
        if key not in caches:
            # Released before the next one takes memory.
            for unused in caches.keys() - self.taken:
                del caches[unused]
            config = transformer.config
            cache = transformer.new_cache(num_tokens)
            heads = config.num_attention_heads
            cache.early_initialization(
                rows, heads, config.hidden_size // heads, table.dtype, table.device
            )
            for layer in cache.layers:
                torch._dynamo.mark_static_address(layer.keys)
                torch._dynamo.mark_static_address(layer.values)
            caches[key] = cache
        self.taken.add(key)
        caches[key].reset()
        return caches[key]

    def draw_scale(self, inputs: ScaleInputs) -> ScaleResult:
        """See [`Run`].

        Raises:
            ValueError: Another call has taken the memory since, or logits are not finite.
        """
        if self.runner.latest is not self:
            raise ValueError(
                "A compiled pipeline draws one batch at a time, and another one was begun. Finish "
                "the stream before the next call, or use a second pipeline for it."
            )
        if inputs.scale == 0 and self.runner.mode in CUDA_GRAPH_MODES:
            # What the call before returned may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        # A number would become part of the graph, and another one would compile it again.
        strength = inputs.latents[-1].new_full((), float(inputs.guidance_scale))
        result = self.runner.function(inputs.scale)(inputs._replace(guidance_scale=strength))
        # CUDA graphs write the next result over this one.
        result = ScaleResult._make(None if one is None else one.clone() for one in result)
        self.finite.append(result.finite)
        if inputs.scale == inputs.quantizer.num_scales - 1:
            check_finite(self.finite, 0, inputs.transformer.dtype)
        return result


def check_compiler(backend: str | Callable) -> None:
    """Raise a ``ValueError`` if this version of torch cannot compile with `backend`."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise ValueError(
            f"torch {torch.__version__} counts the graphs of all scales together and gives up at "
            "eight. compile() needs a torch.compile that takes isolate_recompiles. Update torch, "
            "or "
            "compile pipe.transformer alone."
        )
    known = torch.compiler.list_backends(exclude_tags=())
    if not callable(backend) and backend not in known:
        raise ValueError(
            f"torch.compile has no backend {backend!r} here. It knows {', '.join(sorted(known))}."
        )


def check_in_place(**models: nn.Module) -> None:
    """Raise a ``ValueError`` if a model's weights are offloaded: compiled code needs them."""
    for name, model in models.items():
        if any(
            hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
            for module in model.modules()
        ):
            raise ValueError(
                f"The weights of the {name} are offloaded, and compiled code needs them in place. "
                "Call compile() on a pipeline without offloading."
            )
