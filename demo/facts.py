"""Facts about a model from its configuration files, which build the page without torch."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from var_hf.assets import DEFAULT_MODEL, SHIPPED_MODELS, shipped_model

CONFIGS = (
    "model_index.json",
    "transformer/config.json",
    "vqvae/config.json",
    "scheduler/scheduler_config.json",
)


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that the page uses.

    Attributes:
        name: Name on the page and in code: the shipped model's name, a folder, or a Hub repository.
        source: Folder or Hub repository of the model.
        side: Side of its images in pixels.
        token_map_sizes: Side of each token map.
        num_classes: Number of classes.
        id2label: Class names.
        guidance_scale, top_k, top_p, sampling, temperature: Its sampling defaults; the temperature
            is `None` where each scale has its own.
        guidance_schedule, ssg_scale: Its kind of guidance.
    """

    name: str
    source: str
    side: int
    token_map_sizes: tuple[int, ...]
    num_classes: int
    id2label: dict[int, str]
    guidance_scale: float
    top_k: int
    top_p: float
    sampling: str
    temperature: float | None
    guidance_schedule: str
    ssg_scale: float

    @classmethod
    def read(cls, model: str = DEFAULT_MODEL.name) -> Self:
        """Read the configuration files of a model.

        Args:
            model: Pipeline folder, Hub repository as user/name, or the name of a shipped
                model (`var_hf.assets`).

        Raises:
            OSError: There is no such model, or the Hub could not be reached.
            ValueError: It is not a pipeline of this package, or it is damaged.
        """
        from var_hf.hub.files import PLAIN, check_index, check_model, kind_of

        source = shipped_model(model)
        check_model(source)
        index = _config(source, CONFIGS[0])
        check_index(index, source)
        if kind_of(index) is not PLAIN:
            raise ValueError(
                f"{source} holds {', '.join(kind_of(index).parts)}, and the demo takes a pipeline "
                "of one transformer."
            )
        transformer, vqvae, scheduler = (_config(source, path) for path in CONFIGS[1:])
        temperature = scheduler.get("temperature", 1.0)
        with _damage(source):
            sizes = tuple(int(size) for size in transformer["token_map_sizes"])
            return cls(
                name=Path(model).name if Path(source) in SHIPPED_MODELS else model,
                source=source,
                side=2 ** (len(vqvae["channel_multipliers"]) - 1) * sizes[-1],
                token_map_sizes=sizes,
                num_classes=int(transformer["num_classes"]),
                id2label={
                    int(key): str(name) for key, name in (index.get("id2label") or {}).items()
                },
                guidance_scale=float(scheduler["guidance_scale"]),
                top_k=int(scheduler["top_k"]),
                top_p=float(scheduler["top_p"]),
                sampling=str(scheduler["sampling"]),
                # Checkpoints from before these settings do not store them.
                temperature=None if isinstance(temperature, list) else float(temperature),
                guidance_schedule=str(scheduler.get("guidance_schedule", "ramp")),
                ssg_scale=float(scheduler.get("ssg_scale", 0.0)),
            )

    @property
    def num_tokens(self) -> int:
        """Number of tokens of an image, over all scales."""
        return sum(size * size for size in self.token_map_sizes)

    def class_name(self, class_id: int) -> str:
        """Return the name of a class, with its id where the name is missing or not unique."""
        name = self.id2label.get(class_id)
        if name is None:
            return f"class {class_id}"
        return f"{name} ({class_id})" if self._uses[name] > 1 else name

    @cached_property
    def _uses(self) -> Counter[str]:
        """The number of classes with each name."""
        return Counter(self.id2label.values())

    def find_class(self, name: str, instead: float) -> int:
        """Return the class with a name, or else the class at the share `instead` of the list."""
        ids = [class_id for class_id, other in self.id2label.items() if other == name]
        return ids[0] if ids else round(instead * (self.num_classes - 1))


def _config(source: str, path: str) -> dict[str, Any]:
    """Read one configuration file of a folder or Hub repository."""
    if (file := Path(source) / path).is_file():
        content = file.read_text(encoding="utf-8")
    else:
        from huggingface_hub import hf_hub_download

        from var_hf.hub.errors import hub_errors

        with hub_errors(source):
            content = Path(hf_hub_download(source, path)).read_text(encoding="utf-8")
    with _damage(f"{source}, {path}"):
        return dict(json.loads(content))


@contextmanager
def _damage(where: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is damaged or of another kind: {error!r}.") from error
