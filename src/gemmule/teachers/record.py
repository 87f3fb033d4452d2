"""Recording a teacher: what it says about every token of a corpus goes into a logit store.

Windows are recorded in order and in batches, and written as a shard when a unit of windows is
full, when a minute has passed, or when recording is stopped. A shard is there whole or not at all,
and the store knows which windows it has: the same command goes on with those that are missing.
Units can be shared out among processes or machines that write into one folder.
"""

import datetime
import itertools
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pydantic
import torch
from pydantic import Field

from gemmule import files
from gemmule.console import ProgressBar, console, duration
from gemmule.data.dataset import Dataset, Split
from gemmule.data.packed_text import batch_of, sequence_count
from gemmule.errors import ConfigError, DataError, Interrupted, OutputError, UserError
from gemmule.quant.int8_linear import quantize_linears, speed
from gemmule.runs import run_dir
from gemmule.runs.carbon import EnergyMeter, check_country
from gemmule.runs.lock import locked
from gemmule.runtime import device, host, memory, torch_compile
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.signals import Stop, stop_signals
from gemmule.teachers import logit_store as stores
from gemmule.teachers.completions import CompletionServer
from gemmule.teachers.endpoint import REQUESTS, EndpointTeacher, check_spec
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import is_address, open_teacher
from gemmule.teachers.target_spec import TargetSpec
from gemmule.teachers.teacher import LocalTeacher, Teacher

UNIT = 128  # windows that one process takes in hand at a time
SPLIT = "train"


class RecordConfig(RuntimeConfig):
    """What is recorded, of whom, on what.

    Attributes:
        teacher: run, HF-layout folder, hub id, or an OpenAI-compatible server's base address.
        data: folder made by `gemmule data`.
        targets: what is kept of each distribution.
        seq_len: tokens that the teacher sees together; students train with the same.
        tokens: record about so many, the corpus's first; None: all.
        batch_size: windows at once.
        seed: decides the draws.
        shard_minutes: a shard is written at least so often.
        part: of how many parts, and which: "2/4" is the second of four.
        served: the server's name for the model; None: the first it lists.
        requests: to the server, in flight at once.
        precision: of the teacher's linear layers, head excepted: "int8" is for a CPU with VNNI.
    """

    teacher: str
    data: Path
    targets: TargetSpec = TargetSpec()
    seq_len: int = Field(default=256, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    shard_minutes: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    part: str = "1/1"
    served: str | None = None
    requests: int = Field(default=REQUESTS, ge=1, le=256)
    precision: Literal["float32", "int8"] = "float32"

    @pydantic.model_validator(mode="after")
    def _part_is_one_of(self) -> Self:
        which, _, of = self.part.partition("/")
        if not (which.isdigit() and of.isdigit() and 1 <= int(which) <= int(of)):
            raise ValueError(f"part {self.part!r}: write which of how many, as in 2/4")
        return self

    def mine(self, unit: int) -> bool:
        """Whether a unit of windows belongs to this part."""
        which, _, of = self.part.partition("/")
        return unit % int(of) == int(which) - 1


def record(config: RecordConfig, out: Path) -> dict[str, Any]:
    """Records into the folder `out`, or goes on with what is there.

    Args:
        config: settings. A larger `tokens` than before appends.
        out: a new folder, or a store of the same teacher, data, targets, windows and seed.

    Returns:
        What the store holds now, and what this call took: see `summary`.

    Raises:
        UserError: when a setting, the data, the teacher or the folder cannot be used.
        Interrupted: when stopped; everything recorded is saved.
    """
    dataset = Dataset.open(config.data)
    split = dataset.split(SPLIT)
    windows = sequence_count(split, config.seq_len)
    if config.tokens is not None:
        windows = min(windows, -(-config.tokens // config.seq_len))
    if windows < 1:
        raise DataError(
            f"seq_len {config.seq_len} is longer than the data: {SPLIT} has "
            f"{split.token_count} tokens; use a shorter one"
        )
    teacher = _open_teacher(config, dataset)
    memory.keep_freed_memory()
    there = (out / stores.MANIFEST).is_file()
    if there and config.dtype == "auto":  # on another machine, too, the teacher stays what it was
        saved = stores.read_manifest(out)["teacher"].get("precision", "float32")
        config = config.model_copy(update={"dtype": saved})
    flops = 0.0
    if isinstance(teacher, LocalTeacher):
        flops = teacher.forward_flops_per_token(config.seq_len) * windows * config.seq_len
    check_country(config.country)
    config = device.resolve(config, flops)
    if config.precision == "int8" and config.device != "cpu":
        raise ConfigError("precision = int8 is for teachers on a CPU: leave it out, or device=cpu")
    manifest = _manifest(config, teacher, dataset, windows)
    with locked(out, config.part):
        _claim(out, manifest, there)
        return _record(config, out, teacher, split)


def _record(config: RecordConfig, out: Path, teacher: Teacher, split: Split) -> dict[str, Any]:
    """Records what the store in `out` lacks of this part."""
    store = Store.open(out)
    if isinstance(teacher, LocalTeacher):
        teacher.module.to(config.device)
        if config.precision == "int8":
            _to_int8(teacher, config)
    # What is slow in int8 is its product, which a compiler leaves as it is.
    compiled = bool(config.compile) and config.precision == "float32"
    if compiled and isinstance(teacher, GemmaTeacher):
        torch_compile.compile_blocks(teacher.model.layers)
    session = _Session(config, out, store, teacher, split)
    session.run()
    done = Store.open(out)
    if not done.gaps() and config.part == "1/1":
        files.remove_leftovers(out / stores.SHARDS)
    return summary(done, session)


def _open_teacher(config: RecordConfig, dataset: Dataset) -> Teacher:
    if is_address(config.teacher):
        if config.precision == "int8":
            raise ConfigError("precision = int8: a server's precision is its own; leave it out")
        check_spec(config.targets)  # before anybody is asked anything
        server = CompletionServer(config.teacher, config.served)
        return EndpointTeacher(server, dataset, config.targets, config.requests)
    return open_teacher(config.teacher, dataset, config.seq_len)


def _to_int8(teacher: LocalTeacher, config: RecordConfig) -> None:
    """Quantizes a teacher's linear layers, and says whether that makes it faster here."""
    if quantize_linears(teacher.module, keep=teacher.head.weight_VD) == 0:
        raise ConfigError(
            "precision = int8: this teacher has no linear layers to quantize; leave it out"
        )
    gain = speed(teacher.module, config.batch_size * config.seq_len)
    if gain > 1:
        said = f"int8: the largest linear layer takes 1/{gain:.1f} of its time in float32"
    else:
        said = (
            f"int8 does not help here: the largest linear layer takes {1 / gain:.1f} times as long "
            "as in float32 (the processor needs VNNI); leave precision out"
        )
    console.print(said)


def _manifest(
    config: RecordConfig, teacher: Teacher, dataset: Dataset, windows: int
) -> dict[str, Any]:
    spec = config.targets.for_vocabulary(teacher.vocab_size)
    about = teacher.describe()
    if isinstance(teacher, LocalTeacher):
        about["precision"] = config.dtype
        if config.precision == "int8":
            about["linear_layers"] = "int8"
    return {
        "kind": stores.KIND,
        "format": stores.FORMAT,
        "gemmule": metadata.version("gemmule"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": host.versions(),
        "machine": host.machine(),
        "targets": spec.settings(),
        "vocab_size": teacher.vocab_size,
        "teacher": about,
        "tokenizer": dataset.tokenizer.fingerprint,
        "corpus": {
            "path": str(dataset.path),
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "split": SPLIT,
            "tokens": dataset.split(SPLIT).token_count,
        },
        "packing": {"seq_len": config.seq_len},
        "seed": config.seed,
        "windows": windows,
    }


def _claim(out: Path, manifest: dict[str, Any], there: bool) -> None:
    """Makes the folder a store of `manifest`, or checks that it is one, grown where asked for."""
    if not there:
        run_dir.claim(out)
        files.write_json(out / stores.MANIFEST, manifest)
        return
    saved = stores.read_manifest(out)
    if stores.identity(saved) != stores.identity(manifest):
        raise OutputError(
            f"{out} is a record of something else ({'; '.join(_differences(saved, manifest))}): "
            "choose another folder with --out, or repeat the command that made it"
        )
    if manifest["windows"] > saved["windows"]:
        files.write_json(out / stores.MANIFEST, {**saved, "windows": manifest["windows"]})


def _differences(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    found = []
    for part in ("targets", "teacher", "tokenizer", "corpus", "packing", "seed", "vocab_size"):
        was, now = saved[part], asked[part]
        if not isinstance(was, dict):
            was, now = {part: was}, {part: now}
        for name in sorted({*was, *now} - {"path"}):
            if was.get(name) != now.get(name):
                found.append(f"{name}: {_short(was.get(name))} there, {_short(now.get(name))} now")
    return found


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


class _Session:
    """One call's work on a store."""

    def __init__(
        self, config: RecordConfig, out: Path, store: Store, teacher: Teacher, split: Split
    ) -> None:
        self.config, self.out, self.store, self.teacher = config, out, store, teacher
        self.split, self.tokens, self.seconds = split, 0, 0.0
        self.began = datetime.datetime.now(datetime.UTC)
        self.meter = EnergyMeter(config.country)

    def run(self) -> None:
        """Records what is missing of this part."""
        todo = [piece for piece in _pieces(self.store) if self.config.mine(piece[0] // UNIT)]
        total = sum(stop - first for first, stop in todo) * self.store.seq_len
        if not total:
            return
        with (
            stop_signals() as stop,
            self.meter,
            ProgressBar("recording", total, "tok") as bar,
            torch.compiler.set_stance("eager_on_recompile"),
        ):
            for first, end in todo:
                self._piece(first, end, stop, bar)
                if stop.requested and self.tokens < total:
                    raise Interrupted(
                        f"stopped; {self.tokens:,} tokens more are saved in {self.out}: the same "
                        "command goes on from there"
                    )

    def _piece(self, first: int, end: int, stop: Stop, bar: ProgressBar) -> None:
        done: list[bytes] = []
        written = time.monotonic()
        for start in range(first, end, self.config.batch_size):
            began = time.perf_counter()
            try:
                done += self._windows(range(start, min(start + self.config.batch_size, end)))
            except UserError as e:  # a server went away: what it said before is kept
                if done:
                    self._write(first, done)
                raise ConfigError(
                    f"{e} What is recorded is kept: the same command goes on from there."
                ) from None
            self.seconds += time.perf_counter() - began
            bar.update(self.tokens + len(done) * self.store.seq_len)
            overdue = time.monotonic() - written > self.config.shard_minutes * 60
            if overdue or stop.requested or first + len(done) == end:
                self._write(first, done)
                first, done, written = first + len(done), [], time.monotonic()
            if stop.requested:
                return

    def _windows(self, windows: range) -> list[bytes]:
        spec, seed = self.store.spec, self.store.manifest["seed"]
        batch = batch_of(self.split, np.array(windows), self.store.seq_len).to(self.config.device)
        half = self.config.dtype == "bfloat16"
        with torch.autocast(self.config.device, torch.bfloat16, enabled=half):
            found = self.teacher.targets(
                batch, [spec.choice(seed, w) for w in windows], spec.temperature
            )
        return [self.store.codec.encode(targets) for targets in found]

    def _write(self, first: int, windows: list[bytes]) -> None:
        """Writes a shard, then notes what the session has taken so far beside others' notes."""
        stores.write_shard(self.out, self.store.identity, first, windows)
        self.tokens += len(windows) * self.store.seq_len
        name = f"{self.began:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
        energy = self.meter.reading().to_json()
        value = {
            "began": self.began.isoformat(timespec="seconds"),
            "part": self.config.part,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "machine": host.machine(),
            "carbon": energy,
        }
        files.write_json(self.out / stores.SESSIONS / name, value)


def _pieces(store: Store) -> list[tuple[int, int]]:
    """Windows still to be recorded, cut at the units' borders."""
    found: list[tuple[int, int]] = []
    for first, stop in store.gaps():
        borders = range((first // UNIT + 1) * UNIT, stop, UNIT)
        found += itertools.pairwise([first, *borders, stop])
    return found


def summary(store: Store, session: "_Session | None" = None) -> dict[str, Any]:
    """What a store holds and what it took, for people and programs."""
    return {
        "path": str(store.path),
        "identity": store.identity,
        "targets": store.spec.label,
        "biased": store.spec.biased,
        "tokens": store.recorded * store.seq_len,
        "missing_tokens": (store.windows - store.recorded) * store.seq_len,
        "bytes_per_token": round(store.bytes_per_token, 2),
        "shards": len(store.shards),
        "tokens_per_second": None if session is None or not session.tokens
        else round(session.tokens / session.seconds, 1),
        **store.recording(),
    }  # fmt: skip


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as lines to print."""
    size = result["tokens"] * result["bytes_per_token"]
    missing = result["missing_tokens"]
    rows = [
        ("targets", result["targets"] + (" (biased)" if result["biased"] else " (unbiased)")),
        ("tokens", f"{result['tokens']:,}" + (f", {missing:,} missing" if missing else "")),
        ("size", f"{size / 1e6:,.1f} MB, {result['bytes_per_token']:.1f} bytes a token"),
        ("time", duration(result["seconds"])),
    ]
    if result["tokens_per_second"]:
        rows.append(("rate", f"{result['tokens_per_second']:,.0f} tokens/s"))
    if result["energy_wh"] is not None:
        rows.append(("energy", f"{result['energy_wh']:.2f} Wh"))
    return rows
