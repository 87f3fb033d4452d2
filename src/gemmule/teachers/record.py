"""Records a teacher: its predictions for every token of a corpus go into a logit store.

The store knows which sequences it holds: the same command continues with the missing ones. Ranks
share them out, and so can processes without a connection, each of which records a part.
"""

import contextlib
import datetime
import itertools
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import duration
from gemmule.data.dataset import Dataset, Split
from gemmule.data.packed_text import sequence_count, too_few
from gemmule.errors import ConfigError, DataError, OutputError
from gemmule.runs import run_dir
from gemmule.runs.carbon import check_country
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.lock import locked
from gemmule.runtime import device, host, memory
from gemmule.runtime.world import SOLO, World
from gemmule.teachers import logit_store as stores
from gemmule.teachers import precision
from gemmule.teachers.completions import CompletionServer
from gemmule.teachers.endpoint import EndpointTeacher, check_spec
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import is_address, open_teacher
from gemmule.teachers.record_config import UNIT, RecordConfig
from gemmule.teachers.record_session import RecordSession
from gemmule.teachers.teacher import LocalTeacher, Teacher

SPLIT = "train"


def record(config: RecordConfig, out: Path, world: World = SOLO) -> dict[str, Any]:
    """Records into the folder `out`, or continues the store that is there.

    Args:
        config: settings. A larger `tokens` than before appends.
        out: a new folder, or a store of the same teacher, data, targets, sequence length and seed.
        world: ranks that share out the sequences, each of which calls this; the first one makes
            and locks the folder.

    Returns:
        Content of the store and cost of this call, as `summary` describes them, and
        "teacher_flops", operations of the teacher's forward passes over the whole store.

    Raises:
        UserError: when a setting, the data, the teacher or the folder cannot be used.
        Interrupted: when stopped; everything recorded is saved.
        RankError: when another rank has failed.
    """
    dataset, sequences = open_text(config)
    teacher = _open_teacher(config, dataset)
    memory.keep_freed_memory()
    there = world.agree(world.first and (out / stores.MANIFEST).is_file())
    if there and config.dtype == "auto":  # the same on another machine
        saved = stores.read_manifest(out)["teacher"].get("precision", "float32")
        config = config.model_copy(update={"dtype": saved})
    flops = teacher.forward_flops_per_token(config.seq_len) * sequences * config.seq_len
    check_country(config.country)
    config = device.resolve(config, flops, world)
    precision.check_int8(config.int8, config.device)
    manifest = _manifest(config, teacher, dataset, sequences)
    with contextlib.ExitStack() as stack:
        if world.first:
            stack.enter_context(locked(out, config.part))
            _claim(out, manifest, there)
        world.agree(True)  # the folder is there; torch writes errors of a barrier to the log
        if not world.first:
            _check_claimed(out, manifest)
        done = _record(config, out, teacher, dataset.split(SPLIT), world)
        return {**done, "teacher_flops": flops}


def open_text(config: RecordConfig) -> tuple[Dataset, int]:
    """The data of a recording, and how many of its sequences are recorded.

    Raises:
        DataError: when it cannot be read, or is shorter than one sequence.
    """
    dataset = Dataset.open(config.data)
    split = dataset.split(SPLIT)
    sequences = sequence_count(split, config.seq_len)
    if config.tokens is not None:
        sequences = min(sequences, -(-config.tokens // config.seq_len))
    if sequences < 1:
        raise DataError(too_few(split, config.seq_len))
    return dataset, sequences


def _record(
    config: RecordConfig, out: Path, teacher: Teacher, split: Split, world: World
) -> dict[str, Any]:
    """Records the sequences of this part that the store in `out` lacks."""
    store = Store.open(out)
    if isinstance(teacher, LocalTeacher):
        precision.prepare(
            teacher, config, int8=config.int8, tokens=config.batch_size * config.seq_len
        )
    session = RecordSession(config, store, teacher, split, world)
    session.run(_missing(config, store, world))
    done = Store.open(out)
    ledger.note(product=done.identity)
    if world.first and not done.gaps() and config.part == "1/1":
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


def _check_claimed(out: Path, manifest: dict[str, Any]) -> None:
    """Refuses to add to a store of the first rank that is not what this rank would record."""
    if not (out / stores.MANIFEST).is_file():
        raise OutputError(
            f"{out} is not there on {socket.gethostname()}: all machines write into one folder; "
            "put it on storage that they share, or record --part 1/2, 2/2, … without a connection"
        )
    saved = stores.read_manifest(out)
    if stores.identity(saved) != stores.identity(manifest):
        raise OutputError(
            f"this rank, on {socket.gethostname()}, would record something else than the first one "
            f"({'; '.join(_differences(saved, manifest))}): give all ranks the same files"
        )


def _missing(config: RecordConfig, store: Store, world: World) -> list[range]:
    """Sequences of this part that the first rank misses, in pieces that end at a unit's border."""
    # The ranks would see the folder at different moments, and on different machines.
    gaps = store.gaps() if world.first else []
    (count,) = world.sum([len(gaps)])
    edges = [float(edge) for gap in gaps for edge in gap] or [0.0] * (2 * int(count))
    edges = world.sum(edges)
    pieces = []
    for first, stop in zip(map(int, edges[::2]), map(int, edges[1::2]), strict=True):
        borders = range((first // UNIT + 1) * UNIT, stop, UNIT)
        pieces += [range(*piece) for piece in itertools.pairwise([first, *borders, stop])]
    return [piece for piece in pieces if config.includes(piece.start // UNIT)]


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


def summary(store: Store, session: RecordSession | None = None) -> dict[str, Any]:
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
        "tokens_per_second": None if session is None else session.tokens_per_second,
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
