"""Let var-emoji-64 name the classes of images that it has not seen, by Bayes' rule.

    python examples/emoji/classify_images.py --count 10

prints, as JSON, the share of drawn test images (`--count` of each of the 40 classes) whose class
is the likeliest one, and what was taken for what.
"""

import argparse
import json
import time
from collections import Counter

from draw import draw, read_drawing

from var_hf import VARPipeline
from var_hf.assets import VAR_EMOJI_64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--model", default=VAR_EMOJI_64, help="pipeline folder (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=10, help="images per class (default: 10)")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs at a time (default: 64)")
    arguments = parser.parse_args()

    pipe = VARPipeline.from_pretrained(arguments.model)
    names = [name for name in read_drawing().classes for _ in range(arguments.count)]
    images = [draw(name, i % arguments.count, split="test") for i, name in enumerate(names)]
    start = time.perf_counter()
    guesses = pipe.classify(images, top=1, batch_size=arguments.batch_size)
    seconds = time.perf_counter() - start

    found = [row[0]["label"] for row in guesses]
    mistakes = Counter(
        (name, guess) for name, guess in zip(names, found, strict=True) if name != guess
    )
    result = {
        "model": str(arguments.model),
        "images": len(names),
        "accuracy": sum(name == guess for name, guess in zip(names, found, strict=True))
        / len(names),
        "mistakes": [{"is": a, "taken_for": b, "times": n} for (a, b), n in mistakes.most_common()],
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
