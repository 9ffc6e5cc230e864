"""Train a small classifier of the drawn emoji: the judge of what the models generate.

    python examples/emoji/train_classifier.py data/emoji classifier.safetensors

prints its accuracy on the validation and test splits, which were not used in training. The side of
the images is a power of two.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from var_hf.evaluation.classifier import SmallClassifier, save_classifier
from var_hf.images import (
    ImageTransform,
    TrainingSamples,
    collate,
    normalize,
    open_images,
)
from var_hf.training.order import StepSampler


def channels_for(image_size: int) -> list[int]:
    """Widths of the strided convolutions, which halve the images down to 4 x 4."""
    return [min(16 * 2**level, 128) for level in range(int(math.log2(image_size / 4)))]


@torch.no_grad()
def accuracy(model: nn.Module, data: str | Path, split: str, class_names: list[str]) -> float:
    """Share of the images of a split that the model names rightly.

    Raises:
        ValueError: The split has other classes than the model.
    """
    images = open_images(data, split)
    if images.class_names != class_names:
        raise ValueError(f"{data}, split {split!r}: its classes are not those of the classifier.")
    samples = TrainingSamples(images, ImageTransform(images.read(0).width))
    right = 0
    for start in range(0, len(samples), 100):
        rows = range(start, min(start + 100, len(samples)))
        pixels, labels, _ = collate([samples[0, index] for index in rows])
        right += (model(normalize(pixels)).argmax(dim=1) == labels).sum().item()
    return right / len(samples)


def train(
    data: str | Path,
    *,
    steps: int = 2500,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> tuple[SmallClassifier, list[str]]:
    """Train on the split ``train`` of a data set written by draw.py.

    Args:
        data: The data set's folder.
        steps: Optimisation steps.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's one cosine.
        seed: Seeds weights and order.
    """
    images = open_images(data, "train")
    if images.class_names is None:
        raise ValueError(f"{data} has no class folders; write it with draw.py.")
    image_size = images.read(0).width
    torch.manual_seed(seed)
    model = SmallClassifier(len(images.class_names), channels_for(image_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    sampler = StepSampler(len(images), batch_size, 0, steps, seed)
    samples = TrainingSamples(images, ImageTransform(image_size))
    batches = DataLoader(samples, batch_sampler=sampler, collate_fn=collate)
    bar = tqdm(batches, unit="step")
    for step, (pixels, labels, _) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss: Tensor = functional.cross_entropy(model(normalize(pixels)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval(), list(images.class_names)


def main() -> None:
    """Train, save and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder written by draw.py")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=2500, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    model, class_names = train(arguments.data, steps=arguments.steps, seed=arguments.seed)
    save_classifier(model, class_names, arguments.output)
    report = {
        "steps": arguments.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "validation_accuracy": accuracy(model, arguments.data, "validation", class_names),
        "test_accuracy": accuracy(model, arguments.data, "test", class_names),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
