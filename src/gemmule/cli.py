"""The command line: one lazy verb per thing a user does; nothing heavy is imported for --help."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule.errors import ConfigError, GemmuleError, Interrupted

if TYPE_CHECKING:
    from gemmule.infer.language_model import LanguageModel
    from gemmule.infer.sampling import SamplingSettings
    from gemmule.train.config import TrainConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make, distil, run, check and publish small Gemma 2 models on the machine you have.",
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train tokenizers.")
app.add_typer(tokenizer_app, name="tokenizer")

Source = Annotated[
    Path | None,
    typer.Argument(help="File, folder or glob of text; left out: Python's own standard library."),
]
Model = Annotated[
    str, typer.Argument(help="A run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.")
]
Field = Annotated[str, typer.Option(help="JSON field or Parquet column that holds the text.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run was saved.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, typer.Argument(help="TOML file of settings.")]


@contextmanager
def _stoppable(how: str) -> Iterator[None]:
    """Turns a Ctrl-C that nothing further down took care of into a message how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {how}") from None


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
    with _stoppable("the same command with --resume goes on from there"):
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
    from gemmule.data.prepare import sample_texts
    from gemmule.model.tokenizer import train_tokenizer
    from gemmule.runlog import claim, console

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
    from gemmule.data.prepare import prepare
    from gemmule.model.tokenizer import Tokenizer
    from gemmule.runlog import counting, table

    again = _stoppable("the same command goes on where this one stopped")
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
    from gemmule.runlog import facts
    from gemmule.train.record import RecordConfig, describe
    from gemmule.train.record import record as run

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
    with _stoppable("the same command goes on where this one stopped"):
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
    from gemmule.runlog import facts
    from gemmule.train.verify import describe
    from gemmule.train.verify import verify as run

    with _stoppable("nothing was changed"):
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
    from gemmule.runlog import RunDir, console

    if resume:
        if config or overrides:
            raise ConfigError("--resume goes on with the run's saved settings: give only --out")
        settings = _saved(RunDir.open(out).path / "config.toml")
    else:
        settings = kind.load(config, overrides or [])
    with _stoppable("the same command with --resume goes on from the last saved step"):
        from gemmule.train.run import describe, run_training

        result = run_training(settings, out, resume=resume)
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


MaxNew = Annotated[int, typer.Option(help="Longest answer, tokens.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens of this mass.")]
TopK = Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="Repeats the same draws.")]
Repetition = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: words said before become rarer.")
]
Draft = Annotated[
    str | None, typer.Option(help="A smaller model with the same tokenizer, to guess ahead.")
]
Packed = Annotated[
    str | None, typer.Option("--quantize", help="int4, int6 or int8: pack the weights first.")
]
Cache = Annotated[
    str | None, typer.Option(help="float32, float16 or int8: what keys and values are kept as.")
]


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads standard input.")],
    max_new_tokens: MaxNew = 256,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    top_k: TopK = None,
    seed: Seed = None,
    repetition_penalty: Repetition = 1.0,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: log-probabilities, and of so many others.")
    ] = None,
    draft: Draft = None,
    quantize: Packed = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Continues a text.

    Example: gemmule generate runs/quickstart/student "def add(a, b):" --temperature 0
    """
    if logprobs is not None and not as_json:
        raise ConfigError("--logprobs needs --json: the text alone has no place for them")
    text = sys.stdin.read() if prompt == "-" else prompt
    settings = _sampling(max_new_tokens, temperature, top_p, top_k, seed, repetition_penalty)
    settings["logprobs"] = logprobs
    lm = _loaded(model, draft, quantize, cache)
    if as_json:
        print(json.dumps(_generated(lm, text, settings)))
        return
    pieces = lm.stream(text, **settings)  # a wrong setting is found before anything is printed
    sys.stdout.write(text)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def chat(
    model: Model,
    system: Annotated[str, typer.Option(help="Put before the first message.")] = "",
    max_new_tokens: MaxNew = 256,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    top_k: TopK = None,
    seed: Seed = None,
    repetition_penalty: Repetition = 1.0,
    draft: Draft = None,
    quantize: Packed = None,
    cache: Cache = None,
) -> None:
    """Talks to a model in the terminal; /help lists what can be typed.

    Example: gemmule chat runs/quickstart/student
    """
    from gemmule.infer.terminal_chat import chat as terminal_chat

    settings = _sampling(max_new_tokens, temperature, top_p, top_k, seed, repetition_penalty)
    lm = _loaded(model, draft, quantize, cache)
    terminal_chat(lm, settings, system=system, name=Path(model).name)


def _loaded(
    model: str, draft: str | None, quantize: str | None, cache: str | None
) -> "LanguageModel":
    from gemmule import LanguageModel, load

    lm = load(model, quantize=quantize)
    guesser = load(draft, quantize=quantize) if draft else None
    return LanguageModel(lm.model, lm.tokenizer, draft=guesser, cache=cache)


def _sampling(
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int | None,
    seed: int | None,
    repetition_penalty: float,
) -> "SamplingSettings":
    settings: SamplingSettings = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p,
        "top_k": top_k, "seed": seed, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    return settings


def _generated(lm: "LanguageModel", text: str, settings: "SamplingSettings") -> dict[str, Any]:
    """A prompt and what follows it, with log-probabilities where they were asked for."""
    from gemmule import SamplingParams

    params = SamplingParams.of(settings)
    (done,) = lm.complete([lm.tokenizer.encode(text, bos=True)], params)
    found: dict[str, Any] = {"prompt": text, "text": done.text}
    if done.logprobs is not None:

        def shown(token: int, logprob: float) -> dict[str, Any]:
            piece = lm.tokenizer.decode([token], control=True)
            return {"id": token, "piece": piece, "logprob": logprob}

        found["tokens"] = [
            {**shown(t.id, t.logprob), "top": [shown(*pair) for pair in t.top]}
            for t in done.logprobs
        ]
    return found


@app.command()
def plan(
    teacher: Annotated[str, typer.Option(help="Preset, or run or model folder.")],
    student: Annotated[str, typer.Option(help="Preset, or run or model folder.")],
    data: Annotated[Path | None, typer.Option(help="Folder made by gemmule data.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Words of the presets, where there is no data yet.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="To train on; default: 20 for each parameter.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of --tokens.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 8,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256,
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="A finished run or quickstart, to correct the law; may be repeated."),
    ] = None,
    students: Annotated[int, typer.Option(help="That share one record of the teacher.")] = 1,
    teacher_tokens: Annotated[
        int | None, typer.Option(help="A preset's training; default: 20 for each parameter.")
    ] = None,
    country: Annotated[
        str | None, typer.Option(help="ISO 3166 code (DEU, USA, …) for the carbon intensity.")
    ] = None,
    calibration_seconds: Annotated[float, typer.Option(help="Measure for at most so long.")] = 60.0,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Says what training and distilling would take here: memory, disk, time, energy, and gain.

    Measures the machine for up to a minute. Settings of the run are set as for gemmule train.

    Example: gemmule plan --teacher runs/quickstart/teacher --student 1m --data runs/quickstart/data
    --runs runs/quickstart --tokens 1000000
    """
    from gemmule.plan.forecast import make_plan
    from gemmule.plan.request import PlanRequest
    from gemmule.plan.show import show
    from gemmule.runlog import console

    settings = [f"batch_size={batch_size}", f"seq_len={seq_len}", *(overrides or [])]
    settings += [f"country={json.dumps(country)}"] if country else []
    values = {
        "teacher": teacher, "student": student, "data": data, "vocab_size": vocab_size,
        "tokens": tokens, "steps": steps, "teacher_tokens": teacher_tokens, "students": students,
        "runs": runs or [], "settings": settings, "calibration_seconds": calibration_seconds,
    }  # fmt: skip
    request = PlanRequest.parse(values, source="plan")
    with _stoppable("nothing was written"):
        console.print(f"measuring for up to {calibration_seconds:.0f} s", style="dim")
        found = make_plan(request, lambda what: console.print(f"measured: {what}", style="dim"))
    if as_json:
        print(json.dumps(found))
    else:
        show(found)


@app.command()
def doctor(
    model: Model,
    backend: Annotated[
        str, typer.Option(help="Who runs the model: gemmule, transformers or openai.")
    ] = "gemmule",
    url: Annotated[
        str | None, typer.Option(help="Base address of an OpenAI-compatible server.")
    ] = None,
    served: Annotated[
        str | None, typer.Option("--model", help="The server's name for it; default: its first.")
    ] = None,
    attn: Annotated[str, typer.Option(help="transformers' attn_implementation.")] = "eager",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Looks for the bugs that ports of Gemma 2 have had; exits with 1 when it finds one.

    Example: gemmule doctor google/gemma-2-2b --backend transformers
    """
    from gemmule.doctor.run import run_doctor

    with _stoppable("nothing was written"):
        report = run_doctor(model, backend, url, served, attn, dtype)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        report.show()
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def info(model: Model, as_json: AsJson = False) -> None:
    """Shows what a checkpoint is without loading it: shape, sizes, dtype, tokenizer.

    Example: gemmule info google/gemma-2-2b
    """
    from gemmule.checkpoints.describe import describe, lines
    from gemmule.runlog import facts

    found = describe(model)
    if as_json:
        print(json.dumps(found))
    else:
        facts(lines(found), title=found["path"])


@app.command()
def convert(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    to: Annotated[str, typer.Option(help="hf, gguf or gemma_pytorch.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the matrices: float32, bfloat16, float16; GGUF also Q8_0, Q4_0."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="What to compare on; else a module of Python's own.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare before calling it done.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Writes a model for other programs, and has them read it before it is called done.

    Stopped at any moment, the same command goes on where it stopped. The figures of the comparison
    are in the folder's export.json.

    Example: gemmule convert runs/quickstart/student exports/student-gguf --to gguf --dtype Q8_0
    """
    from gemmule.checkpoints.convert import convert as run
    from gemmule.checkpoints.convert import summary
    from gemmule.runlog import facts, staged

    with _stoppable("the same command goes on where this one stopped"), staged() as progress:
        report = run(model, out, to, dtype, verify=verify, text=text, progress=progress)
    if as_json:
        print(json.dumps(report))
    else:
        facts(summary(report), title=str(out))


@app.command()
def quantize(
    model: Model,
    to: Annotated[str, typer.Option(help="int4, int6 or int8: of the layers' matrices.")],
    head: Annotated[
        str | None,
        typer.Option(help="int4, int6, int8 or bf16: of embedding and head; default: by size."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Text file or data folder to round int4 for; default: a run's; or none."),
    ] = None,
    eval_text: Annotated[
        Path | None, typer.Option(help="Text file to measure the loss on; default: a run's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: NAME-int4 beside the model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Packs a model into 4, 6 or 8 bits a weight, and measures what that cost.

    Stopped, it leaves nothing and starts from the beginning. What it cost, as the folder's
    quantization.json says: KL to the original, top-1 agreement and perplexity on held-out text.

    Example: gemmule quantize runs/quickstart/student --to int4 --out exports/student-int4
    """
    from gemmule.quantize import quantize as run
    from gemmule.quantize import summary
    from gemmule.runlog import console, counting, facts

    def stage(what: str) -> None:
        console.print(what, style="dim", markup=False)

    with _stoppable("nothing was written"), counting("packing") as progress:
        report = run(
            model, to, out, head=head, calibrate=calibrate, eval_text=eval_text,
            progress=progress, stage=stage,
        )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        facts(summary(report), title=report["out"])
        console.print(f"next: gemmule generate {report['out']} 'The'", markup=False)


@app.command()
def bench(
    model: Model,
    quantize: Annotated[
        str | None, typer.Option(help="int4, int6 or int8: pack a floating model first.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: every core.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt that is taken in.")] = 512,
    context: Annotated[int, typer.Option(help="Tokens before those that are decoded.")] = 128,
    batch: Annotated[str, typer.Option(help="Sequences decoded together, as in 1,8.")] = "1,8",
    as_json: AsJson = False,
) -> None:
    """Measures how fast a model runs here, beside what memory and processor allow.

    Takes some seconds for a small model, about a minute for a 2B.

    Example: gemmule bench runs/quickstart/student --batch 1,4
    """
    from gemmule.runlog import ProgressBar
    from gemmule.speed.request import SpeedRequest

    values = {
        "model": model, "quantize": quantize, "threads": threads, "prompt": prompt,
        "context": context, "batch": batch,
    }  # fmt: skip
    request = SpeedRequest.parse(values, source="bench")
    from gemmule.speed.measure import measure
    from gemmule.speed.show import show

    with _stoppable("nothing was written"), ProgressBar("measuring", 100, "%") as bar:

        def progress(done: int, total: int, note: str) -> None:
            bar.update(100 * done / total, note)

        found = measure(request, progress)
    if as_json:
        print(json.dumps(found))
    else:
        show(found)


@app.command()
def ablate(
    ablation: Annotated[
        str, typer.Argument(metavar="NAME", help="Which one; list shows them, as below.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder made by gemmule data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write, or to go on in.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher; left out, one is trained first.")
    ] = None,
    teacher_size: Annotated[
        str | None, typer.Option(help="Model size of a teacher that is trained.")
    ] = None,
    teacher_tokens: Annotated[int | None, typer.Option(help="What it is trained on.")] = None,
    student: Annotated[str | None, typer.Option(help="Model size of the student.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each kind.")] = 3,
    tokens: Annotated[int, typer.Option(help="What each student is trained on.")] = 300_000,
    online: Annotated[
        bool, typer.Option("--online", help="Learn from the teacher itself, not from a record.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repeats an ablation of the report at your scale: several seeds, means with intervals.

    The same command goes on with a stopped sweep and tries failed runs again. Table, plot and
    page are in the folder; exits with 1 when runs failed.

    Example: gemmule ablate size --data runs/data --out runs/ablate-size

    distilled  distilled against from scratch (report, table 6)
    size       the gap by student size (table 7)
    heads      grouped-query against multi-head attention (table 8)
    depth      deep against wide (table 9)
    window     the sliding window shrunk at inference (table 10)
    loss       divergences, temperature, share of the next token
    teacher    how large a teacher
    targets    ways to store what a teacher says, by bytes a token
    induction  does the model copy what it saw before
    routing    tokens that the teacher is unsure of learn from the text
    """
    from gemmule.ablate.catalogue import find, listing
    from gemmule.runlog import console, facts, table

    if ablation == "list":
        rows = listing()
        if as_json:
            print(json.dumps([dict(zip(("name", "title", "table"), r, strict=True)) for r in rows]))
        else:
            facts([(name, f"{title} ({where})") for name, title, where in rows])
        return
    find(ablation)
    if data is None or out is None:
        raise ConfigError(
            f"gemmule ablate {ablation} needs --data, a folder made by gemmule data, and --out, a "
            "folder to write"
        )
    from gemmule.ablate.config import SweepConfig, given_settings

    values = {
        "ablation": ablation, "data": data, "teacher": teacher, "teacher_size": teacher_size,
        "teacher_tokens": teacher_tokens, "student": student, "seeds": seeds, "tokens": tokens,
        "online": online, "settings": given_settings(overrides or [], data),
    }  # fmt: skip
    config = SweepConfig.parse({k: v for k, v in values.items() if v is not None}, "ablate")
    with _stoppable("the same command goes on from there"):
        from gemmule.ablate.page import failures, summary_table, verdicts
        from gemmule.ablate.run import run_ablation

        results = run_ablation(config, out)
    if as_json:
        print(json.dumps(results))
    else:
        table(*summary_table(results, brief=True), title=results["title"])
        for line in [*verdicts(results), *(f"failed: {f}" for f in failures(results))]:
            console.print(line, markup=False)
        console.print(f"the page: {out / 'README.md'}", markup=False)
    if results["failed"]:
        raise typer.Exit(1)


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="A run or quickstart directory.")],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, as the hub spells it.")
    ] = None,
) -> None:
    """Writes the model card: README.md for the hub and index.html to look at.

    Example: gemmule card runs/quickstart
    """
    from gemmule.report.card import write_card

    print(write_card(run, licence) / "index.html")


def _version(wanted: bool) -> None:
    if wanted:
        from gemmule import __version__

        print(f"gemmule {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with 0, 2 (the user's mistake), 1 (ours) or 130 (stopped)."""
    try:
        result: Any = app(arguments, standalone_mode=True)
    except GemmuleError as e:
        print(f"gemmule: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except SystemExit as e:  # by typer, which takes these two upon itself
        if e.code == Interrupted.exit_code:  # Ctrl-C
            print("gemmule: stopped", file=sys.stderr)
        elif isinstance(e.__context__, BrokenPipeError):  # the reader (head, say) has seen enough
            raise SystemExit(0) from None
        raise
    raise SystemExit(result or 0)


if __name__ == "__main__":
    main()
