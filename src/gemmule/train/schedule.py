"""Learning-rate schedules: pure functions of the step."""

import math

from gemmule.train.config import ScheduleConfig


def learning_rate_factor(step: int, steps: int, config: ScheduleConfig) -> float:
    """Fraction of the peak learning rate at zero-based `step` of `steps`.

    Warm-up rises linearly. Then "wsd" stays at the peak and falls linearly at the end (arXiv
    2404.06395), and "cosine" falls along half a cosine.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "cosine":
        fraction = (step - warmup) / max(1, steps - warmup)
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * fraction)) / 2
    decay = round(config.decay * steps)
    fraction = min(1.0, (steps - step) / (decay + 1)) if decay else 1.0
    return config.final + (1 - config.final) * fraction
