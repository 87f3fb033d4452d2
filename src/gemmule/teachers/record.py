"""Records a teacher: its predictions for every token of a corpus go into a logit store.

Sequences are recorded in order and in batches. They are written as a shard when a unit of sequences
is complete, when a minute has passed, or when recording is stopped. A shard is written atomically,
and the store knows which sequences it holds: the same command continues with the missing ones.
Several processes or machines can record different units into one folder.
"""

import datetime
import itertools
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydantic
import torch
from pydantic import Field

from gemmule import files
from gemmule.config import ModelName
from gemmule.console import ProgressBar, duration
from gemmule.data.dataset import Dataset, Split
from gemmule.data.packed_text import batch_of, sequence_count, too_few
from gemmule.errors import ConfigError, DataError, Interrupted, OutputError, UserError
from gemmule.runs import run_dir
from gemmule.runs.carbon import EnergyMeter, check_country
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.lock import locked
from gemmule.runtime import device, host, memory
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.signals import Stop, stop_signals
from gemmule.teachers import logit_store as stores
from gemmule.teachers import precision
from gemmule.teachers.completions import CompletionServer
from gemmule.teachers.endpoint import REQUESTS, EndpointTeacher, check_spec
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import is_address, open_teacher
from gemmule.teachers.target_spec import TargetSpec
from gemmule.teachers.teacher import LocalTeacher, Teacher

UNIT = 128  # sequences that belong to the same part, and to one shard at most
SPLIT = "train"


class RecordConfig(RuntimeConfig):
    """Settings of a recording.

    Attributes:
        teacher: run, HF-layout folder, hub id, or base address of an OpenAI-compatible server.
        data: folder made by `gemmule data`.
        targets: what is kept of each distribution.
        seq_len: tokens per sequence; students train with the same.
        tokens: number of tokens to record, from the start of the corpus, rounded up to whole
            sequences; None: all.
        batch_size: sequences per batch.
        seed: seed of the draws.
        shard_minutes: longest time between two shards, minutes.
        part: which part to record, of how many: "2/4" is the second of four.
        served: the server's name for the model; None: the first that it lists.
        requests: number of concurrent requests to the server.
        int8: quantize the teacher's linear layers, except the head, to int8: for CPUs with VNNI.
    """

    teacher: ModelName
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
    int8: bool = False

    @pydantic.model_validator(mode="after")
    def _part_is_one_of(self) -> Self:
        which, _, of = self.part.partition("/")
        if not (which.isdigit() and of.isdigit() and 1 <= int(which) <= int(of)):
            raise ValueError(f"part {self.part!r}: write which of how many, as in 2/4")
        return self

    def includes(self, unit: int) -> bool:
        """Whether a unit of sequences belongs to this part."""
        which, _, of = self.part.partition("/")
        return unit % int(of) == int(which) - 1


def record(config: RecordConfig, out: Path) -> dict[str, Any]:
    """Records into the folder `out`, or continues the store that is there.

    Args:
        config: settings. A larger `tokens` than before appends.
        out: a new folder, or a store of the same teacher, data, targets, sequence length and seed.

    Returns:
        Content of the store and cost of this call, as `summary` describes them, and
        "teacher_flops", operations of the teacher's forward passes over the whole store.

    Raises:
        UserError: when a setting, the data, the teacher or the folder cannot be used.
        Interrupted: when stopped; everything recorded is saved.
    """
    dataset = Dataset.open(config.data)
    split = dataset.split(SPLIT)
    sequences = sequence_count(split, config.seq_len)
    if config.tokens is not None:
        sequences = min(sequences, -(-config.tokens // config.seq_len))
    if sequences < 1:
        raise DataError(too_few(split, config.seq_len))
    teacher = _open_teacher(config, dataset)
    memory.keep_freed_memory()
    there = (out / stores.MANIFEST).is_file()
    if there and config.dtype == "auto":  # the same on another machine
        saved = stores.read_manifest(out)["teacher"].get("precision", "float32")
        config = config.model_copy(update={"dtype": saved})
    flops = teacher.forward_flops_per_token(config.seq_len) * sequences * config.seq_len
    check_country(config.country)
    config = device.resolve(config, flops)
    precision.check_int8(config.int8, config.device)
    manifest = _manifest(config, teacher, dataset, sequences)
    with locked(out, config.part):
        _claim(out, manifest, there)
        return {**_record(config, out, teacher, split), "teacher_flops": flops}


def _record(config: RecordConfig, out: Path, teacher: Teacher, split: Split) -> dict[str, Any]:
    """Records the sequences of this part that the store in `out` lacks."""
    store = Store.open(out)
    if isinstance(teacher, LocalTeacher):
        precision.prepare(
            teacher, config, int8=config.int8, tokens=config.batch_size * config.seq_len
        )
    session = _Session(config, out, store, teacher, split)
    session.run()
    done = Store.open(out)
    ledger.note(product=done.identity)
    if not done.gaps() and config.part == "1/1":
        files.remove_leftovers(out / stores.SHARDS)
    return summary(done, session)


def _open_teacher(config: RecordConfig, dataset: Dataset) -> Teacher:
    if is_address(config.teacher):
        if config.int8:
            raise ConfigError("int8 = true: a server chooses its own precision; leave it out")
        check_spec(config.targets)  # before the first request
        server = CompletionServer(config.teacher, config.served)
        return EndpointTeacher(server, dataset, config.targets, config.requests)
    return open_teacher(config.teacher, dataset, config.seq_len)


def _manifest(
    config: RecordConfig, teacher: Teacher, dataset: Dataset, sequences: int
) -> dict[str, Any]:
    spec = config.targets.for_vocabulary(teacher.vocab_size)
    about = teacher.describe()
    if isinstance(teacher, LocalTeacher):
        about["precision"] = config.dtype  # of activations
        if config.int8:
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
        "windows": sequences,
    }


def _claim(out: Path, manifest: dict[str, Any], there: bool) -> None:
    """Makes the folder a store of `manifest`, or checks that it is one, and grows it if needed."""
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
    differences = []
    for part in ("targets", "teacher", "tokenizer", "corpus", "packing", "seed", "vocab_size"):
        was, now = saved[part], asked[part]
        if not isinstance(was, dict):
            was, now = {part: was}, {part: now}
        was, now = _flat(was), _flat(now)
        for name in sorted({*was, *now} - {"path"}):
            if was.get(name) != now.get(name):
                before, after = _short(was.get(name)), _short(now.get(name))
                differences.append(f"{name}: {before} there, {after} now")
    return differences


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a manifest with the settings of its groups, such as `vocabulary kept`."""
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        flat |= (
            {f"{name} {k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


class _Session:
    """The work of one call on a store."""

    def __init__(
        self, config: RecordConfig, out: Path, store: Store, teacher: Teacher, split: Split
    ) -> None:
        self.config, self.out, self.store, self.teacher = config, out, store, teacher
        self.split, self.tokens, self.seconds = split, 0, 0.0
        self.began = datetime.datetime.now(datetime.UTC)
        self.meter = EnergyMeter(config.country)

    def run(self) -> None:
        """Records the missing sequences of this part."""
        todo = [run for run in _missing(self.store) if self.config.includes(run[0] // UNIT)]
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
                self._record(first, end, stop, bar)
                if stop.requested and self.tokens < total:
                    raise Interrupted(
                        f"stopped; {self.tokens:,} more tokens are saved in {self.out}: the same "
                        "command continues from there"
                    )

    def _record(self, first: int, end: int, stop: Stop, bar: ProgressBar) -> None:
        """Records consecutive sequences of one unit."""
        done: list[bytes] = []
        written = time.monotonic()
        for start in range(first, end, self.config.batch_size):
            began = time.perf_counter()
            try:
                done += self._encoded(range(start, min(start + self.config.batch_size, end)))
            except UserError as e:  # a server went away: its earlier answers are kept
                if done:
                    self._write(first, done)
                raise ConfigError(
                    f"{e} What is recorded is kept: the same command continues from there."
                ) from None
            self.seconds += time.perf_counter() - began
            ledger.pulse()
            bar.update(self.tokens + len(done) * self.store.seq_len)
            overdue = time.monotonic() - written > self.config.shard_minutes * 60
            if overdue or stop.requested or first + len(done) == end:
                self._write(first, done)
                first, done, written = first + len(done), [], time.monotonic()
            if stop.requested:
                return

    def _encoded(self, indices: range) -> list[bytes]:
        """The encoded targets of a batch of sequences."""
        spec, seed = self.store.spec, self.store.manifest["seed"]
        batch = batch_of(self.split, np.array(indices), self.store.seq_len).to(self.config.device)
        half = self.config.dtype == "bfloat16"
        with torch.autocast(self.config.device, torch.bfloat16, enabled=half):
            kept = self.teacher.targets(
                batch, [spec.choice(seed, i) for i in indices], spec.temperature
            )
        return [self.store.codec.encode(targets) for targets in kept]

    def _write(self, first: int, sequences: list[bytes]) -> None:
        """Writes a shard, then the cost of the session up to now into a file of its own."""
        stores.write_shard(self.out, self.store.identity, first, sequences)
        self.tokens += len(sequences) * self.store.seq_len
        per_token = self.teacher.forward_flops_per_token(self.store.seq_len)
        ledger.note(tokens_in=self.tokens, flop_per_token=per_token)
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
        if self.teacher.dropped is not None:
            value["dropped_probability"] = self.teacher.dropped.to_json()
        files.write_json(self.out / stores.SESSIONS / name, value)


def _missing(store: Store) -> list[tuple[int, int]]:
    """Runs of sequences that are still to be recorded, split at the borders of units."""
    runs: list[tuple[int, int]] = []
    for first, stop in store.gaps():
        borders = range((first // UNIT + 1) * UNIT, stop, UNIT)
        runs += itertools.pairwise([first, *borders, stop])
    return runs


def summary(store: Store, session: "_Session | None" = None) -> dict[str, Any]:
    """Content and cost of a store, for people and programs."""
    return {
        "path": str(store.path),
        "identity": store.identity,
        "targets": store.spec.label,
        "biased": store.spec.biased,
        "tokens": store.recorded * store.seq_len,
        "missing_tokens": (store.sequences - store.recorded) * store.seq_len,
        "bytes_per_token": round(store.bytes_per_token, 2),
        "shards": len(store.shards),
        "tokens_per_second": None if session is None or not session.tokens
        else round(session.tokens / session.seconds, 1),
        **store.recording(),
    }  # fmt: skip


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as label and value of each line to print."""
    size = result["tokens"] * result["bytes_per_token"]
    missing = result["missing_tokens"]
    rows = [
        ("targets", result["targets"] + (" (biased)" if result["biased"] else " (unbiased)")),
        ("tokens", f"{result['tokens']:,}" + (f", {missing:,} missing" if missing else "")),
        ("size", f"{size / 1e6:,.1f} MB, {result['bytes_per_token']:.1f} bytes per token"),
        ("time", duration(result["seconds"])),
    ]
    if result["tokens_per_second"]:
        rows.append(("rate", f"{result['tokens_per_second']:,.0f} tokens/s"))
    if result["dropped_probability"] is not None:
        mean, most = (result["dropped_probability"][name] for name in ("mean", "maximum"))
        rows.append(("dropped probability", f"{mean:.2e} a token, at most {most:.2e}"))
    if result["energy_wh"] is not None:
        rows.append(("energy", f"{result['energy_wh']:.2f} Wh"))
    return rows
