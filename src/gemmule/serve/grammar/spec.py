"""What an answer must match, as text that llguidance compiles."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from gemmule.errors import ConfigError
from gemmule.serve.grammar.limits import GrammarLimits

# White space between the parts of JSON: a space, or a line break and an indentation. Small models
# would write it without end.
_OPTIONS = {"whitespace_pattern": "( |\\n[ \\t]{0,32})"}
# Where llguidance reads its options in a schema. A client's could turn the checks off.
_OPTIONS_KEY = "x-guidance"


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar before it is compiled; equal ones are compiled once.

    Attributes:
        kind: "json" for a JSON schema, "regex", "lark", or "grammar" for either Lark or GBNF.
        source: its text.
    """

    kind: Literal["json", "regex", "lark", "grammar"]
    source: str

    @property
    def noun(self) -> str:
        """What messages call it."""
        return {"json": "schema", "regex": "regular expression"}.get(self.kind, "grammar")

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: object, name: str = "the schema") -> Self:
        """JSON that a schema describes.

        Args:
            schema: a schema (draft 2020-12), or JSON text of one.
            name: what messages call it.

        Raises:
            ConfigError: if it is not a schema, nests too deep, or has options for the compiler.
        """
        return cls("json", schema_text(schema, name))

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Self:
        """One of several texts.

        Raises:
            ConfigError: if there is none.
        """
        if not choices or not all(choices):
            raise ConfigError("choice is empty, or has an empty text: list the allowed answers")
        return cls("lark", "start: " + " | ".join(map(lark_literal, choices)))


def schema_text(schema: object, name: str) -> str:
    """The JSON text of a schema, with the options of the compiler.

    Raises:
        ConfigError: if it is not a schema, nests too deep, or has options for the compiler.
    """
    limit = GrammarLimits.depth
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        deep = depth(schema) > limit
    except RecursionError:
        deep = True
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from None
    if deep:
        raise ConfigError(f"{name} nests deeper than {limit} levels: make it flatter")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ConfigError(f"{name} is {kind_of(schema)}: give a JSON schema, which is an object")
    if _OPTIONS_KEY in schema:
        raise ConfigError(f"{name} has the key {_OPTIONS_KEY}, which is not allowed: leave it out")
    return json.dumps({**schema, _OPTIONS_KEY: _OPTIONS})


def depth(value: object) -> int:
    """Levels of objects and arrays in plain data, found without recursion."""
    levels, level = 0, [value]
    while level:
        level = [item for part in level for item in _items(part)]
        levels += 1
        if levels > GrammarLimits.depth:
            break
    return levels


# What the library says in words of its own: the beginning of its message, and what it means.
_MEANINGS = {
    "NoExtensionBias": "no text matches it",
    "oneOf constraints are not supported": "oneOf is supported only where no two of its schemas "
    "can match the same value: use anyOf",
}


def lark_literal(text: str) -> str:
    """A text as Lark's grammar writes it: a JSON string, with DEL escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_size(spec: GrammarSpec, limits: GrammarLimits) -> None:
    """Raises ConfigError for a text that is too long, or that UTF-8 cannot represent."""
    try:
        size = len(spec.source.encode())
    except UnicodeEncodeError:
        raise ConfigError(
            f"the {spec.noun} holds a lone surrogate: send text that is UTF-8"
        ) from None
    if size > limits.source_bytes:
        raise ConfigError(
            f"the {spec.noun} has {size} bytes, at most {limits.source_bytes} are allowed: "
            "shorten it"
        )


def short_reason(message: str) -> str:
    """The library's reason in one short line, from a message that can quote a whole grammar."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    # The last part of an error in a regular expression says what is wrong; the rest quotes it.
    explained = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    line = (explained or lines or ["unknown reason"])[0]
    line = re.sub(r"^(at )?\d+\(\d+\): ", "", line)
    line = next((told for start, told in _MEANINGS.items() if line.startswith(start)), line)
    line = "".join(c if c.isprintable() else " " for c in line)
    return line if len(line) <= 200 else line[:199] + "…"


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    names: dict[type[Any], str] = {
        bool: "a boolean", int: "a number", float: "a number", str: "a string",
        list: "an array", dict: "an object", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _items(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else []
