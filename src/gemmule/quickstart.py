"""`gemmule quickstart`: from text to a distilled model of your own, compared and described.

Stages, each left as it is once finished, so that --resume continues with the first unfinished one:
plan.json, tokenizer/, data/, teacher/, scratch/, student/, scratch_equal_compute/, scarce_text/,
comparison.json, samples.json, card/.

The two students start from the same weights and see the same batches in the same order; the third
trains from scratch for as much compute as distilling took, the teacher's forward passes counted. A
third comparison gives students only a small part of the text, which they read several times
(train/scarce_text.py).
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmule import files, shell
from gemmule.config import Config
from gemmule.console import console, counting, duration, next_commands, table
from gemmule.data.dataset import MANIFEST, Dataset
from gemmule.data.prepare import prepare, sample_texts
from gemmule.data.read_log import dropped_lines
from gemmule.data.sources import DEFAULT_FIELD
from gemmule.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    OutputError,
    TokenizerError,
)
from gemmule.infer.language_model import load
from gemmule.model.config import preset
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.report.card import write_card
from gemmule.runs.carbon import check_country
from gemmule.runs.layout import COMPARISON, QuickstartLayout, RunLayout
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.lock import locked
from gemmule.runs.run_dir import RunDir
from gemmule.runs.schema import Comparison
from gemmule.runtime import device, torch_compile
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from gemmule.train.scarce_text import ScarceText, compare_on_scarce_text

SEQ_LEN = 256
BATCH_SIZE = 8
TEACHER_STEPS, STUDENT_STEPS = 540, 280  # per ten minutes on the reference machine
SCARCE_TOKENS = 60_000  # of the text that is read several times, per ten minutes
SCARCE_LIMIT = 1_500_000  # about 5 MB: more is not scarce
TEACHERS_STUDENTS = 2  # that learn from the teacher: of the whole text, and of the scarce part
REFERENCE_GFLOPS = 260.0  # fp32 matrix product of two AVX-512 cores
PROMPTS = 3
LABELS = {
    "teacher": "teacher",
    "scratch": "from scratch",
    "student": "distilled",
    "scratch_equal_compute": "scratch at equal compute",
}


class QuickstartConfig(Config):
    """Settings of a quickstart.

    Attributes:
        minutes: approximate duration, on a machine with two current cores.
        data: the user's own text; None is Python's standard library.
        field: field or column of records that holds the text; None is "text".
        seed: seed of weights, batches and samples.
        name: name of the user's text on the card.
        licence: license of the user's text, for the card.
        vocab_size: vocabulary size of the tokenizer.
        teacher: preset of the teacher; None chooses by `minutes`.
        student: preset of the student; None chooses by `minutes`.
        country: ISO 3166 three-letter code for the carbon intensity of electricity.
    """

    minutes: float = Field(default=10.0, gt=0, le=100_000, allow_inf_nan=False)
    data: Path | None = None
    field: str | None = None
    name: str | None = None
    licence: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**62)
    vocab_size: int = Field(default=4096, ge=512)
    teacher: str | None = None
    student: str | None = None
    country: str | None = None


class Budget(Config):
    """Models and steps that fit into `minutes` on this machine; saved for a resumed quickstart."""

    teacher: str
    student: str
    teacher_steps: int
    student_steps: int
    scarce_tokens: int
    matmul_gflops: float
    speed: float


def run_quickstart(config: QuickstartConfig, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Runs every stage that is not finished yet.

    Returns:
        The content of comparison.json.

    Raises:
        UserError: when the folder, text or a setting cannot be used.
        Interrupted: when stopped; run again with `resume`.
    """
    began = time.monotonic()
    if resume:
        given = config
        config = QuickstartConfig.load(RunDir.open(out).layout.config)
        _same(given, config)
        if config.field == DEFAULT_FIELD:  # once saved as the default, for text without fields too
            config = config.model_copy(update={"field": None})
    else:
        _check(config, out)
    with locked(out):
        if resume:
            files.remove_leftovers(out)
        else:
            RunDir.create(out, config)
        comparison = _run_stages(config, out)
    _conclude(out, comparison, time.monotonic() - began)
    return comparison


def _run_stages(config: QuickstartConfig, out: Path) -> dict[str, Any]:
    """Runs every stage that is not finished yet; returns the content of comparison.json."""
    layout = QuickstartLayout(out)
    console.rule(f"gemmule quickstart, about {config.minutes:g} minutes", align="left")

    with _stage("1/8 text"):
        try:
            dataset = _prepare(config, out)
        except (DataError, TokenizerError):
            if not layout.data.exists():  # there is nothing to continue: the folder is free again
                shutil.rmtree(layout.tokenizer, ignore_errors=True)
                layout.config.unlink()
            raise
    plan = _plan(config, out)
    teacher = _train(config, plan, out, dataset, "2/8", "teacher")
    scratch = _train(config, plan, out, dataset, "3/8", "scratch")
    student = _train(config, plan, out, dataset, "4/8", "student")
    ratio = student["train_flops"] / scratch["train_flops"]
    steps = round(plan.student_steps * ratio)
    longer = _train(config, plan, out, dataset, "5/8", "scratch_equal_compute", steps)
    scarce = _on_scarce_text(config, plan, out, dataset)
    heldout = dataset.manifest["splits"]["heldout"]
    comparison = {
        "equal_tokens": {"scratch": scratch, "distilled": student},
        "equal_compute": {"scratch": longer, "distilled": student},
        "scarce_text": {**scarce, "students_of_teacher": TEACHERS_STUDENTS},
        "heldout": {
            "name": dataset.name,
            "documents": heldout["documents"],
            "tokens": heldout["tokens"],
            "bytes": heldout["bytes"],
        },
        "teacher": teacher,
        "seed": config.seed,
    }
    Comparison.parse(comparison, COMPARISON).write(layout.comparison)
    with _stage("7/8 samples"):
        files.write_json(layout.samples, _samples(config, out, dataset))
    with _stage("8/8 card"):
        write_card(out)
    return comparison


def _check(config: QuickstartConfig, out: Path) -> None:
    """Finds now what would otherwise stop the last stage, or the first after minutes of work."""
    layout = QuickstartLayout(out)
    if layout.comparison.is_file():
        raise OutputError(
            f"{out} holds a finished quickstart, see {layout.card / 'index.html'}: choose another "
            "folder with --out (make quickstart ARGS='--out runs/second')"
        )
    if layout.config.is_file():
        raise OutputError(
            f"{out} holds an unfinished quickstart: continue with --resume (make quickstart "
            "ARGS=--resume), or choose another folder with --out"
        )
    check_country(config.country)
    for name in (config.teacher, config.student):
        if name is not None:
            preset(name, vocab_size=config.vocab_size)
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "report", "the model card")


def _same(given: QuickstartConfig, saved: QuickstartConfig) -> None:
    for name in given.model_fields_set:
        default = QuickstartConfig.model_fields[name].default
        asked, was = getattr(given, name), getattr(saved, name)
        if asked not in (default, was):
            raise ConfigError(
                f"--resume continues with the saved settings, where {name} = {was}; got {asked}: "
                "leave it out, or start again in another folder"
            )


@contextmanager
def _stage(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    console.print(f"{name:<28} {duration(time.monotonic() - began)}", markup=False)


def _prepare(config: QuickstartConfig, out: Path) -> Dataset:
    folder = QuickstartLayout(out).tokenizer
    if not (folder / "tokenizer_config.json").is_file():
        with ledger.activity("tokenizer", folder):
            texts = sample_texts(config.data, field=config.field)
            tokenizer = train_tokenizer(texts, config.vocab_size)
            with files.atomic_dir(folder) as tmp:
                tokenizer.save(tmp)
            ledger.note(product=tokenizer.fingerprint)
    target = QuickstartLayout(out).data
    there = (target / MANIFEST).is_file()
    with (
        counting("tokenizing") as progress,
        ledger.activity("data", target, sources=[folder]),
    ):
        if there:  # it is read, and compared with the text
            ledger.drop()
        dataset = prepare(
            config.data, Tokenizer.load(folder), target, field=config.field,
            name=config.name, licence=config.licence, progress=progress,
        )  # fmt: skip
    splits = dataset.manifest["splits"]
    sizes = ", ".join(f"{s['tokens']:,} {name}" for name, s in splits.items())
    console.print(f"{dataset.name} ({dataset.licence}): {sizes} tokens", markup=False)
    for note in [*dataset.manifest["notes"], *dropped_lines(dataset.manifest)]:
        console.print(note, markup=False)
    return dataset


def _plan(config: QuickstartConfig, out: Path) -> Budget:
    """Turns minutes into steps: the default models' measured need, scaled by arithmetic."""
    path = QuickstartLayout(out).plan
    if path.is_file():
        return Budget.parse(files.read_json(path), str(path))
    defaults = [(30, "3m", "1m"), (180, "10m", "3m"), (float("inf"), "30m", "10m")]
    big, small = next((t, s) for limit, t, s in defaults if config.minutes <= limit)
    big, small = config.teacher or big, config.student or small
    gflops = device.matmul_gflops(seconds=2.0)
    # In steps of a quarter, so that noise does not change the plan; a faster machine just ends
    # sooner. Without a compiler a step takes 1.6 times as long or more.
    speed = min(1.0, max(1, round(4 * gflops / REFERENCE_GFLOPS)) / 4)
    if not torch_compile.can_compile():
        speed /= 2

    def steps(share: int, reference: str, chosen: str) -> int:
        need = _flops(config, chosen) / _flops(config, reference)
        return max(20, round(share * config.minutes / 10 * speed / need))

    least = 4 * BATCH_SIZE * SEQ_LEN
    share = config.minutes / 10 * speed * _flops(config, "1m") / _flops(config, small)
    plan = Budget(
        teacher=big,
        student=small,
        teacher_steps=steps(TEACHER_STEPS, "3m", big),
        student_steps=steps(STUDENT_STEPS, "1m", small),
        scarce_tokens=min(SCARCE_LIMIT, max(least, round(SCARCE_TOKENS * share))),
        matmul_gflops=round(gflops, 1),
        speed=speed,
    )
    files.write_json(path, plan.model_dump())
    return plan


def _flops(config: QuickstartConfig, name: str) -> float:
    return preset(name, vocab_size=config.vocab_size).forward_flops_per_token(SEQ_LEN)


def _train(
    config: QuickstartConfig,
    plan: Budget,
    out: Path,
    dataset: Dataset,
    number: str,
    stage: str,
    steps: int | None = None,
) -> dict[str, Any]:
    steps = steps or (plan.teacher_steps if stage == "teacher" else plan.student_steps)
    settings = _settings(config, plan, out, dataset, stage, steps)
    run = out / stage
    label = LABELS[stage]
    began = time.monotonic()
    resumable = RunLayout(run).started
    if run.exists() and not resumable:
        shutil.rmtree(run)  # killed before it had begun
    result = run_training(settings, run, resume=resumable, label=f"{number} {label}")
    console.print(
        f"{number} {label:<24} {duration(time.monotonic() - began):>12}   "
        f"{result['parameters'] / 1e6:.1f}M parameters, {result['train_tokens']:,} tokens, "
        f"held out {result['nats_per_token']:.3f} nats/token",
        markup=False,
    )
    return result


def _settings(
    config: QuickstartConfig, plan: Budget, out: Path, dataset: Dataset, stage: str, steps: int
) -> RunConfig:
    """Settings of one training run."""
    objective = {"kind": "pretrain"}
    if stage == "student":
        objective = {"kind": "distill", "teacher": str(out / "teacher")}
    return RunConfig.parse(
        {
            "steps": steps,
            # The teacher's own seed, so that no student shares its batches by construction.
            "seed": config.seed + 1_000_003 if stage == "teacher" else config.seed,
            "data": {
                "path": out / "data",
                "seq_len": min(SEQ_LEN, dataset.split("train").token_count // 2),
                "batch_size": BATCH_SIZE,
            },
            "model": {"preset": plan.teacher if stage == "teacher" else plan.student},
            "objective": objective,
            "evaluation": {"every": max(1, steps // 5), "tokens": 16384},
            "checkpoint": {"every": max(100, steps // 4), "minutes": 1.0, "keep": 1},
            "runtime": {
                "compile": "auto" if config.minutes < 3 else torch_compile.can_compile(),
                "country": config.country,
            },
        }
    )


def _on_scarce_text(
    config: QuickstartConfig, plan: Budget, out: Path, dataset: Dataset
) -> dict[str, Any]:
    """The third comparison: a small part of the text, each way at its best epoch."""

    def show(name: str, result: Mapping[str, Any]) -> None:
        console.print(
            f"6/8 little text, {name:<15} best after epoch {result['epochs']} of "
            f"{result['schedule_epochs']}, held out {result['nats_per_token']:.3f} nats/token",
            markup=False,
        )

    with _stage("6/8 little text"):
        return compare_on_scarce_text(
            ScarceText(tokens=plan.scarce_tokens),
            _settings(config, plan, out, dataset, "scratch", steps=1),
            str(out / "teacher"),
            dataset,
            QuickstartLayout(out).scarce_text,
            show,
        )


def _samples(config: QuickstartConfig, out: Path, dataset: Dataset) -> list[dict[str, str]]:
    """Continuations of the openings of held-out documents, by all three models."""
    split = dataset.split("heldout")
    documents = [split.document(i) for i in range(split.document_count)]
    openings = [d[:33] for d in documents if len(d) >= 96][:PROMPTS] or [d[:33] for d in documents]
    prompts = [dataset.tokenizer.decode(ids) for ids in openings[:PROMPTS]]
    columns = {"teacher": "teacher", "scratch": "scratch", "distilled": "student"}
    texts: dict[str, list[str]] = {"prompt": prompts}
    for name, stage in columns.items():
        lm = load(out / stage)
        texts[name] = lm.generate(
            prompts, max_new_tokens=64, temperature=0.8, top_p=0.95, seed=config.seed
        )
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def _conclude(out: Path, comparison: dict[str, Any], seconds: float) -> None:
    equal, compute = comparison["equal_tokens"], comparison["equal_compute"]
    rows = [
        ("teacher", comparison["teacher"]),
        ("scratch, equal tokens", equal["scratch"]),
        ("scratch, equal compute", compute["scratch"]),
        ("distilled", equal["distilled"]),
    ]
    headers = ["held-out text", "nats/token", "perplexity", "bits/byte", "tokens", "TFLOP", "Wh"]
    table(
        headers,
        [
            [
                name,
                f"{r['nats_per_token']:.4f}",
                f"{r['perplexity']:.1f}",
                f"{r['bits_per_byte']:.3f}",
                f"{r['train_tokens'] / 1e6:.2f}M",
                f"{r['train_flops'] / 1e12:.1f}",
                "?" if r["energy_wh"] is None else f"{r['energy_wh']:.2f}",
            ]
            for name, r in rows
        ],
    )
    distilled = equal["distilled"]["nats_per_token"]
    console.print(_verdict("tokens", equal["scratch"]["nats_per_token"] - distilled))
    console.print(_verdict("compute", compute["scratch"]["nats_per_token"] - distilled))
    console.print(_scarce_verdict(comparison["scarce_text"], comparison["teacher"]))
    page = out / "card" / "index.html"
    console.print(f"done in {duration(seconds)}; the page: {page}", markup=False, soft_wrap=True)
    console.print("the student is a base model: it continues your text")
    next_commands(
        shell.command("generate", out / "student", "def "),
        shell.command("chat", out / "student"),
        shell.command("serve", out / "student"),
        shell.command("card", out, "--licence", "apache-2.0"),
    )


def _verdict(what: str, gap: float) -> str:
    which = "ahead of" if gap > 0 else "behind"
    return f"at equal {what} the distilled student is {abs(gap):.4f} nats/token {which} scratch"


def _scarce_verdict(scarce: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    scratch, distilled = scarce["scratch"], scarce["distilled"]
    gap = scratch["nats_per_token"] - distilled["nats_per_token"]
    recorded = distilled["train_flops"] + scarce["recording"]["flops"]
    share = recorded + teacher["train_flops"] / scarce["students_of_teacher"]
    return (
        f"from {scarce['text']['bytes'] / 1e3:,.0f} kB of it alone, each at its best epoch, the "
        f"distilled student (epoch {distilled['epochs']}) is {abs(gap):.4f} nats/token "
        f"{'ahead of' if gap > 0 else 'behind'} scratch (epoch {scratch['epochs']}); TFLOP: "
        f"{scratch['train_flops'] / 1e12:.1f} from scratch, {recorded / 1e12:.1f} distilled, "
        f"{share / 1e12:.1f} with its share of the teacher's training, "
        f"{(recorded + teacher['train_flops']) / 1e12:.1f} with all of it"
    )
