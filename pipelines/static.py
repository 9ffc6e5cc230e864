"""The compiled path: one graph per scale, over memory that stays where it is."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache

from var_hf.modeling_var import VARModel

# Graphs of one scale that are kept side by side: batch sizes, settings, with and without guidance.
MAX_GRAPHS = 64
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class StaticPath:
    """Compiles a function once per scale, and keeps the memory of keys and values from call to call.

    CUDA graphs replay work on fixed addresses, so the cache has to stay where it is. Another batch size, model, dtype or
    device gets a cache of its own, in place of the one before, and is compiled at its first call.

    Args:
        function: What to compile; it takes the number of the scale among its arguments.
        backend: As in `torch.compile`.
        mode: As in `torch.compile`.
    """

    def __init__(self, function: Callable, backend: str | Callable, mode: str | None):
        self.function = function
        self.options: dict[str, Any] = {
            "backend": backend,
            "mode": mode,
            "fullgraph": True,  # a break would bring the host back into the loop
            "dynamic": False,
            "recompile_limit": MAX_GRAPHS,
            "isolate_recompiles": True,  # else all scales would share one limit
        }
        self._compiled: dict[int, Callable] = {}  # by scale
        self._cache: Cache | None = None
        self._cache_for: tuple | None = None
        self.generation = 0  # number of the one that the memory belongs to

    def draw_scale(self, scale: int) -> Callable:
        """The compiled function of one scale."""
        if scale not in self._compiled:
            self._compiled[scale] = torch.compile(self.function, **self.options)
        if scale == 0 and self.options["mode"] in CUDA_GRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()  # what the call before returned may be overwritten
        return self._compiled[scale]

    def cache(self, transformer: VARModel, rows: int) -> Cache:
        """An empty cache for `rows` rows, in the memory of the call before if that fits."""
        config, table = transformer.config, transformer.embeddings.class_embedding.weight
        cache_for = (id(transformer), rows, table.dtype, table.device)
        if self._cache is None or self._cache_for != cache_for:
            self._cache = None  # before the next one takes memory
            cache = transformer.new_cache()
            heads = config.num_attention_heads
            cache.early_initialization(
                rows, heads, config.hidden_size // heads, table.dtype, table.device
            )
            for layer in cache.layers:
                torch._dynamo.mark_static_address(layer.keys)
                torch._dynamo.mark_static_address(layer.values)
            self._cache, self._cache_for = cache, cache_for
        self._cache.reset()
        self.generation += 1
        return self._cache

    def check_generation(self, generation: int | None) -> None:
        """Raise a ``ValueError`` if another generation has taken the memory since."""
        if generation != self.generation:
            raise ValueError(
                "A compiled pipeline draws one batch at a time, and another one was begun. Finish the stream before the "
                "next call, or use a second pipeline for it."
            )


def check_compiler(backend: str | Callable) -> None:
    """Raise a ``ValueError`` if this torch cannot compile with `backend`."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise ValueError(
            f"torch {torch.__version__} counts the graphs of all scales together and gives up at eight: compile() needs a "
            "torch.compile that takes isolate_recompiles. Update torch, or compile pipe.transformer alone."
        )
    known = torch.compiler.list_backends(exclude_tags=())
    if not callable(backend) and backend not in known:
        raise ValueError(
            f"torch.compile has no backend {backend!r} here. It knows {', '.join(sorted(known))}."
        )
