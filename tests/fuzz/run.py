"""Fuzzes every parser: python tests/fuzz/run.py --inputs 100000.

Inputs are read in forked children, so that one that kills its reader is a finding and not the
end. With the atheris package (Linux) libFuzzer chooses the inputs by coverage; without it they
are drawn at random, each reproducible from the seed and its number.
"""

import os

# One core is enough, and children are forked, which threads do not survive.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzzing import Tally

_COLUMNS = {
    "target": 20, "inputs": 8, "loaded": 8, "refused": 8, "crashes": 8, "hangs": 6, "executed": 9,
    "memory": 7, "slowest_ms": 11, "growth_mb": 10,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz every parser with hostile files.")
    parser.add_argument("--inputs", type=int, default=2000, help="over all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--findings", type=Path, help="keep inputs that found something here")
    parser.add_argument(
        "--replay", type=Path, help="read one kept input with --target, and say why"
    )
    return parser.parse_args()


def instrumented(engine: str) -> AbstractContextManager[Any]:
    """The project's modules that are imported within it tell libFuzzer what an input reached."""
    if engine != "atheris":
        return nullcontext()
    import atheris
    import gguf  # noqa: F401
    import torch._dynamo  # noqa: F401 (imports are slow while they are watched)

    return atheris.instrument_imports(include=["gemmule"])


def main() -> int:
    asked = arguments()
    engine = asked.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "random"
    with instrumented(engine), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are imported
        sys.path.append(str(Path(__file__).parents[1]))  # where models.py is
        import fuzzing
        import targets

        from gemmule import files
        from gemmule.runtime import host
    everything = targets.build()
    unknown = set(asked.target or ()) - set(everything)
    if unknown:
        print(f"no target {', '.join(sorted(unknown))}; there are {', '.join(everything)}")
        return 2
    chosen = [everything[name] for name in asked.target or everything]
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(prefix="gemmule-fuzz-", dir=memory if memory.is_dir() else None))
    try:
        if asked.replay:
            return replay(chosen[0], asked.replay, work)
        began, tallies = time.monotonic(), []
        for i, target in enumerate(chosen):
            share = asked.inputs * (i + 1) // len(chosen) - asked.inputs * i // len(chosen)
            progress = Progress(target.name, sum(t.inputs for t in tallies), asked.inputs)
            plan = fuzzing.Plan(engine, asked.seed, work, progress=progress)
            tallies.append(fuzzing.fuzz(target, share, plan))
            show(tallies[-1], header=i == 0)
            if asked.findings:
                asked.findings.mkdir(parents=True, exist_ok=True)
                for path in work.glob("*.input"):
                    shutil.move(path, asked.findings / path.name)
        total = summed(tallies, fuzzing.Tally("all"))
        show(total, header=False)
        if asked.json:
            packages = ("torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "protobuf")
            packages += ("gguf", "atheris")
            report = {
                "machine": host.machine(),
                "versions": {p: metadata.version(p) for p in packages if found(p)},
                "settings": {
                    "inputs": asked.inputs,
                    "seed": asked.seed,
                    "engine": engine,
                    "hang_seconds_of_work": plan.hang_seconds,
                    "growth_mb": fuzzing.fuzz_child.GROWTH_MB,
                    "largest_input_bytes": fuzzing.fuzz_child.LARGEST,
                },
                "seconds": round(time.monotonic() - began, 1),
                "targets": [asdict(tally) for tally in tallies],
                "total": {
                    k: v for k, v in asdict(total).items() if k not in {"target", "findings"}
                },
            }
            files.write_json(asked.json, report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if total.bad else 0


class Progress:
    """How far it is: rate and time left, on one line of a terminal or a line a minute."""

    def __init__(self, target: str, before: int, total: int) -> None:
        self._target, self._before, self._total = target, before, total
        self._began = self._shown = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if now - self._shown < (0.5 if terminal else 60):
            return
        self._shown = now
        rate = max(done, 1) / (now - self._began)
        left = (self._total - self._before - done) / rate
        line = f"{self._target}: {self._before + done} of {self._total}, "
        line += f"{rate:.0f}/s, {left:.0f} s left"
        sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
        sys.stderr.flush()


def show(tally: "Tally", *, header: bool) -> None:
    """A line of the table, and what was found."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if header:
        print("  ".join(name.rjust(width) for name, width in _COLUMNS.items()))
    values = asdict(tally)
    print("  ".join(str(values[name]).rjust(width) for name, width in _COLUMNS.items()), flush=True)
    for finding in tally.findings:
        print(f"  {finding['kind']}: {finding['what']} [{finding['input']}]", flush=True)


def summed(tallies: list["Tally"], total: "Tally") -> "Tally":
    """All targets together: sums, and the largest of what is a maximum."""
    for tally in tallies:
        for name in ("inputs", "loaded", "refused", "crashes", "hangs", "executed", "memory"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.seconds = round(total.seconds + tally.seconds, 1)
        total.slowest_ms = max(total.slowest_ms, tally.slowest_ms)
        total.growth_mb = max(total.growth_mb, tally.growth_mb)
    return total


def found(package: str) -> bool:
    """Whether it is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def replay(target: Any, path: Path, work: Path) -> int:
    """Reads one input in this very process."""
    target.prepare(work / "model")
    loaded = target.run(work / "model", path.read_bytes())
    if not loaded:
        try:
            target.check(work / "model")
        except Exception as e:
            print(f"refused: {e}")
            return 0
    print("loaded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
