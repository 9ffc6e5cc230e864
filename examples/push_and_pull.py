"""Push a pipeline folder to the Hub, pull it back into an empty cache, and compare.

    hf auth login
    python examples/push_and_pull.py var-d16-256 me/var-d16-256

The repository is private if it is new, and carries its own code, so that diffusers and transformers
can load it without this package; the last lines say how. HF_ENDPOINT names another Hub than
huggingface.co.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi
from torch import nn

from var_hf import VARPipeline
from var_hf.hub import pull_everything, push_folder
from var_hf.provenance import verify


def have_equal_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def draw(pipe: VARPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe([0, 1], generator=torch.Generator().manual_seed(0), output_type="pt").images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pipeline folder, as var-hf convert writes it")
    parser.add_argument("repository", help="Hub repository as user/name")
    parser.add_argument("--delete", action="store_true", help="delete the repository afterwards")
    arguments = parser.parse_args()

    commit = push_folder(arguments.folder, arguments.repository, with_code=True, private=True)
    print(f"pushed in one commit: {commit.commit_url}")

    with tempfile.TemporaryDirectory() as cache:
        local = VARPipeline.from_pretrained(arguments.folder)
        # A revision pins what was pushed: nobody can put something else in its place.
        pulled = VARPipeline.from_pretrained(
            arguments.repository, revision=commit.oid, cache_dir=cache
        )
        equal = have_equal_weights(pulled.transformer, local.transformer)
        equal &= have_equal_weights(pulled.vqvae, local.vqvae)
        print(f"the same weights: {equal}")
        print(f"the same images: {torch.allclose(draw(pulled), draw(local), atol=1e-5)}")

        found = verify(pull_everything(arguments.repository, cache_dir=cache))
        print(f"every file as provenance.json lists it: {found.ok}")

    if arguments.delete:
        HfApi().delete_repo(arguments.repository)
        print("deleted")
        return
    print("without this package:")
    print(
        f'  DiffusionPipeline.from_pretrained("{arguments.repository}", revision="{commit.oid}", '
        f"trust_remote_code=True)"
    )


if __name__ == "__main__":
    main()
