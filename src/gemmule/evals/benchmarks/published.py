"""Scores of the pre-trained models in the Gemma 2 report, to show next to a user's own."""

from collections.abc import Mapping
from types import MappingProxyType

SOURCE = "Gemma 2 report (arXiv 2408.00118), its table of pre-trained models"
# All weights of the released checkpoints, including the embedding of 256,000 tokens.
PARAMETERS: Mapping[str, int] = MappingProxyType(
    {
        "Gemma 2 2B": 2_614_341_888,
        "Gemma 2 9B": 9_241_705_984,
        "Gemma 2 27B": 27_227_128_320,
    }
)
_PERCENT: Mapping[str, tuple[float, float, float]] = {
    "mmlu": (52.2, 71.3, 75.2),
    "arc-c": (55.7, 68.4, 71.4),
    "gsm8k": (24.3, 68.6, 74.0),
    "agieval": (31.5, 52.8, 55.1),
    "drop": (51.2, 69.4, 74.2),
    "bbh": (41.9, 68.2, 74.9),
    "winogrande": (71.3, 80.6, 83.7),
    "hellaswag": (72.9, 81.9, 86.4),
    "math": (16.0, 36.6, 42.3),
    "arc-e": (80.6, 88.0, 88.6),
    "piqa": (78.4, 81.7, 83.2),
    "siqa": (51.9, 53.4, 53.7),
    "boolq": (72.7, 84.2, 84.8),
    "triviaqa": (60.4, 76.6, 83.7),
    "nq": (17.1, 29.2, 34.5),
    "humaneval": (20.1, 40.2, 51.8),
    "mbpp": (30.2, 52.4, 62.6),
}


def published(name: str) -> Mapping[str, float]:
    """A benchmark's published scores in percent, by model; empty where the report has none."""
    return dict(zip(PARAMETERS, _PERCENT[name], strict=True)) if name in _PERCENT else {}
