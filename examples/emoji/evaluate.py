"""Measure var-emoji-64 as docs/evaluation.md shows it, and reproduce each reason why two FIDs
differ.

    python examples/emoji/evaluate.py outputs/emoji/data outputs/emoji/evaluation

With several processes (`accelerate launch` or `torchrun`) all of them draw, and the first one
measures. What was drawn before is kept. Writes report/, tokenizer/, sweep/ and numbers.json, and
prints the numbers as tables.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from train_classifier import train

from var_hf import VARPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.evaluation.classifier import save_classifier
from var_hf.evaluation.evaluate import Evaluation, Reference, evaluate_samples, prepare_reference
from var_hf.evaluation.features import FeatureExtractor, load_features
from var_hf.evaluation.image_sources import (
    ImageSource,
    open_samples,
    open_source,
    source_of_dataset,
)
from var_hf.evaluation.metrics import inception_score
from var_hf.evaluation.report import write_report
from var_hf.evaluation.sample_plan import SamplePlan, Share, image_seed
from var_hf.evaluation.sampling import sample_images
from var_hf.evaluation.sweep import evaluate_sweep, sample_sweep
from var_hf.evaluation.tokenizer import measure_tokenizer
from var_hf.files import write_json
from var_hf.image_files import open_image
from var_hf.images import ImageDataset, ImageTransform, open_images

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
BATCH_SIZE = 40
COLUMNS = ("fid", "sfid", "inception_score", "precision", "recall")


def source_of_array(images: np.ndarray, name: str, labels: np.ndarray | None = None) -> ImageSource:
    """Images uint8 ``(N, P, P, 3)`` in memory as something to measure."""
    return ImageSource(
        name=name,
        kind="array",
        sha256="",
        count=len(images),
        image_size=images.shape[1],
        read=lambda: iter(images),
        labels=labels,
    )


def one_seed_for_all_classes(
    pipe: VARPipeline, plan: SamplePlan, settings: dict[str, Any], file: Path
) -> np.ndarray:
    """Images in [0, 1], ``(N, P, P, 3)``; every class gets the random numbers of class 0."""
    if file.exists():
        return np.load(file)
    drawn = []
    for shard in tqdm(range(plan.num_shards), desc="one seed for all classes"):
        for positions in plan.batches(shard):
            images = [plan.image(position) for position in positions]
            seeds = [image_seed(plan.seed, 0, index) for _, index in images]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            labels = [class_id for class_id, _ in images]
            output = pipe(labels, **settings, generator=generators, output_type="pt").images
            drawn.append(output.permute(0, 2, 3, 1).numpy())
    images = np.concatenate(drawn)
    np.save(file, images)
    return images


def as_jpeg(images: Sequence[np.ndarray], quality: int) -> Iterator[np.ndarray]:
    """Images that went through a JPEG file."""
    for image in images:
        file = BytesIO()
        Image.fromarray(image).save(file, format="jpeg", quality=quality)
        yield np.asarray(open_image(file))


def cropped(images: ImageDataset, factor: float) -> np.ndarray:
    """All images, enlarged and cut to their size again."""
    transform = ImageTransform(images.read(0).width, factor)
    pixels = [transform(images.read(n), 0, n).permute(1, 2, 0).numpy() for n in range(len(images))]
    return np.stack(pixels)


def row(cause: str, found: Evaluation) -> dict[str, Any]:
    """One line of the table of causes."""
    return {"cause": cause, "images": found.result["images"]} | {
        name: found.result[name] for name in COLUMNS
    }


def causes(
    samples: ImageSource,
    balanced: Sequence[int],
    shared: np.ndarray,
    images: ImageDataset,
    train_images: ImageDataset,
    reference: Reference,
    extractor: FeatureExtractor,
    other: FeatureExtractor,
) -> list[dict[str, Any]]:
    """What each reason for another FID does to the numbers of one sample set.

    `balanced` are positions in it, of as many images of every class as `shared` holds.
    """

    def evaluate(
        source: ImageSource,
        against: Reference = reference,
        by: FeatureExtractor = extractor,
    ) -> Evaluation:
        return evaluate_samples(source, against, by, min_images=0)

    drawn = np.stack(list(samples.read()))
    labels = samples.labels
    assert labels is not None
    found = evaluate(samples)
    rows = [row("the sample set", found)]

    # Order: blocks of a tenth of the set, as 5,000 of 50,000 are.
    block = samples.count // 10
    by_class = np.argsort(labels, kind="stable")
    for cause, order in (
        ("shuffled", np.arange(samples.count)),
        ("sorted by class", by_class),
    ):
        score = inception_score(found.samples.probabilities[order], block)
        rows.append(
            row(f"{cause}, Inception Score in blocks of {block}", found)
            | {"inception_score": score}
        )

    for count in (samples.count // 8, samples.count // 4, samples.count // 2):
        rows.append(
            row(f"the first {count} images", evaluate(source_of_array(drawn[:count], "fewer")))
        )

    against_train = prepare_reference(source_of_dataset(train_images, "train"), extractor)
    rows.append(row("against as many training images", evaluate(samples, against_train)))
    crop = prepare_reference(source_of_array(cropped(images, 1.125), "crop"), extractor)
    rows.append(row("against a reference cropped to 8/9", evaluate(samples, crop)))
    of_other = prepare_reference(source_of_dataset(images, "test"), other)
    rows.append(
        row(
            "other features: the network trained from another seed",
            evaluate(samples, of_other, other),
        )
    )

    for quality in (95, 75):
        jpeg = np.stack(list(as_jpeg(drawn, quality)))
        rows.append(
            row(f"saved as JPEG, quality {quality}", evaluate(source_of_array(jpeg, "jpeg")))
        )

    rounded = np.rint(shared * 255).astype(np.uint8)
    cut = (shared * 255).astype(np.uint8)
    few = source_of_array(drawn[list(balanced)], "few")
    rows.append(row("a few images of every class", evaluate(few)))
    rows.append(
        row("as many, one seed for all classes", evaluate(source_of_array(rounded, "shared")))
    )
    rows.append(row("the same, cut off instead of rounded", evaluate(source_of_array(cut, "cut"))))
    return rows


def tokenizer_numbers(
    pipe: VARPipeline, images: ImageDataset, extractor: FeatureExtractor, folder: Path
) -> dict[str, Any]:
    """The tokenizer on the test images, and its rFID against two references that people use."""
    result, grid = measure_tokenizer(pipe.vqvae, images, extractor)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)
    grid.save(folder / "reconstructions.png")
    return result


def markdown(rows: Sequence[dict[str, Any]], first: str) -> str:
    """Rows as a table for the documentation."""
    names = [name for name in (first, "images", *COLUMNS) if name in rows[0]]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for entry in rows:
        cells = [
            f"{entry[name]:.2f}" if isinstance(entry[name], float) else str(entry[name])
            for name in names
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Draw, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder written by draw.py")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--pipeline", default=str(VAR_EMOJI_64), help="default: the shipped model")
    parser.add_argument("--per-class", type=int, default=50, help="default: %(default)s")
    parser.add_argument(
        "--sweep-per-class", type=int, default=10, help="for each guidance scale (%(default)s)"
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    share, output = Share.from_environment(), arguments.output
    pipe = VARPipeline.from_pretrained(arguments.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    settings = pipe.resolve_settings()
    plan = SamplePlan(len(pipe.id2label), arguments.per_class, batch_size=BATCH_SIZE)
    sweep_plan = replace(plan, images_per_class=arguments.sweep_per_class)
    model = Path(arguments.pipeline).name
    sample_images(pipe, output / "samples", plan, settings, model=model, share=share)
    sample_sweep(pipe, output / "sweep", sweep_plan, settings, SCALES, model=model, share=share)
    if not share.is_first:
        return
    # A quarter of each class, to be held against the same images drawn with seeds of their own.
    quarter = replace(plan, images_per_class=max(1, plan.images_per_class // 4))
    shared = one_seed_for_all_classes(pipe, quarter, asdict(settings), output / "one-seed.npy")
    balanced = [n for n in range(len(plan)) if plan.image(n)[1] < quarter.images_per_class]

    extractor = load_features("emoji")
    images = open_images(arguments.data, "test")
    train_images = open_images(arguments.data, "train")
    chosen = np.linspace(0, len(train_images) - 1, len(images)).round().astype(int).tolist()
    other_file = output / "other-classifier.safetensors"
    if not other_file.exists():
        classifier, names = train(arguments.data, steps=500, seed=1)
        save_classifier(classifier, names, other_file)
    other = load_features(str(other_file))

    reference = prepare_reference(open_source(arguments.data, "test"), extractor)
    samples = open_samples(output / "samples")
    evaluation = evaluate_samples(samples, reference, extractor, min_images=plan.num_classes)
    write_report(output / "report", evaluation, reference)
    sweep = evaluate_sweep(output / "sweep", SCALES, reference, extractor, min_images=0)
    tokenizer = tokenizer_numbers(pipe, images, extractor, output / "tokenizer")
    training_images = source_of_dataset(train_images.select(chosen), "train")
    real = evaluate_samples(training_images, reference, extractor, min_images=0)
    rows = causes(
        samples, balanced, shared, images, train_images.select(chosen), reference, extractor, other
    )
    rows.insert(0, row("as many real training images", real))
    numbers = {
        "model": evaluation.result["samples"],
        "causes": rows,
        "sweep": sweep["points"],
        "tokenizer": tokenizer,
    }
    write_json(output / "numbers.json", numbers)
    print(markdown(rows, "cause"))
    print(markdown(sweep["points"], "guidance_scale"))
    print(json.dumps(tokenizer, indent=2))


if __name__ == "__main__":
    main()
