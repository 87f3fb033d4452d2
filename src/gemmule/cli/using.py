"""Verbs that run models, look into them and turn them into other files."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule.cli.app import AsJson, Model, Packed, app, stoppable
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.infer.core.sampling import SamplingSettings
    from gemmule.infer.language_model import LanguageModel

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
def info(model: Model, as_json: AsJson = False) -> None:
    """Shows what a checkpoint is without loading it: shape, sizes, dtype, tokenizer.

    Example: gemmule info google/gemma-2-2b
    """
    from gemmule.checkpoints.describe import describe, lines
    from gemmule.console import facts

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
    from gemmule.console import facts, staged

    with stoppable("the same command goes on where this one stopped"), staged() as progress:
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
    from gemmule.console import console, counting, facts
    from gemmule.quantize import quantize as run
    from gemmule.quantize import summary

    def stage(what: str) -> None:
        console.print(what, style="dim", markup=False)

    with stoppable("nothing was written"), counting("packing") as progress:
        report = run(
            model, to, out, head=head, calibrate=calibrate, eval_text=eval_text,
            progress=progress, stage=stage,
        )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        facts(summary(report), title=report["out"])
        console.print(f"next: gemmule generate {report['out']} 'The'", markup=False)
