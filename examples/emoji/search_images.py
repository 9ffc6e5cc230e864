"""Draw the best of several candidates by different judges, and count what a classifier recognises.

    python examples/emoji/search_images.py outputs/emoji-128/classifier.safetensors --count 5

prints, as JSON, for plain generation and for each search, how many images the classifier names
rightly and how far apart the images of a class are. The classifier is not the one that judges: it
was trained with another seed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge_images import draw_images, judge, mean_spread

from var_hf import VARPipeline
from var_hf.assets import DEFAULT_MODEL, shipped_model
from var_hf.evaluation.classifier import load_classifier
from var_hf.pipelines.search import ClassifierJudge

SEARCHES = ("plain", "likelihood", "classifier", "classifier-between-scales")


def searches(pipe: VARPipeline, judge: str, candidates: int) -> dict[str, dict[str, Any]]:
    """The arguments of each of the `SEARCHES`; the last judges after scales 3 and 5, too."""
    module, names = load_classifier(judge)
    ids = range(pipe.transformer.config.num_classes)
    classifier = ClassifierJudge(module, [names.index(pipe.id2label[i]) for i in ids])
    by_classifier = {"candidates": candidates, "judge": classifier}
    by_likelihood = {"candidates": candidates, "judge": "likelihood"}
    between_scales = by_classifier | {"judged_scales": [3, 5]}
    return dict(zip(SEARCHES, ({}, by_likelihood, by_classifier, between_scales), strict=True))


def main() -> None:
    """Draw, recognise, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", type=Path, help="file written by train_classifier.py")
    parser.add_argument("--model", default=DEFAULT_MODEL.name, help="default: %(default)s")
    parser.add_argument(
        "--judge", default="emoji-128", help="shipped classifier or file (%(default)s)"
    )
    parser.add_argument(
        "--searches", nargs="+", choices=SEARCHES, default=SEARCHES, help="default: all"
    )
    parser.add_argument("--candidates", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=5, help="images per class (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--guidance-scale", type=float, help="default: as shipped")
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(shipped_model(arguments.model), dtype=torch.float32)
    recogniser = load_classifier(arguments.classifier)
    result: dict[str, Any] = {"guidance_scale": arguments.guidance_scale}
    found = searches(pipe, arguments.judge, arguments.candidates)
    for name in arguments.searches:
        start = time.perf_counter()
        by_class = draw_images(
            pipe,
            arguments.count,
            arguments.batch_size,
            seed=arguments.seed,
            guidance_scale=arguments.guidance_scale,
            **found[name],
        )
        seconds = time.perf_counter() - start
        rates = judge(by_class, *recogniser)
        result["images"] = arguments.count * len(rates)
        result[name] = {
            "recognised": round(float(np.mean(list(rates.values()))), 4),
            "worst": dict(sorted(rates.items(), key=lambda item: item[1])[:3]),
            "spread": round(mean_spread(by_class), 2),
            "seconds": round(seconds, 1),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
