"""A model's own samples as tokens to train on: the fakes of DDO, and the data of Neon.

The tokens are those that were drawn. The images are not decoded and encoded again, which would
change some of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from var_hf.evaluation.sample_plan import image_seed
from var_hf.evaluation.sampling import model_digest
from var_hf.pipelines.pipeline_var import VARPipeline
from var_hf.processes import process_state
from var_hf.training.token_cache import (
    FORMAT,
    TokenCache,
    fill_cache,
    tokenizer_digest,
    write_shard,
)

#: Images that are drawn, written and resumed together.
SHARD_SIZE = 256


def draw_samples(
    pipe: VARPipeline,
    folder: Path,
    class_ids: Sequence[int],
    samples_per_class: int,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    batch_size: int = 64,
) -> TokenCache:
    """Draw token maps of some classes, or those that are missing.

    Each image has a seed of its own, and its micro-batch depends on its number alone, so the tokens
    do not depend on the number of processes.

    Args:
        pipe: The model. It is moved to the device of this process.
        folder: Where the cache lies, or is to lie. Its class ids are those of the model.
        class_ids: Classes to draw.
        samples_per_class: Images of each class.
        settings: Sampling settings as in [`VARPipeline`]; others are as stored with the pipeline.
        seed: Seeds the images.
        batch_size: Images drawn at a time.

    Raises:
        ValueError: A setting is unknown or out of range, or the folder holds something else.
        FolderInUseError: Another process draws into the folder.
    """
    try:
        resolved = pipe.resolve_settings(**settings)
    except TypeError as error:
        raise ValueError(f"draw holds an unknown sampling setting: {error}") from error
    pipe = pipe.to(process_state().device)
    pipe.set_progress_bar_config(disable=True)
    quantizer = pipe.vqvae.quantizer
    jobs = [(class_id, index) for class_id in class_ids for index in range(samples_per_class)]
    description = {
        "format": FORMAT,
        "images": f"drawn by the model {model_digest(pipe)}",
        "num_images": len(jobs),
        "class_names": None,
        "tokenizer": tokenizer_digest(pipe.vqvae),
        "token_map_sizes": list(quantizer.token_map_sizes),
        "codebook_size": quantizer.codebook.num_embeddings,
        "class_ids": list(class_ids),
        "settings": vars(resolved),
        "seed": seed,
        "batch_size": batch_size,
        "copies": 1,
        "shard_size": SHARD_SIZE,
    }

    def write(file: Path, numbers: range, bar: tqdm) -> None:
        drawn = []
        for start in range(0, len(numbers), batch_size):
            batch = [jobs[number] for number in numbers[start : start + batch_size]]
            scales = pipe.stream(
                [class_id for class_id, _ in batch],
                generator=[torch.Generator().manual_seed(image_seed(seed, *job)) for job in batch],
                output_type="latent",
                **settings,
            )
            drawn.append(torch.cat([scale.tokens.cpu() for scale in scales], dim=1))  # (B, L)
            bar.update(len(batch))
        labels = torch.tensor([jobs[number][0] for number in numbers])
        write_shard(
            file,
            torch.cat(drawn)[:, None],
            labels,
            numbers,
            codebook_size=quantizer.codebook.num_embeddings,
        )

    return fill_cache(folder, description, "draw", write)
