"""What to expect of a text that is read several times: from measurements alone.

The scaling law does not know repeated text, and no other law is used here. A measurement on the
planned corpus (a quickstart among --runs) comes first. Without one, the measurements that
bench/scarce_text.py wrote into measured_scarce_text.json are shown where they are near: of models
of the planned sizes, and of texts of about the corpus's size. Otherwise the answer is that it is
not known.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.model.config import GemmaConfig
from gemmule.runs.layout import QuickstartLayout
from gemmule.runs.schema import Comparison, Manifest
from gemmule.stats import student_mean

MEASURED = Path(__file__).parent / "measured_scarce_text.json"
NEAR = 2.0  # factor between sizes that are taken for about the same
MEASURE = "measure it with gemmule quickstart --data TEXT, and give its folder with --runs"


def scarce_text(
    tokens: int,
    fingerprint: str | None,
    teacher: GemmaConfig,
    student: GemmaConfig,
    runs: Sequence[Path],
) -> dict[str, Any]:
    """The best loss that little text gives, from scratch and distilled.

    Args:
        tokens: training tokens of the planned corpus; 0 if there is none yet.
        fingerprint: its fingerprint; None if there is none yet.
        teacher: shape of the teacher.
        student: shape of the student.
        runs: folders given with --runs.

    Returns:
        JSON-able: "verdict", and "rows" of measurements, each with "text", "tokens", "scratch" and
        "distilled" ("nats_per_token", "epochs" to the best state, "schedule_epochs"), "better_by"
        (mean of paired differences with half of its 95% interval), and "same_text".

    Raises:
        CheckpointError: when a quickstart among `runs` is broken.
    """
    own = [row for folder in runs for row in _of_quickstart(folder, fingerprint, student)]
    if own:
        return {"rows": own, "verdict": f"measured on this text: {_in_words(own)}"}
    if not tokens:
        return {"rows": [], "verdict": f"not known without --data: {MEASURE}"}
    rows = _near(tokens, teacher, student)
    if not rows:
        return {
            "rows": [],
            "verdict": f"not known for {tokens:,} tokens and models of these sizes: {MEASURE}",
        }
    words = _in_words(rows)
    return {"rows": rows, "verdict": f"{words}; measured on another text: for yours, {MEASURE}"}


def _of_quickstart(
    folder: Path, fingerprint: str | None, student: GemmaConfig
) -> list[dict[str, Any]]:
    """The comparison of a finished quickstart on the planned corpus with a student of that size."""
    layout = QuickstartLayout(folder)
    if fingerprint is None or not layout.comparison.is_file():
        return []
    scarce = Comparison.read(layout.comparison).scarce_text
    if scarce is None or scarce.scratch.parameters != student.parameters:
        return []
    about = Manifest.read(layout.run("student").manifest)
    if about.data.fingerprint != fingerprint:
        return []
    gain = float(scarce.scratch.nats_per_token) - float(scarce.distilled.nats_per_token)
    row = {
        "text": about.data.name,
        "tokens": scarce.text["tokens"],
        **{
            way: {
                key: result[key] for key in ("nats_per_token", "epochs", "schedule_epochs")
            }
            for way, result in (
                ("scratch", scarce.scratch.to_json()), ("distilled", scarce.distilled.to_json()),
            )
        },
        "better_by": student_mean([gain]),
        "same_text": True,
    }  # fmt: skip
    return [row]


@functools.cache
def measured() -> dict[str, Any]:
    """The content of the file of measurements."""
    content: dict[str, Any] = files.read_json(MEASURED)
    return content


def _near(tokens: int, teacher: GemmaConfig, student: GemmaConfig) -> list[dict[str, Any]]:
    """Measurements with models of about these sizes, of the sizes of text around `tokens`."""
    content = measured()
    for model, shape in (("teacher", teacher), ("student", student)):
        size = content[model]["non_embedding_parameters"]
        if not size / NEAR <= shape.non_embedding_parameters <= size * NEAR:
            return []
    rows = sorted(content["rows"], key=lambda row: row["tokens"])
    below = [row for row in rows if row["tokens"] <= tokens][-1:]
    above = [row for row in rows if row["tokens"] > tokens][:1]
    if not below:
        above = [row for row in above if row["tokens"] <= tokens * NEAR]
    if not above:
        below = [row for row in below if row["tokens"] * NEAR >= tokens]
    return [{**row, "text": content["text"], "same_text": False} for row in (*below, *above)]


def _in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"of {row['tokens']:,} tokens the distilled student is "
        f"{abs(row['better_by']['mean']):.2f} nats/token "
        f"{'ahead of' if row['better_by']['mean'] > 0 else 'behind'} scratch, each at its best "
        "epoch"
        for row in rows
    )
