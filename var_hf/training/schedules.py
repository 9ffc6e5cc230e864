"""Learning rate and weight decay over a transformer's training, as functions of the step."""

import math


def learning_rate_factor(
    step: int,
    num_steps: int,
    warmup_steps: int,
    warmup_start_factor: float = 0.005,
    final_lr_factor: float = 0.1,
    kind: str = "lin0",
) -> float:
    """Share of the peak learning rate at a step.

    After a linear warm-up, ``"lin0"`` stays flat for 5% of the remaining steps and then falls linearly to
    `final_lr_factor`; ``"cosine"`` falls along half a cosine.

    Args:
        step: Number of the step, from 0.
        num_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up.
        warmup_start_factor: Value at step 0; 0.005 in the release.
        final_lr_factor: Value at the last step; 0.1 for the release's d16 and d20, 0.01 for the larger ones.
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
