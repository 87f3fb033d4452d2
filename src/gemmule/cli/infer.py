"""gemmule generate and chat."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gemmule.cli.app import RUN, command
from gemmule.cli.options import AsJson, Model, Sampling, Serving
from gemmule.errors import ConfigError
from gemmule.runtime import streams

if TYPE_CHECKING:
    from gemmule.infer.core.sampling import SamplingSettings
    from gemmule.infer.language_model import LanguageModel


@command(RUN)
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    sampling: Sampling,
    serving: Serving,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities, also of this many alternatives."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text.

    Example: gemmule generate runs/quickstart/student "def add(a, b):" --temperature 0
    """
    if logprobs is not None and not as_json:
        raise ConfigError("--logprobs needs --json: plain text has no place for them")
    text = streams.read_stdin() if prompt == "-" else prompt
    settings = _settings(sampling)
    settings["logprobs"] = logprobs
    lm = _load(model, serving)
    if as_json:
        print(json.dumps(_completion(lm, text, settings)))
        return
    stream = lm.stream(text, **settings)  # raises for a wrong setting before anything is printed
    sys.stdout.write(text)
    for more in stream:
        sys.stdout.write(more)
        sys.stdout.flush()
    sys.stdout.write("\n")


@command(RUN)
def chat(
    model: Model,
    sampling: Sampling,
    serving: Serving,
    system: Annotated[str, typer.Option(help="Text to put before the first message.")] = "",
) -> None:
    """Chat with a model in the terminal; /help lists the commands there.

    Example: gemmule chat runs/quickstart/student
    """
    from gemmule.infer.terminal_chat import chat as terminal_chat

    lm = _load(model, serving)
    terminal_chat(lm, _settings(sampling), system=system, name=Path(model).name)


def _load(model: str, serving: Serving) -> "LanguageModel":
    from gemmule import LanguageModel, load

    lm = load(model, quantize=serving.quantize)
    draft = load(serving.draft, quantize=serving.quantize) if serving.draft else None
    return LanguageModel(lm.model, lm.tokenizer, draft=draft, cache=serving.cache)


def _settings(sampling: Sampling) -> "SamplingSettings":
    return cast("SamplingSettings", sampling.given())  # what is left out is None there as well


def _completion(lm: "LanguageModel", text: str, settings: "SamplingSettings") -> dict[str, Any]:
    """The prompt and its completion, with log-probabilities if the settings ask for them."""
    from gemmule import SamplingParams

    params = SamplingParams.of(settings)
    (done,) = lm.complete([lm.tokenizer.encode(text, bos=True)], params)
    result: dict[str, Any] = {"prompt": text, "text": done.text}
    if done.logprobs is not None:

        def candidate(token: int, logprob: float) -> dict[str, Any]:
            piece = lm.tokenizer.decode([token], control=True)
            return {"id": token, "piece": piece, "logprob": logprob}

        result["tokens"] = [
            {**candidate(t.id, t.logprob), "top": [candidate(*pair) for pair in t.top]}
            for t in done.logprobs
        ]
    return result
