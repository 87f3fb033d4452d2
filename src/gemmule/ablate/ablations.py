"""The ablations by name, as data; light to import, so that the command line can list them."""

import dataclasses
from collections.abc import Mapping

from gemmule.config import nearest
from gemmule.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One question, and the report's answer.

    Attributes:
        title: the comparison, in one line.
        table: table of the report; None if the question is ours.
        report: rows of the report's table; the first row is the heading.
        differs: differences between our ablation and the report's.
        student: default preset of the student.
        metric: key of the metric that is compared.
        teaches: whether any cell learns from a teacher.
    """

    title: str
    table: str | None = None
    report: tuple[tuple[str, ...], ...] = ()
    differs: str = ""
    student: str = "1m"
    metric: str = "nats_per_token"
    teaches: bool = True


REPORT = "Gemma 2 report, arXiv 2408.00118"

CATALOGUE: Mapping[str, Ablation] = {
    "distilled": Ablation(
        "distilled against from scratch, at equal tokens",
        "T6",
        (("", "mean of 3 benchmarks"), ("from scratch", "60.3"), ("distilled", "67.7")),
        "There: 2B trained on 500B tokens, 7B teacher, benchmarks. Here: loss on held-out text.",
    ),
    "size": Ablation(
        "the gap between distilled and scratch by student size, and the size factor",
        "T7",
        (
            ("perplexity", "200M", "400M", "1B"),
            ("from scratch", "23", "19", "17"),
            ("distilled (7B teacher)", "21", "17", "15"),
        ),
        "There: 200M to 1B, 7B teacher. Here: about a thousand times smaller, own text.",
    ),
    "heads": Ablation(
        "grouped-query against multi-head attention",
        "T8",
        (("9B", "mean of 4 benchmarks"), ("MHA", "50.3"), ("GQA", "50.8")),
        "Grouping the key and value heads saves parameters: GQA is trained both as it comes out "
        "and with the feed-forward layer widened until the counts are equal.",
        teaches=False,
    ),
    "depth": Ablation(
        "deep against wide, at equal non-embedding parameters",
        "T9",
        (("9B", "mean of 4 benchmarks"), ("wide", "50.8"), ("deep", "52.0")),
        "Wide has twice as wide an embedding as deep: with a small model that is a good part of "
        "all parameters, which the table shows.",
        teaches=False,
    ),
    "window": Ablation(
        "the sliding window shrunk at inference",
        "T10",
        (("window at inference", "4096", "2048", "1024"), ("perplexity", "1.63", "1.63", "1.64")),
        "The window is a quarter of the sequence in training, then a half and a quarter of that.",
        teaches=False,
    ),
    "loss": Ablation(
        "which divergence from the teacher, temperature, weight of the next-token loss"
    ),
    "targets": Ablation("ways to store a teacher's predictions, by bytes per token"),
    "teacher": Ablation("how large a teacher", student="0.25m"),
    "induction": Ablation(
        "does the model copy what it saw before (in-context learning)", metric="induction"
    ),
    "mixture": Ablation(
        "weights of several data folders, by the loss on each",
        differs="The report chose its mixture by ablations like these, and does not print them.",
        metric="mean_source_nats",
        teaches=False,
    ),
    "routing": Ablation("tokens that the teacher is unsure of learn from the text itself"),
}


def find(name: str) -> Ablation:
    """The ablation called `name`.

    Raises:
        ConfigError: naming the nearest, when there is none.
    """
    if name not in CATALOGUE:
        raise ConfigError(f"no ablation {name!r}; {nearest(name, list(CATALOGUE))}")
    return CATALOGUE[name]


def listing() -> list[list[str]]:
    """A row each: name, what is compared, the report's table."""
    return [
        [name, a.title, f"report, table {a.table[1:]}" if a.table else "ours"]
        for name, a in CATALOGUE.items()
    ]
