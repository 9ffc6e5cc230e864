"""Measure exported graphs beside the pipeline: differences of logits, tokens and pixels, seconds.

    python benchmarks/onnx_graphs.py                # var-emoji-64
    python benchmarks/onnx_graphs.py --random-d16   # the released size d16, random weights

Prints JSON, for each number format. Differences compare the graphs with the pipeline in float32 on
the tokens that the graphs drew (teacher forcing), so that one other token does not hide all later
ones. Both draw in turn, so that other load affects them equally.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from var_hf import MultiScaleVQVAE, NextScaleScheduler, VARConfig, VARModel, VARPipeline
from var_hf.evaluation.classifier import load_classifier
from var_hf.onnx import OnnxVARPipeline, drawing, export_onnx
from var_hf.onnx.metadata import DTYPES
from var_hf.onnx.random_numbers import uniform
from var_hf.pipelines.loading import load_pipeline
from var_hf.sampling_settings import guidance_shares

SEED = 0


def random_d16() -> VARPipeline:
    """The released size with weights of the magnitude that training gives."""
    models = [VARModel(VARConfig()), MultiScaleVQVAE()]
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for model in models:
            for name, tensor in model.eval().named_parameters():
                if name.endswith("logit_scale"):
                    continue
                tensor.normal_(generator=generator)
                if "norm" in name and tensor.ndim == 1:
                    tensor.mul_(0.1).add_(name.endswith("weight"))
                elif name.endswith("bias"):
                    tensor.mul_(0.1)
                elif "embedding" in name:
                    tensor.mul_(0.5)
                elif "codebook" not in name:
                    tensor.div_(math.sqrt(tensor[0].numel()))
    return VARPipeline(*models, NextScaleScheduler())


@torch.no_grad()
def differences(pipe: VARPipeline, runner: OnnxVARPipeline, class_ids: list[int]) -> dict:
    """Differences between the graphs and the pipeline for one batch."""
    outputs = list(runner.stream(class_ids, seed=SEED, preview="last", output_type="np"))
    quantizer, settings = pipe.vqvae.quantizer, pipe.resolve_settings()
    maps = [torch.from_numpy(output.tokens) for output in outputs]
    inputs, labels = quantizer.teacher_inputs(maps), torch.tensor(class_ids)
    conditional, unconditional = (
        pipe.transformer(each, inputs).logits.numpy()
        for each in (labels, torch.full_like(labels, pipe.transformer.config.num_classes))
    )
    shares, largest, squares, spread, same = guidance_shares(settings, len(maps)), 0.0, [], [], []
    for output, places in zip(outputs, pipe.transformer.config.token_slices, strict=True):
        strength = (settings.guidance_scale - 1) * shares[output.scale]
        logits = drawing.guide(conditional[:, places], unconditional[:, places], strength)
        error = output.logits - logits
        largest = max(largest, float(np.abs(error).max()))
        squares.append(np.square(error).mean())
        spread.append(logits.var())
        positions = np.arange(places.start, places.stop)
        for image, of_image in enumerate(logits):
            weights = drawing.weights(of_image, settings.top_k, settings.top_p)
            tokens = drawing.draw(weights, uniform(SEED, image, positions))
            same += (tokens == output.tokens[image]).tolist()
    latents = quantizer.decode(maps)
    pixels = np.abs(pipe.decode(latents, "np") - outputs[-1].image)
    return {
        "largest difference of a logit": largest,
        "difference of the logits, share of their spread": float(
            np.sqrt(np.mean(squares) / np.mean(spread))
        ),
        "other tokens, of": [len(same) - sum(same), len(same)],
        "largest difference of a pixel in [0, 1]": float(pixels.max()),
        "largest difference of a latent": float(
            np.abs(latents.numpy() - outputs[-1].latents).max()
        ),
    }


@torch.no_grad()
def recognised(runner: OnnxVARPipeline, classifier: Path, per_class: int) -> float:
    """Share of images that a classifier names as their class."""
    model, names = load_classifier(classifier)
    hits: list[bool] = []
    for class_id, name in runner.id2label.items():
        images = runner(
            class_id, num_images_per_prompt=per_class, seed=class_id, output_type="np"
        ).images
        logits = model(torch.from_numpy(images).movedim(-1, 1) * 2 - 1)
        hits += (logits.argmax(1) == names.index(name)).tolist()
    return sum(hits) / len(hits)


def seconds(draw, *arguments, **options) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    draw(*arguments, **options)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="var-emoji-64", help="default: %(default)s")
    parser.add_argument("--random-d16", action="store_true", help="instead of a model")
    parser.add_argument("--images", type=int, default=4, help="to compare (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--classifier", type=Path, help="such as emoji-classifier.safetensors")
    parser.add_argument("--per-class", type=int, default=20, help="images that it judges")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    arguments = parser.parse_args()

    pipe = (
        random_d16() if arguments.random_d16 else load_pipeline(arguments.model, "float32", "cpu")
    )
    pipe.set_progress_bar_config(disable=True)
    class_ids = list(range(arguments.images))
    results = {}
    for dtype in arguments.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            metadata = export_onnx(pipe, Path(folder) / "model", dtype=dtype)
            exported = time.perf_counter() - start
            runner = OnnxVARPipeline.from_pretrained(
                Path(folder) / "model", num_threads=torch.get_num_threads()
            )
            result = differences(pipe, runner, class_ids)
            if arguments.classifier is not None:
                result["recognised"] = recognised(runner, arguments.classifier, arguments.per_class)
            rounds = [
                (seconds(pipe, 1), seconds(runner, 1, seed=number))
                for number in range(arguments.rounds)
            ]
        sizes = {name: entry["size"] for name, entry in metadata.files.items()}
        torch_seconds, onnx_seconds = zip(*rounds, strict=True)
        results[dtype] = result | {
            "MB": round(sum(sizes.values()) / 1e6, 1),
            "MB without the encoder": round(
                sum(size for name, size in sizes.items() if "encoder" not in name) / 1e6, 1
            ),
            "seconds to export": round(exported, 2),
            "seconds of torch, one image": round(statistics.median(torch_seconds), 3),
            "seconds of onnxruntime, one image": round(statistics.median(onnx_seconds), 3),
            "ratio, median of pairs": round(
                statistics.median(ours / theirs for theirs, ours in rounds), 3
            ),
        }
        print(json.dumps({dtype: results[dtype]}, indent=2), flush=True)


if __name__ == "__main__":
    main()
