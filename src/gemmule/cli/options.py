"""Options of the command line: those that commands share, and groups of options.

An option is an annotated type, so that its help text is written once:

    def info(model: Model, as_json: AsJson = False) -> None: ...

A group is a dataclass of such options that a command takes as one parameter; `expand` turns it
into the options that Typer sees, and hands the command an instance:

    def chat(model: Model, sampling: Sampling) -> None: ...

`expand` also gives each option its reader, by its type: a path and a model's name may begin with
~, must not be empty and must be possible; other text must be text.
"""

import copy
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from typer.models import ArgumentInfo

from gemmule import files
from gemmule.config import ModelName, expand_model
from gemmule.errors import ConfigError, decoded

# Arguments.
Model = Annotated[
    ModelName, typer.Argument(help="Run, HF folder, hub id, or .gguf, .ckpt or .npz file.")
]
OptionalModel = Annotated[
    ModelName | None, typer.Argument(help="Run, HF folder, hub id, or .gguf, .ckpt or .npz file.")
]
Text = Annotated[
    Path | None,
    typer.Argument(help="File, folder or glob of text; default: Python's standard library."),
]
ConfigFile = Annotated[Path | None, typer.Argument(help="TOML file of settings.")]

# Where things are read and written.
Data = Annotated[Path, typer.Option(help="Folder made by gemmule data.")]
OptionalData = Annotated[Path | None, typer.Option(help="Folder made by gemmule data.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Results = Annotated[
    Path | None, typer.Option("--out", help="Folder of results; default: evals/ in the run.")
]
BenchmarkFiles = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of benchmark files; default: the hub.")
]

# Text and its labels.
Field = Annotated[
    str | None, typer.Option(help="Field or column of records that holds the text (text).")
]
CorpusName = Annotated[str | None, typer.Option(help="Name of the corpus on model cards.")]
LicenseField = Annotated[
    str | None, typer.Option(help="Field or column that holds a record's own license.")
]
CorpusLicence = Annotated[str | None, typer.Option(help="License of the corpus, for model cards.")]

# Trimming a vocabulary.
TrimText = Annotated[
    Path | None,
    typer.Option(
        "--text", help="File, folder or glob of text; default: Python's standard library."
    ),
]
TrimSize = Annotated[
    int | None,
    typer.Option("--size", help="Number of tokens to keep; default: all that the text has."),
]
TrimCoverage = Annotated[
    float, typer.Option("--coverage", help="Fraction of the text's tokens whose pieces are kept.")
]

# Models.
Quantize = Annotated[
    str | None, typer.Option(help="Quantize the weights first: int4, int6 or int8.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")
]
Device = Annotated[str, typer.Option(help="Device to run the model on: cpu or cuda.")]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0 always takes the most likely token.")
]

# Runs.
Resume = Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")]
ResumeIfStarted = Annotated[
    bool,
    typer.Option(
        "--resume-if-started",
        help="Continue the run if its folder holds it, with these settings; else start it.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        metavar="N",
        help="Share the work among N processes of this machine, started by torchrun.",
        min=1,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable."),
]
Country = Annotated[
    str | None, typer.Option(help="Country for the carbon intensity, ISO 3166 (DEU, USA, …).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Options:
    """Base of the groups: a subclass is a keyword-only dataclass of options."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The group of a command's options by name; those that are not of the group are left."""
        return cls(**{field.name: values[field.name] for field in _fields(cls)})

    def given(self) -> dict[str, Any]:
        """The options that have a value, by name; those left out at a default of None are not."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trimming(Options):
    """How much of a tokenizer's vocabulary is kept for a text."""

    trim_size: Annotated[
        int | None, typer.Option(help="Trim the tokenizer to this number of tokens.")
    ] = None
    trim_coverage: Annotated[
        float | None, typer.Option(help="Trim to this fraction of the text's tokens (1).")
    ] = None

    def extent(self) -> dict[str, Any]:
        """The fields of data.text_trim.Extent that are given."""
        given = {"size": self.trim_size, "coverage": self.trim_coverage}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """How tokens are chosen (infer/core/sampling.py)."""

    max_new_tokens: MaxNewTokens = 256
    temperature: Temperature = 0.8
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens that sum to this probability.")
    ] = 0.95
    top_k: Annotated[int | None, typer.Option(help="Sample from this many most likely tokens.")] = (
        None
    )
    seed: Annotated[int | None, typer.Option(help="Seed; default: different every time.")] = None
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that occurred before become less likely.")
    ] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving(Options):
    """How a model is held in memory to generate."""

    draft: Annotated[
        ModelName | None,
        typer.Option(help="Draft model for speculative decoding; same tokenizer."),
    ] = None
    quantize: Quantize = None
    cache: Annotated[
        str | None, typer.Option(help="Format of the KV cache: float32, float16 or int8.")
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated(Options):
    """How a model is loaded to be evaluated, and where the results go."""

    out: Results = None
    quantize: Quantize = None
    dtype: Dtype = None
    device: Device = "cpu"


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each group replaced by its options, and with a reader for each option."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Options]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and issubclass(kind, Options):
            groups[parameter.name] = kind
            parameters += [_parameter(field) for field in _fields(kind)]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    parameters = [p.replace(annotation=_with_reader(p)) for p in parameters]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            group = kind.of(values)
            for field in _fields(kind):  # one of which may have the group's name
                del values[field.name]
            values[name] = group
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _with_reader(parameter: inspect.Parameter) -> Any:
    """A parameter's annotation, completed by the function that reads its value."""
    *annotated, info = typing.get_args(parameter.annotation)
    kind = leaf = Annotated[*annotated] if len(annotated) > 1 else annotated[0]
    while leaf not in _READERS and typing.get_args(leaf):  # list[Path] | None, say
        leaf = typing.get_args(leaf)[0]
    if leaf not in _READERS:
        return parameter.annotation
    read, name = _READERS[leaf], _shown_name(parameter.name, info)
    info = copy.copy(info)
    info.parser = lambda value: read(value, name)
    return Annotated[_PLAIN.get(kind, kind), info]


def _shown_name(name: str, info: Any) -> str:
    """The name under which a user gives a parameter."""
    if isinstance(info, ArgumentInfo):
        return str(info.metavar or name.upper())
    return info.default if isinstance(info.default, str) else f"--{name.replace('_', '-')}"


def _read_path(value: str | Path, name: str) -> Path:
    if not str(value):
        raise ConfigError(f"{name} is empty: give a path, or . for the current folder")
    return files.check_path(files.expand(value))


def _read_model(value: str, name: str) -> str:
    if not value:
        raise ConfigError(f"{name} is empty: give a folder, a file or a hub id")
    files.check_path(Path(expand_model(value)))
    return expand_model(value)


def _read_text(value: str, name: str) -> str:
    """Text; in a locale without UTF-8, Python leaves the bytes of an argument undecoded."""
    text = decoded(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{name} is text that is neither UTF-8 nor in this locale's encoding, "
            f"{sys.getfilesystemencoding()}: give it in UTF-8"
        ) from None
    return text


# As Typer shows a type in the help.
_PLAIN: dict[Any, Any] = {
    ModelName: str, ModelName | None: str | None, list[ModelName] | None: list[str] | None,
}  # fmt: skip
_READERS: dict[Any, Callable[[Any, str], Any]] = {
    Path: _read_path, ModelName: _read_model, str: _read_text,
}  # fmt: skip


def _fields(kind: type[Options]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)  # type: ignore[arg-type]  # the subclasses are dataclasses


def _parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    missing = field.default is dataclasses.MISSING
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if missing else field.default,
        annotation=field.type,
    )
