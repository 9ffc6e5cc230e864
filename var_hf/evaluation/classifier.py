"""A small image classifier whose features evaluate images that Inception cannot judge, and which
judges candidates of a search.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from var_hf.assets import DEFAULT_MODEL
from var_hf.files import new_path

#: Files of the classifiers that ship with the package, by name: those of the classes of
#: var-emoji-64 and var-emoji-128.
SHIPPED = {
    name: DEFAULT_MODEL.with_name(f"{name}-classifier.safetensors")
    for name in ("emoji", "emoji-128")
}
CHANNELS = (16, 32, 64, 128)
#: Channels of the second last map that form the features of sFID, as many as for Inception.
SPATIAL_CHANNELS = 7


class SmallClassifier(nn.Sequential):
    """A convolutional classifier: ``(B, 3, P, P)`` in [-1, 1] to logits ``(B, classes)``.

    Args:
        num_classes: Number of classes.
        channels: Channels of the strided convolutions, multiples of 8. Each convolution halves the
            side.
    """

    def __init__(self, num_classes: int, channels: Sequence[int] = CHANNELS):
        layers: list[nn.Module] = []
        previous = 3
        for width in channels:
            layers += [
                nn.Conv2d(previous, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.GELU(),
            ]
            previous = width
        layers += [
            nn.Conv2d(previous, previous, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(previous, num_classes),
        ]
        super().__init__(*layers)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute features and logits of images ``(B, 3, P, P)`` in [-1, 1].

        Returns:
            The input of the last layer ``(B, D)``; some channels of the map before the last
            halving, flattened, for sFID; and the logits ``(B, classes)``.
        """
        *layers, head = self
        before_last_halving = len(layers) - 7  # four layers after the last halving, which is three
        x = images
        for number, layer in enumerate(layers):
            if number == before_last_halving:
                spatial = x[:, :SPATIAL_CHANNELS].flatten(1)
            x = layer(x)
        return x, spatial, head(x)


def save_classifier(model: SmallClassifier, class_names: Sequence[str], file: Path) -> None:
    """Write weights and class names to a file, completely or not at all."""
    metadata = {"class_names": json.dumps(list(class_names))}
    with new_path(file, replace=True) as temporary:
        save_file(model.state_dict(), temporary, metadata=metadata)


def classifier_file(name: str | Path) -> Path:
    """The file of a shipped classifier, or `name` as a path."""
    return SHIPPED.get(str(name), Path(name))


def load_classifier(name: str | Path) -> tuple[SmallClassifier, list[str]]:
    """Load a classifier and its class names, in the order of its logits.

    Args:
        name: ``"emoji"`` or ``"emoji-128"``, which ship with the package, or a safetensors file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file contains no classifier of this kind.
    """
    file = classifier_file(name)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no classifier {file}. Give {', '.join(SHIPPED)}, or the safetensors file of "
            "a small classifier."
        )
    try:
        with safe_open(file, framework="pt") as stored:
            class_names = json.loads((stored.metadata() or {})["class_names"])
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        in_order = sorted(weights, key=lambda name: int(name.partition(".")[0]))
        kernels = [weights[name] for name in in_order if weights[name].ndim == 4]
        channels = [len(kernel) for kernel in kernels[:-1]]
        model = SmallClassifier(len(class_names), channels)
        model.load_state_dict(weights)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{file} holds no classifier as examples/emoji/train_classifier.py writes it: {error}"
        ) from error
    return model.eval().requires_grad_(False), class_names
