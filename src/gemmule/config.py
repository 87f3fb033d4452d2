"""TOML plus overrides to frozen, validated configs.

A run's settings are one pydantic model; an unknown key is an error that names the nearest right
one, and the resolved config is written back with the run.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pydantic
import tomli_w

from gemmule import files
from gemmule.errors import ConfigError, decoded


def expand_model(name: str) -> str:
    """A model's name; one that is a path below ~ becomes a path below the home folder."""
    return str(files.expand(name)) if name.startswith("~") else name


# A setting that names a model: a path, a preset or a hub id.
ModelName = Annotated[str, pydantic.AfterValidator(expand_model)]


class Config(pydantic.BaseModel):
    """Base of every config: frozen, and unknown keys are refused.

    Attributes:
        moved: keys of earlier versions, each with its name today; an error names it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    moved: ClassVar[Mapping[str, str]] = {}

    @pydantic.field_validator("*")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:
        """A path below ~ becomes one below the home folder, in a file as in Python."""
        if isinstance(value, tuple):
            return tuple(map(_expanded, value))
        return _expanded(value)

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """Validates `values`.

        Args:
            values: nested mapping of settings.
            source: where they came from, for the error message.

        Raises:
            ConfigError: naming every wrong key and value, and the nearest right key.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as e:
            lines = [_explain(cls, error) for error in e.errors()]
            raise ConfigError(f"{source}: " + "; ".join(lines)) from None

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> Self:
        """Reads a TOML file (or nothing) and applies `a.b=value` overrides.

        Raises:
            ConfigError: when the file is missing or not TOML, or a key or value is wrong.
        """
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = files.read_toml(path)
            except FileNotFoundError:
                raise ConfigError(f"no config file at {path}") from None
            except (ValueError, OSError) as e:
                reason = getattr(e, "strerror", None) or e
                raise ConfigError(f"{path} is not a readable TOML file: {reason}") from None
        values = assign(cls.upgrade(values), overrides)
        return cls.parse(values, source=str(path) if path else "config")

    @classmethod
    def upgrade(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings as read from a file, in today's form; a config with older forms overrides it."""
        return values

    def save(self, path: Path) -> None:
        """Writes the resolved config as TOML, atomically; unset (None) fields are left out."""
        values = self.model_dump(mode="json", exclude_none=True)
        try:
            files.write_text(path, decoded(tomli_w.dumps(values)))
        except UnicodeEncodeError:
            raise ConfigError(
                f"{path} cannot hold the settings: a path in them is not UTF-8; rename that file "
                "or folder"
            ) from None


def _expanded(value: Any) -> Any:
    return files.expand(value) if isinstance(value, Path) else value


def assign(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Nested settings with `a.b=value` overrides put in.

    Raises:
        ConfigError: for an override that is not of the form key=value.
    """
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, eq, text = override.partition("=")
    if not eq or not key.strip():
        raise ConfigError(f"cannot read the override {override!r}: write key=value, as in seed=1")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except RecursionError:
        raise ConfigError(f"{key.strip()}: the value is nested too deeply") from None
    except ValueError:
        value = text  # a bare word is a string: --set model.preset=1m
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} is a value, not a group of settings")
    values[last] = value


def nearest(word: str, allowed: Sequence[str]) -> str:
    """A closing hint: the nearest allowed word, or all of them."""
    match = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"allowed: {', '.join(allowed)}"


def _explain(cls: type[Config], error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    name = ".".join(loc) or "config"
    if name in cls.moved and error["type"] == "extra_forbidden":
        return f"unknown key {name!r}; did you mean {cls.moved[name]!r}?"
    if name in cls.moved and error["type"] == "model_type":
        value = error["input"]
        return f"{name} = {value!r}: a group of settings; did you mean {cls.moved[name]!r}?"
    if error["type"] == "extra_forbidden":
        owner: type[pydantic.BaseModel] = cls
        for part in loc[:-1]:
            if part.isdecimal():  # an element of a list
                continue
            field = owner.model_fields.get(part)
            group = _model_type(field.annotation) if field else None
            if group is None:
                break
            owner = group
        return f"unknown key {name!r}; {_nearest_key(loc[-1], owner, cls)}"
    if error["type"] == "missing":
        return f"{name!r} is required: set it in the file, or with --set {name}=…"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if isinstance(error["input"], Mapping):  # a check of several settings, which it names itself
        return f"{name}: {message}" if loc else message
    return f"{name} = {error['input']!r}: {message}"


def _nearest_key(word: str, owner: type[pydantic.BaseModel], root: type[Config]) -> str:
    """The nearest key, of the same group by its last part, of any other group by its full name."""
    allowed = list(owner.model_fields)
    names = {full.rpartition(".")[2]: full for full in _keys(root)}
    names = {**names, **root.moved, **{name: name for name in allowed}}
    match = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    return f"did you mean {names[match[0]]!r}?" if match else nearest(word, allowed)


def _keys(cls: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        group = _model_type(field.annotation)
        if group is not None:
            yield from _keys(group, f"{prefix}{name}.")


def _model_type(annotation: Any) -> type[pydantic.BaseModel] | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        models = (_model_type(option) for option in typing.get_args(annotation))
        return next((model for model in models if model is not None), None)
    is_model = isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
    return annotation if is_model else None
