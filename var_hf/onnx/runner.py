"""The loop over scales on onnxruntime and numpy. Needs no torch.

Letters: B images, R rows of the transformer (B, or 2B under guidance), T tokens of one scale, L
tokens of all scales, V codes, Z latent channels, F side of the latents, P side of the images.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from var_hf.onnx import drawing
from var_hf.onnx.metadata import check_files, read_metadata
from var_hf.onnx.random_numbers import uniform
from var_hf.sampling_settings import SamplingSettings, guidance_shares, temperature_at

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass
class OnnxScaleOutput:
    """The state of a generation after one scale.

    Attributes:
        scale: Number of the scale, 0 is the coarsest.
        num_scales: Number of scales.
        tokens: The drawn tokens, ``(B, T)``.
        logits: Guided logits before any filter, ``(B, T, V)``, float64.
        latents: Running sum of all scales so far, ``(B, Z, F, F)``, float32.
        image: With ``preview=True`` the images so far, in the form of `output_type`.
    """

    scale: int
    num_scales: int
    tokens: Tokens
    logits: NDArray[np.float64]
    latents: Floats
    image: Any = None


class OnnxGraphs:
    """The graphs of an exported folder; each is loaded when it is first used.

    Args:
        folder: The folder. All files are compared with their size and SHA-256.
        providers: Execution providers of onnxruntime; by default its CPU.
        num_threads: Threads of one graph; by default one per core.

    Raises:
        OSError: A file is missing, truncated or changed.
        ValueError: The metadata are damaged or of another version.
        ImportError: onnxruntime is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        num_threads: int | None = None,
    ):
        self.folder, self.metadata = Path(folder), read_metadata(folder)
        check_files(folder, self.metadata)
        self.providers, self.num_threads = list(providers), num_threads
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def session(self, name: str) -> Any:
        """The `onnxruntime.InferenceSession` of a graph."""
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._load(name)
            return self._sessions[name]

    def _load(self, name: str) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "The ONNX runner needs onnxruntime: pip install onnxruntime."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = self.num_threads or 0
        path = self.folder / self.metadata.graphs[name]
        try:
            return onnxruntime.InferenceSession(path, options, providers=self.providers)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise OSError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path} (opset "
                f"{self.metadata.opset}): {' '.join(str(error).split())[:300]}. Install a newer "
                "onnxruntime, or export the model with a smaller --opset."
            ) from error

    def run(self, name: str, **inputs: NDArray[Any]) -> Any:
        """The first output of a graph."""
        return self.session(name).run(None, inputs)[0]

    def decode(self, latents: Floats) -> Floats:
        """Images ``(B, 3, P, P)`` in [-1, 1] of latents ``(B, Z, F, F)``, one at a time."""
        return np.concatenate([self.run("decoder", latents=one[None]) for one in latents])

    def encode(self, images: Floats) -> list[Tokens]:
        """Token maps, one ``(B, T)`` per scale, of images ``(B, 3, P, P)`` in [-1, 1]."""
        tokens = np.concatenate([self.run("encoder", images=one[None]) for one in images])
        return np.split(tokens, self.scale_starts[1:], axis=1)

    @property
    def scale_starts(self) -> list[int]:
        """Position of the first token of each scale among all L."""
        counts = [size**2 for size in self.metadata.model.token_map_sizes]
        return [sum(counts[:scale]) for scale in range(len(counts))]


@dataclass(frozen=True)
class Kept:
    """Given tokens in the place of drawn ones.

    Attributes:
        token_maps: One ``(B, T)`` per scale.
        masks: One ``(B, T)`` or ``(1, T)`` per scale; True keeps the given token.
    """

    token_maps: Sequence[Tokens]
    masks: Sequence[NDArray[np.bool_]]


class Cache:
    """Keys and values of the scales so far, as onnxruntime's own arrays: none is copied."""

    def __init__(self, graphs: OnnxGraphs, rows: int):
        import onnxruntime

        self._new, model = onnxruntime.OrtValue.ortvalue_from_numpy, graphs.metadata.model
        names = [
            f"{layer}.{part}"
            for layer in range(model.num_hidden_layers)
            for part in ("key", "value")
        ]
        empty = np.zeros((rows, model.num_attention_heads, 0, model.head_dim), np.float32)
        self.session = graphs.session("transformer")
        self.past = {f"past.{name}": self._new(empty) for name in names}
        self.outputs = ["logits", *(f"present.{name}" for name in names)]

    def keep_rows(self, count: int) -> None:
        """Go on with the first rows."""
        self.past = {
            name: self._new(np.ascontiguousarray(value.numpy()[:count]))
            for name, value in self.past.items()
        }

    def run(self, condition: Floats, latents: Floats, positions: Tokens) -> Floats:
        """Logits ``(R, T, V)`` of one scale, whose keys and values are added."""
        inputs = {"condition": condition, "latents": latents, "positions": positions}
        inputs = {name: self._new(value) for name, value in inputs.items()}
        logits, *present = self.session.run_with_ort_values(self.outputs, inputs | self.past)
        self.past = dict(zip(self.past, present, strict=True))
        return logits.numpy()


class Generation:
    """One call: from class ids to latents, scale by scale.

    Args:
        graphs: The model.
        class_ids: B ids; `num_classes` is the null class.
        settings: Sampling settings.
        seeds: Seed and number of the image for each of the B random streams.
        kept: Tokens of an edit.
    """

    def __init__(
        self,
        graphs: OnnxGraphs,
        class_ids: Sequence[int],
        settings: SamplingSettings,
        seeds: Sequence[tuple[int, int]],
        kept: Kept | None = None,
    ):
        self.graphs, self.settings, self.seeds, self.kept = graphs, settings, seeds, kept
        model = graphs.metadata.model
        self.sizes, self.count = model.token_map_sizes, len(class_ids)
        self.guided = settings.num_guided_scales(len(self.sizes))
        if all(class_id == model.num_classes for class_id in class_ids):
            self.guided = 0  # both predictions are the same
        rows = [*class_ids, *([model.num_classes] * self.count if self.guided else [])]
        self.condition = graphs.run("condition", class_labels=np.array(rows, np.int64))
        self.cache = Cache(graphs, len(rows))
        side = self.sizes[-1]
        self.latents = np.zeros((self.count, model.latent_channels, side, side), np.float32)

    def __iter__(self) -> Iterator[OnnxScaleOutput]:
        """Draw the scales; `latents` may be replaced between two."""
        starts = self.graphs.scale_starts
        for scale, size in enumerate(self.sizes):
            positions = np.arange(starts[scale], starts[scale] + size**2)
            logits = self.logits(scale, positions)
            tokens = self.draw(logits, scale, positions)
            if self.kept is not None:
                tokens = np.where(
                    self.kept.masks[scale], self.kept.token_maps[scale], tokens
                ).astype(np.int64)
            self.latents = self.graphs.run(
                "latents", latents=self.latents, tokens=tokens, positions=positions
            )
            yield OnnxScaleOutput(scale, len(self.sizes), tokens, logits, self.latents)

    def logits(self, scale: int, positions: Tokens) -> NDArray[np.float64]:
        """Guided logits of the next scale, ``(B, T, V)``."""
        if scale == self.guided and len(self.condition) > self.count:
            self.condition = np.ascontiguousarray(self.condition[: self.count])
            self.cache.keep_rows(self.count)
        copies = len(self.condition) // self.count
        logits = self.cache.run(self.condition, np.tile(self.latents, (copies, 1, 1, 1)), positions)
        if not np.isfinite(logits).all():
            raise ValueError(
                f"The logits of scale {scale} are not finite. Export the model in float32."
            )
        if copies == 1:
            return logits.astype(np.float64)
        share = guidance_shares(self.settings, len(self.sizes))[scale]
        strength = (self.settings.guidance_scale - 1) * share
        return drawing.guide(logits[: self.count], logits[self.count :], strength)

    def draw(self, logits: NDArray[np.float64], scale: int, positions: Tokens) -> Tokens:
        """Tokens ``(B, T)`` from guided logits."""
        settings = self.settings
        temperature = temperature_at(settings.temperature, scale / (len(self.sizes) - 1))
        if temperature != 1:
            logits = logits / temperature
        return np.stack(
            [
                drawing.draw(
                    drawing.weights(of_image, settings.top_k, settings.top_p),
                    uniform(seed, image, positions),
                )
                for of_image, (seed, image) in zip(logits, self.seeds, strict=True)
            ]
        )
