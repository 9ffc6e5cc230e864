"""Draw the best of several candidates by different judges, and count what a classifier recognises.

    python examples/emoji/search_images.py outputs/emoji/classifier-1.safetensors --count 5

prints, as JSON, for plain generation and for each search, how many images the classifier names
rightly and how far apart the images of a class are. The classifier is not the one that judges:
train it with another seed (`train_classifier.py --seed 1`). Without guidance, more images fail,
and a search has something to find.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge_images import draw_images, judge, spread

from var_hf import VARPipeline
from var_hf.assets import VAR_EMOJI_64
from var_hf.evaluation.classifier import load_classifier
from var_hf.pipelines.search import ClassifierJudge

SHIPPED = VAR_EMOJI_64.with_name("emoji-classifier.safetensors")


def searches(pipe: VARPipeline, judge_file: Path, candidates: int) -> dict[str, dict[str, Any]]:
    """The arguments of each search, by name."""
    module, names = load_classifier(judge_file)
    ids = range(pipe.transformer.config.num_classes)
    classifier = ClassifierJudge(module, [names.index(pipe.id2label[i]) for i in ids])
    by_classifier = {"candidates": candidates, "judge": classifier}
    return {
        "plain": {},
        "likelihood": {"candidates": candidates, "judge": "likelihood"},
        "classifier": by_classifier,
        "classifier, also after scales 3 and 5": by_classifier | {"judged_scales": [3, 5]},
    }


def main() -> None:
    """Draw, recognise, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("--model", default=VAR_EMOJI_64, help="default: %(default)s")
    parser.add_argument("--judge", type=Path, default=SHIPPED, help="default: %(default)s")
    parser.add_argument("--candidates", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=5, help="images per class (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="default: %(default)s")
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    recogniser = load_classifier(arguments.classifier)
    result: dict[str, Any] = {"guidance_scale": arguments.guidance_scale}
    for name, options in searches(pipe, arguments.judge, arguments.candidates).items():
        start = time.perf_counter()
        by_class = draw_images(
            pipe,
            arguments.count,
            arguments.batch_size,
            seed=0,
            guidance_scale=arguments.guidance_scale,
            **options,
        )
        seconds = time.perf_counter() - start
        rates = judge(by_class, *recogniser)
        result["images"] = arguments.count * len(rates)
        result[name] = {
            "recognised": round(float(np.mean(list(rates.values()))), 4),
            "spread": round(float(np.mean([spread(images) for images in by_class.values()])), 2),
            "seconds": round(seconds, 1),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
