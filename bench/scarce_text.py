"""What little text gives, from scratch and distilled, each at its best epoch.

For each size of text and each seed, the protocol of train/scarce_text.py with several lengths of
runs: as many tokens from the start of a quickstart's corpus, recorded once from its teacher, and
students that read them for some epochs, from scratch and from the recording. What is compared is
held-out loss of the state that validation chose.

    python bench/scarce_text.py --quickstart runs/quickstart --out runs/scarce-text

A stopped benchmark is continued by the same command. `gemmule plan` reads what it writes into the
source tree.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.plan.scarce_text import MEASURED
from gemmule.runs.layout import QuickstartLayout
from gemmule.runs.schema import Manifest, Result
from gemmule.runtime import host
from gemmule.stats import student_mean
from gemmule.train.config import RunConfig
from gemmule.train.scarce_text import ScarceText, compare_on_scarce_text

WAYS = ("scratch", "distilled")
SUMMED = ("nats_per_token", "bits_per_byte", "epochs", "schedule_epochs")


def settings(data: Path, given: argparse.Namespace, seed: int) -> RunConfig:
    """Settings of the runs, as the quickstart's."""
    return RunConfig.parse(
        {
            "steps": 1,
            "seed": seed,
            "data": {"path": str(data), "seq_len": given.seq_len},
            "model": {"preset": given.student},
            "evaluation": {"tokens": 16384},
            "runtime": {"compile": not given.eager, "threads": given.threads},
        }
    )


def row(tokens: int, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of one size of text."""
    gains = [m["scratch"]["nats_per_token"] - m["distilled"]["nats_per_token"] for m in measured]
    result: dict[str, Any] = {"tokens": tokens, "bytes": measured[0]["text"]["bytes"]}
    for way in WAYS:
        result[way] = {key: student_mean([m[way][key] for m in measured])["mean"] for key in SUMMED}
    return {
        **result,
        "better_by": student_mean(gains),
        "recording_flops": measured[0]["recording"]["flops"],
        "by_seed": [{way: m["tried"][way] for way in WAYS} for m in measured],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the report after each size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quickstart", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=MEASURED)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--student", default="1m")
    parser.add_argument("--scratch-epochs", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--distilled-epochs", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    given = parser.parse_args(arguments)
    quickstart = QuickstartLayout(given.quickstart)
    dataset = Dataset.open(quickstart.data)
    teacher = quickstart.run("teacher")
    about = Manifest.read(teacher.manifest)
    report: dict[str, Any] = {
        "text": dataset.name,
        "data_fingerprint": dataset.fingerprint,
        "vocab_size": dataset.tokenizer.vocab_size,
        "teacher": {
            "non_embedding_parameters": about.non_embedding_parameters,
            **Result.read(teacher.result).to_json(),
        },
        "machine": host.machine(),
        "versions": host.versions(),
        "rows": [],
    }
    for tokens in given.tokens:
        protocol = ScarceText(
            tokens=tokens,
            scratch_epochs=tuple(given.scratch_epochs),
            distilled_epochs=tuple(given.distilled_epochs),
        )
        measured = []
        for seed in range(given.seeds):
            base = settings(quickstart.data, given, seed)
            folder = given.out / f"{tokens}-tokens-seed{seed}"
            measured.append(
                compare_on_scarce_text(protocol, base, str(teacher.path), dataset, folder, _show)
            )
            run = Manifest.read(folder / f"scratch-{given.scratch_epochs[0]}" / "manifest.json")
            report["student"] = {"non_embedding_parameters": run.non_embedding_parameters}
        report["rows"].append(row(tokens, measured))
        files.write_json(given.json, report)
    print(json.dumps(report["rows"], indent=2))


def _show(name: str, result: Mapping[str, Any]) -> None:
    print(
        f"{name}: epoch {result['epochs']} of {result['schedule_epochs']}, "
        f"{result['nats_per_token']:.4f} nats/token held out",
        flush=True,
    )


if __name__ == "__main__":
    main()
