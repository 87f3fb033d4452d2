"""Grammars in tests: texts that match, and whether JSON fits a schema."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gemmule.infer.core.constraint import TokenConstraint, allowed_ids, allows
from gemmule.model.tokenizer import Tokenizer


def mask_of(constraint: TokenConstraint, draft_tokens: Sequence[int] = ()) -> Any:
    mask = np.zeros(-(-constraint.vocab_size // 32), dtype=np.uint32)
    constraint.fill_mask(draft_tokens, mask)
    return mask


def allowed(constraint: TokenConstraint, draft_tokens: Sequence[int] = ()) -> set[int]:
    return {*allowed_ids(mask_of(constraint, draft_tokens), constraint.vocab_size).tolist()}


def accepts(constraint: TokenConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is complete, each of its tokens being allowed."""
    constraint = constraint.fork()
    for token in tokenizer.encode(text):
        if constraint.finished or not allows(mask_of(constraint), token):
            return False
        constraint.accept(token)
    return constraint.finished or bool(allowed(constraint) & {*tokenizer.stop_ids})


def walk(
    constraint: TokenConstraint, tokenizer: Tokenizer, rng: random.Random, limit: int
) -> tuple[str, bool]:
    """A random text that matches, of at most `limit` tokens, and whether it is complete."""
    constraint, ids = constraint.fork(), list[int]()
    stops = {*tokenizer.stop_ids}
    while not constraint.finished:
        possible = allowed(constraint)
        if possible & stops and (rng.random() < 0.3 or possible <= stops):
            break
        if len(ids) == limit:
            return tokenizer.decode(ids), False
        ids.append(rng.choice(sorted(possible - stops)))
        constraint.accept(ids[-1])
    return tokenizer.decode(ids), True


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema of values whose texts are short."""
    makers = [*_SIMPLE, *(_NESTED if depth else ())]
    return rng.choice(makers)(rng, depth - 1)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(6)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(500)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 100}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["red", 'a "b"', 3, None, True, "é✓", [1, 2]], 3)}


def _pattern(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": "^[a-f]{2}-[0-9]{1,3}$"}


def _plain(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null"])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["a", "name", "größe", "x y", "n"], rng.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(2)
    items = random_schema(rng, depth)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + 2}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth) for _ in range(2)]}


_SIMPLE = (_string, _integer, _number, _enum, _pattern, _plain)
_NESTED = (_object, _array, _any_of) * 2


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is what a schema from `random_schema` describes."""
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(item) and value == item for item in schema["enum"])
    return all(_checks(value, schema))


def _checks(value: Any, schema: Mapping[str, Any]) -> Iterator[bool]:
    kind = schema["type"]
    if kind in ("integer", "number"):
        yield type(value) is int or (kind == "number" and type(value) is float)
        yield schema["minimum"] <= value <= schema["maximum"]
        yield value % schema.get("multipleOf", 1) == 0
    elif kind == "string":
        yield isinstance(value, str)
        yield schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
        if "pattern" in schema:
            head, _, tail = value.partition("-")
            yield len(head) == 2 and {*head} <= {*"abcdef"}
            yield tail.isdecimal() and tail.isascii() and len(tail) <= 3
    elif kind == "object":
        yield isinstance(value, dict)
        yield {*schema["required"]} <= value.keys() <= schema["properties"].keys()
        yield all(fits(item, schema["properties"][name]) for name, item in value.items())
    elif kind == "array":
        yield isinstance(value, list)
        yield schema["minItems"] <= len(value) <= schema["maxItems"]
        yield all(fits(item, schema["items"]) for item in value)
    elif kind == "boolean":
        yield isinstance(value, bool)
    else:
        yield value is None
