"""Verbs that make models, and what those are made from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule.cli.app import (
    AsJson,
    ConfigFile,
    Field,
    Out,
    Overrides,
    Resume,
    Source,
    app,
    stoppable,
    tokenizer_app,
)
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.train.config import TrainConfig


@app.command()
def quickstart(
    minutes: Annotated[float, typer.Option(help="About how long it may take.")] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/quickstart"),
    data: Annotated[Path | None, typer.Option(help="Your own text: file, folder, glob.")] = None,
    field: Field = "text",
    name: Annotated[str | None, typer.Option(help="What the card calls your text.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of your text, for the card.")] = None,
    seed: Annotated[int, typer.Option(help="Decides weights, batches and samples.")] = 0,
    teacher: Annotated[str | None, typer.Option(help="Model preset of the teacher.")] = None,
    student: Annotated[str | None, typer.Option(help="Model preset of the student.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Pieces of the tokenizer; fewer for a small text.")
    ] = None,
    country: Annotated[
        str | None, typer.Option(help="ISO 3166 code (DEU, USA, …) for the carbon intensity.")
    ] = None,
    resume: Resume = False,
) -> None:
    """Distils a small model of your own: corpus, tokenizer, teacher, student, comparison, card.

    Example: gemmule quickstart --minutes 10 --data ~/notes
    """
    from gemmule.quickstart import QuickstartConfig, run_quickstart

    values = {
        "minutes": minutes, "data": data and data.absolute(), "field": field, "name": name,
        "licence": licence, "seed": seed, "teacher": teacher, "student": student,
        "vocab_size": vocab_size, "country": country,
    }  # fmt: skip
    config = QuickstartConfig.parse({k: v for k, v in values.items() if v is not None})
    with stoppable("the same command with --resume goes on from there"):
        run_quickstart(config, out, resume=resume)


@tokenizer_app.command("train")
def tokenizer_train(
    out: Out,
    source: Source = None,
    vocab_size: Annotated[int, typer.Option(help="Pieces, the 473 fixed ones included.")] = 4096,
    field: Field = "text",
) -> None:
    """Trains a SentencePiece tokenizer as Gemma's is trained.

    Example: gemmule tokenizer train ~/notes --vocab-size 8192 --out runs/tokenizer
    """
    from gemmule.console import console
    from gemmule.data.prepare import sample_texts
    from gemmule.model.tokenizer import train_tokenizer
    from gemmule.runs.run_dir import claim

    claim(out)
    trained = train_tokenizer(sample_texts(source, field=field), vocab_size)
    trained.save(out)
    console.print(f"{trained.vocab_size:,} pieces in {out}")


@app.command()
def data(
    tokenizer: Annotated[Path, typer.Option(help="Folder or .model file of the tokenizer.")],
    out: Out,
    source: Source = None,
    field: Field = "text",
    name: Annotated[str | None, typer.Option(help="What a card calls the corpus.")] = None,
    licence: Annotated[str | None, typer.Option(help="The corpus's licence.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenises text once, split into train, validation and held-out documents.

    Stopped at any moment, the same command goes on where it stopped.

    Example: gemmule data ~/notes --tokenizer runs/tokenizer --out runs/data
    """
    from gemmule.console import counting, table
    from gemmule.data.prepare import prepare
    from gemmule.model.tokenizer import Tokenizer

    again = stoppable("the same command goes on where this one stopped")
    with again, counting("tokenising") as progress:
        dataset = prepare(
            source, Tokenizer.load(tokenizer), out, field=field, name=name, licence=licence,
            progress=progress,
        )  # fmt: skip
    splits = dataset.manifest["splits"]
    counts = {k: {n: s[n] for n in ("documents", "tokens", "bytes")} for k, s in splits.items()}
    if as_json:
        about = {k: dataset.manifest[k] for k in ("name", "licence", "dropped", "notes")}
        print(json.dumps({**about, "fingerprint": dataset.fingerprint, "splits": counts}))
        return
    rows = [[k, *(f"{n:,}" for n in c.values())] for k, c in counts.items()]
    table(["split", "documents", "tokens", "bytes"], rows, title=dataset.name)
    for note in [*dataset.manifest["notes"], *_dropped(dataset.manifest["dropped"])]:
        print(note)


def _dropped(reasons: dict[str, int]) -> list[str]:
    return [f"left out, {reason}: {count:,}" for reason, count in reasons.items()]


@app.command()
def train(
    out: Out,
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Trains a model on next-token prediction.

    Example: gemmule train configs/train-1m.toml --set data=runs/data --out runs/mine
    """
    from gemmule.train.config import TrainConfig

    _train(TrainConfig, out, config, overrides, resume, as_json)


@app.command()
def record(
    teacher: Annotated[
        str, typer.Argument(help="The teacher: run, HF folder, hub id, or a server's address.")
    ],
    data: Annotated[Path, typer.Option(help="Folder made by gemmule data.")],
    out: Out,
    kind: Annotated[
        str, typer.Option(help="What is kept: sample, top_k, top_k_tail or top_p.")
    ] = "sample",
    draws: Annotated[int | None, typer.Option(help="Draws a token, of sample (50).")] = None,
    k: Annotated[
        int | None, typer.Option(help="Ids a token, of top_k and top_k_tail (32).")
    ] = None,
    p: Annotated[float | None, typer.Option(help="Mass to reach, of top_p (0.95).")] = None,
    proposal: Annotated[
        float | None, typer.Option(help="Power of the probabilities drawn from, of sample (1).")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the teacher's softmax (1).")] = None,
    tokens: Annotated[int | None, typer.Option(help="Record so many; more later appends.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens seen together (256).")] = None,
    part: Annotated[
        str | None, typer.Option(help="Which of how many parts, as in 2/4: run each somewhere.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Records what a teacher says about a corpus, once, for any number of students.

    Stopped at any moment, the same command goes on where it stopped. With a larger --tokens it
    appends. Several processes or machines can record into one folder, each its --part.

    Example: gemmule record runs/big --data runs/data --out runs/targets
    """
    from gemmule.config import assign
    from gemmule.console import facts
    from gemmule.teachers.record import RecordConfig, describe
    from gemmule.teachers.record import record as run

    own = {
        "kind": kind, "draws": draws, "k": k, "p": p, "proposal": proposal,
        "temperature": temperature,
    }  # fmt: skip
    values: dict[str, Any] = {
        "teacher": teacher, "data": data, "tokens": tokens, "seq_len": seq_len, "part": part,
        "targets": {key: value for key, value in own.items() if value is not None},
    }  # fmt: skip
    values = {key: value for key, value in values.items() if value is not None}
    config = RecordConfig.parse(assign(values, overrides or []))
    with stoppable("the same command goes on where this one stopped"):
        result = run(config, out)
    if as_json:
        print(json.dumps(result))
    else:
        facts(describe(result), title=str(out))


@app.command()
def verify(
    store: Annotated[Path, typer.Argument(help="Folder made by gemmule record.")],
    teacher: Annotated[
        str | None, typer.Option(help="Its teacher; default: where it was recorded from.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Its data; default: as recorded.")] = None,
    student: Annotated[
        str | None, typer.Option(help="Take the gaps at this model; default: at the teacher.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many the teacher says again.")] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Decides which.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Checks a logit store: damage, faithfulness, truncation; exits with 1 if it is unfaithful.

    Example: gemmule verify runs/targets
    """
    from gemmule.console import facts
    from gemmule.teachers.verify_store import describe
    from gemmule.teachers.verify_store import verify as run

    with stoppable("nothing was changed"):
        report = run(
            store, teacher=teacher, data=data, student=student, tokens=tokens, seed=seed
        )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        facts(describe(report), title=str(store))
    if not report["ok"]:
        raise typer.Exit(1)


@app.command()
def distill(
    out: Out,
    config: ConfigFile = None,
    teacher: Annotated[str | None, typer.Option(help="The teacher: run or HF folder.")] = None,
    targets: Annotated[
        Path | None, typer.Option(help="What gemmule record kept of it, instead of a teacher.")
    ] = None,
    cross_tokenizer: Annotated[
        bool, typer.Option("--cross-tokenizer", help="The teacher has another tokenizer.")
    ] = False,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Trains a student on its teacher's distribution, or on a record of it.

    Example: gemmule distill configs/distill-1m.toml --teacher runs/big --set data=runs/data
    --out runs/small
    """
    from gemmule.train.config import DistillConfig

    given = {"teacher": teacher, "targets": targets}
    chosen = [f"{name}={json.dumps(str(path))}" for name, path in given.items() if path]
    chosen += ["cross_tokenizer=true"] if cross_tokenizer else []
    values = [*(overrides or []), *chosen]
    _train(DistillConfig, out, config, values, resume, as_json)


def _train(
    kind: "type[TrainConfig]",
    out: Path,
    config: Path | None,
    overrides: list[str] | None,
    resume: bool,
    as_json: bool,
) -> None:
    from gemmule.console import console
    from gemmule.runs.run_dir import RunDir

    if resume:
        if config or overrides:
            raise ConfigError("--resume goes on with the run's saved settings: give only --out")
        settings = _saved(RunDir.open(out).path / "config.toml")
    else:
        settings = kind.load(config, overrides or [])
    with stoppable("the same command with --resume goes on from the last saved step"):
        from gemmule.evals.memorization.callback import memorization_probe
        from gemmule.train.run import describe, run_training

        result = run_training(settings, out, resume=resume, make_probes=[memorization_probe])
    if as_json:
        print(json.dumps(result))
    else:
        console.print(describe(result))
        console.print(f"next: gemmule generate {out} 'The'   gemmule card {out}")


def _saved(path: Path) -> "TrainConfig":
    """A run's settings; either verb goes on with whatever the run was."""
    from gemmule.train.config import DistillConfig, TrainConfig

    lines = path.read_text().splitlines()
    distilling = any(line.startswith(("teacher =", "targets =")) for line in lines)
    return (DistillConfig if distilling else TrainConfig).load(path)
