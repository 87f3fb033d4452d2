"""gemmule generate and chat."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gemmule.cli.app import RUN, command
from gemmule.cli.options import AsJson, Model, OptionalModel, Sampling, Serving
from gemmule.errors import ConfigError
from gemmule.runtime import streams

if TYPE_CHECKING:
    from gemmule.infer.core.sampling import SamplingSettings
    from gemmule.infer.language_model import LanguageModel
    from gemmule.serve.remote_chat import RemoteModel


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
    with _counted(lm):
        sys.stdout.write(text)
        for more in stream:
            sys.stdout.write(more)
            sys.stdout.flush()
        sys.stdout.write("\n")


@command(RUN)
def chat(
    sampling: Sampling,
    serving: Serving,
    model: OptionalModel = None,
    system: Annotated[str, typer.Option(help="Text to put before the first message.")] = "",
    url: Annotated[
        str | None, typer.Option(help="Chat with a server: its address, usually ending in /v1.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--model", help="With --url: name of the model there; default: the first."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="With --url: file of the API key; default: $GEMMULE_API_KEY."),
    ] = None,
) -> None:
    """Chat with a model in the terminal, or with one on a server; /help lists the commands there.

    Example: gemmule chat runs/quickstart/student

    Example: gemmule chat --url http://127.0.0.1:8000/v1
    """
    from gemmule.infer.terminal_chat import TerminalChat

    if url is not None:
        remote = _remote_model(url, name, key_file, model, sampling, serving)
        with contextlib.closing(remote):
            TerminalChat(remote, system=system, name=remote.name).run()
        return
    if model is None:
        raise ConfigError("name a model, as in gemmule chat runs/quickstart/student, or a server")
    if name is not None or key_file is not None:
        raise ConfigError("--model and --key-file are for servers: give the address with --url")
    from gemmule.infer.local_chat import LocalModel

    lm = _load(model, serving)
    local = LocalModel(lm, _settings(sampling))
    with _counted(lm):
        TerminalChat(local, system=system, name=Path(model).name).run()


def _remote_model(
    url: str,
    name: str | None,
    key_file: Path | None,
    model: str | None,
    sampling: Sampling,
    serving: Serving,
) -> "RemoteModel":
    from gemmule.serve.remote_chat import RemoteModel, RemoteSampling, read_key

    if model is not None:
        raise ConfigError(
            f"give either a model, {model}, or the address of a server, {url}; a server's model is "
            "chosen with --model"
        )
    if serving.given():
        raise ConfigError(
            f"--{next(iter(serving.given()))} is for models in this process: the server with the "
            "address of --url has its own settings"
        )
    given = sampling.given()
    if given["repetition_penalty"] == 1.0:  # none, which servers that do not know it accept
        del given["repetition_penalty"]
    settings = RemoteSampling(max_tokens=given.pop("max_new_tokens"), **given)
    return RemoteModel(url, name, sampling=settings, key=read_key(key_file))


def _load(model: str, serving: Serving) -> "LanguageModel":
    from gemmule import LanguageModel, load

    lm = load(model, quantize=serving.quantize)
    draft = load(serving.draft, quantize=serving.quantize) if serving.draft else None
    return LanguageModel(lm.model, lm.tokenizer, draft=draft, cache=serving.cache)


@contextlib.contextmanager
def _counted(lm: "LanguageModel") -> Iterator[None]:
    """Counts the tokens for the command's line in the ledger, however it ends."""
    from gemmule.runs.ledger import activity as ledger

    try:
        yield
    finally:
        stats = lm.engine().stats()
        ledger.note(tokens_in=stats.prompt_tokens, tokens_out=stats.generated_tokens)


def _settings(sampling: Sampling) -> "SamplingSettings":
    return cast("SamplingSettings", sampling.given())  # what is left out is None there as well


def _completion(lm: "LanguageModel", text: str, settings: "SamplingSettings") -> dict[str, Any]:
    """The prompt and its completion, with log-probabilities if the settings ask for them."""
    from gemmule import SamplingParams

    params = SamplingParams.of(settings)
    with _counted(lm):
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
