"""Coverage-guided fuzzing of the readers of foreign files, with atheris.

    python tests/fuzz/fuzz.py pth --seconds 600

Archives are changed as bytes, and by changing one member and writing the archive anew with right
checksums, which would else stop the fuzzer. Names and values of the JSON examples are a dictionary.

libFuzzer starts from tests/fuzz/corpus/TARGET and from the inputs that earlier runs left in
build/fuzz/TARGET, where it keeps new ones. A finding is an error that is neither a ValueError nor
an OSError on one line, more than five seconds of computing, or more than 3 GB. libFuzzer prints it,
writes the input to build/fuzz/TARGET-*, and ends. `write-corpus` writes the valid examples of
tests/fuzz/targets.py to the corpus.
"""

import argparse
import json
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import atheris

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "build" / "fuzz"
MOST_SECONDS = 5  # of computing, for one input of 8 KB at most

READERS = ["var_hf", "zipfile", "pickletools", "json", "numpy.lib", "PIL"]
with atheris.instrument_imports(include=READERS):
    from targets import TARGETS, examples, json_examples, zip_members, zip_of

    for _target, _files in examples().items():
        for _content in _files.values():
            TARGETS[_target](_content)  # imports what would count as time of the first input


def corpus(target: str) -> Path:
    """The folder with the kept inputs of a target."""
    return HERE / "corpus" / target


def write_corpus() -> None:
    """Write the examples as the corpus of every target."""
    for target, files in examples().items():
        corpus(target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (corpus(target) / name).write_bytes(content)


def change_archive(content: bytes, max_size: int, seed: int) -> bytes:
    """Change one member of an archive, or the archive itself."""
    chance = random.Random(seed)
    members: dict[str, bytes] = {}
    if len(content) < max_size and chance.random() < 0.75:
        with suppress(Exception):  # no archive, or one that the reader refuses
            members = zip_members(content)
    if not members:
        return atheris.Mutate(content, max_size)
    name = chance.choice(sorted(members))
    members[name] = atheris.Mutate(members[name], len(members[name]) + 64)
    return zip_of(members)[:max_size]


def write_dictionary(file: Path) -> Path:
    """Every name and value of the JSON examples, and what a JSON parser tells apart."""
    words = {"NaN", "Infinity", "-1", "1e999", "true", "null", "{}", "[]", '"', "\\u0000"}
    for example in json_examples().values():
        for name, value in example.items():
            words |= {json.dumps(name), json.dumps(value)}
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in sorted(words))
    file.write_text("".join(f'"{word}"\n' for word in escaped))
    return file


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one reader."""
    kept = OUTPUT / target
    kept.mkdir(parents=True, exist_ok=True)
    read = TARGETS[target]

    def read_in_time(content: bytes) -> None:
        started = time.process_time()
        read(content)
        took = time.process_time() - started
        assert took < MOST_SECONDS, f"{took:.1f} s for {len(content)} bytes"

    options = [
        f"-max_total_time={seconds}",
        "-max_len=8192",
        "-timeout=120",  # of the clock, for an input that never ends
        "-rss_limit_mb=3000",
        f"-artifact_prefix={OUTPUT}/{target}-",
        "-print_final_stats=1",
    ]
    mutator = {}
    if target in ("pth", "npz"):
        mutator["custom_mutator"] = change_archive
    if target == "config":
        options.append(f"-dict={write_dictionary(OUTPUT / 'config.dict')}")
    folders = [str(kept), str(corpus(target))]
    atheris.Setup([sys.argv[0], *options, *folders], read_in_time, **mutator)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=[*TARGETS, "write-corpus"])
    parser.add_argument("--seconds", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.target == "write-corpus":
        write_corpus()
    else:
        fuzz(arguments.target, arguments.seconds)


if __name__ == "__main__":
    main()
