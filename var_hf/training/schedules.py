"""Learning rate and weight decay over a transformer's training, as functions of the step."""

import math

#: Batch that the release states its learning rates for.
RELEASE_BATCH_SIZE = 256
#: Hidden size (VAR-d16's) that fine-tuning states its rates for, and the batch below which it
#: lowers them.
TUNED_HIDDEN_SIZE, TUNED_BATCH_SIZE = 1024, 8


def peak_learning_rate(
    base: float, batch_size: int, hidden_size: int, scaling: str = "batch"
) -> float:
    """Peak learning rate for a batch and a model size.

    Args:
        base: Peak for a batch of 256 images (``"batch"``), or for a hidden size of 1024
            (``"width"``).
        batch_size: Images per step.
        hidden_size: Width of the transformer.
        scaling: ``"batch"`` is ``base * batch_size / 256``, the rule of the release. ``"width"`` is
            ``base * 1024 / hidden_size * min(1, sqrt(batch_size / 8))``: matrices that are twice as
            wide need half the rate (arXiv 2203.03466, table 3), and in small batches the noise of
            Adam's steps asks for the square root of the batch (arXiv 2205.10287, section 4.2).
            Larger batches than 8 do not raise it, as in the training scripts of diffusers.
    """
    if scaling == "batch":
        return base * batch_size / RELEASE_BATCH_SIZE
    noise = min(1.0, math.sqrt(batch_size / TUNED_BATCH_SIZE))
    return base * TUNED_HIDDEN_SIZE / hidden_size * noise


def learning_rate_factor(
    step: int,
    num_steps: int,
    warmup_steps: int,
    warmup_start_factor: float = 0.005,
    final_lr_factor: float = 0.1,
    kind: str = "lin0",
) -> float:
    """Share of the peak learning rate at a step.

    After a linear warm-up, ``"lin0"`` stays flat for 5% of the remaining steps and then falls
    linearly to `final_lr_factor`; ``"cosine"`` falls along half a cosine.

    Args:
        step: Number of the step, from 0.
        num_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up.
        warmup_start_factor: Value at step 0; 0.005 in the release.
        final_lr_factor: Value at the last step; 0.1 for the release's d16 and d20, 0.01 for the
            larger ones.
        kind: ``"lin0"``, the release's schedule, or ``"cosine"``.

    Source: `lr_wd_annealing` of the VAR release.
    """
    if step < warmup_steps:
        return warmup_start_factor + (1 - warmup_start_factor) * step / warmup_steps
    passed = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    if kind == "cosine":
        share = 0.5 + 0.5 * math.cos(math.pi * passed)
    else:
        flat = 0.05
        share = min(1.0, (1 - passed) / (1 - flat))
    return final_lr_factor + (1 - final_lr_factor) * share


def weight_decay_at(step: int, num_steps: int, initial: float, final: float) -> float:
    """Weight decay at a step: half a cosine from `initial` to `final`, as in the release."""
    passed = min(1.0, step / max(1, num_steps - 1))
    return final + (initial - final) * (0.5 + 0.5 * math.cos(math.pi * passed))
