"""Coverage-guided fuzzing of the readers of foreign files, with atheris.

    python tests/fuzz/fuzz.py pth --seconds 600

The corpus in tests/fuzz/corpus/TARGET is read; new inputs go into build/fuzz/TARGET and are thrown away. A finding is an error that is
neither a ValueError nor an OSError on one line, more than a second, or more than 1 GB: libFuzzer then prints it and writes the input
into build/fuzz.
"""

import argparse
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "build" / "fuzz"

with atheris.instrument_imports(
    include=["var_hf", "zipfile", "pickletools", "json", "numpy.lib", "PIL"]
):
    from targets import TARGETS, examples


def write_corpus() -> None:
    """Write the examples as the corpus of every target."""
    for target, files in examples().items():
        (HERE / "corpus" / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (HERE / "corpus" / target / name).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*TARGETS, "write-corpus"])
    parser.add_argument("--seconds", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.target == "write-corpus":
        write_corpus()
        return
    found = OUTPUT / arguments.target
    found.mkdir(parents=True, exist_ok=True)
    target = TARGETS[arguments.target]

    def read(content: bytes) -> None:
        target(content)

    options = [
        f"-max_total_time={arguments.seconds}", "-max_len=8192", "-timeout=5", "-rss_limit_mb=3000",
        f"-artifact_prefix={OUTPUT}/{arguments.target}-", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(
        [sys.argv[0], *options, str(found), str(HERE / "corpus" / arguments.target)], read
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
