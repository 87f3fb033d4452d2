"""Grammars made to hang, crash or fill the server: each is refused, and nothing else notices."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from grammars import walk

from gemmule.errors import ConfigError
from gemmule.infer.core.constraint import ConstraintError
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.limits import GrammarLimits
from gemmule.serve.grammar.response_format import StructuredOutputs
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tools import FunctionDefinition, ToolUse
from gemmule.serve.grammar.trial import TrialError, TrialProcess

pytest.importorskip("llguidance", reason="structured output needs the extra serve")
resource = pytest.importorskip("resource", reason="limits of memory and processor time need POSIX")


def nested(levels: int, inner: str = '{"type": "string"}') -> str:
    """JSON text of arrays in arrays, which Python could not write out itself."""
    return '{"type":"array","items":' * levels + inner + "}" * levels


def exponential(levels: int, key: str) -> dict[str, Any]:
    """A schema in which every level has the one below twice."""
    parts: dict[str, Any] = {"a0": {"type": "object", "properties": {"a": {"type": "string"}}}}
    for n in range(1, levels):
        below = {"$ref": f"#/$defs/a{n - 1}"}
        parts[f"a{n}"] = {key: [below, {"allOf": [below, {"properties": {f"p{n}": {}}}]}]}
    return {"$defs": parts, "$ref": f"#/$defs/a{levels - 1}"}


CHAIN = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(9000)) + '\nr9000: "a"'
TERMINALS = "start: R0\n" + "\n".join(f"R{n}: R{n + 1} /x/" for n in range(9000)) + "\nR9000: /a/"
DOUBLING = "start: R0\n" + "\n".join(f"R{n}: R{n + 1} R{n + 1}" for n in range(40)) + "\nR40: /a/"
ALL_OF = "start: A\nA: " + " & ".join(f"/(a|b)*a(a|b){{{n}}}/" for n in range(1, 40))
FLAT = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5000)}}

# What is sent, and what is said to it.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "groups": ({"regex": "(" * 60000 + "a" + ")" * 60000}, "nested parentheses"),
    "open groups": ({"regex": "(" * 60000}, "unclosed group"),
    "groups in Lark": ({"grammar": "start: " + "(" * 60000 + '"a"' + ")" * 60000}, "nested"),
    "groups in GBNF": ({"grammar": "root ::= " + "(" * 60000 + '"a"' + ")" * 60000}, "nests too"),
    "groups in a pattern": (
        {"json": {"type": "string", "pattern": "(" * 60000 + "a" + ")" * 60000}},
        "nested parentheses",
    ),
    "schemas": ({"json": nested(9000)}, "nests deeper than 64 levels"),
    "quantifier first": ({"regex": "*a"}, "repetition operator missing"),
    "quantifier first in Lark": ({"grammar": 'start: * "a"'}, "Expected value"),
    "quantifiers": ({"regex": "a" + "*" * 60000}, "nested"),
    "repetitions": ({"regex": "((((a{100}){100}){100}){100}){100}"}, "too many expressions|more"),
    "chain of rules": ({"grammar": CHAIN}, "too long a chain"),
    "chain of terminals": ({"grammar": TERMINALS}, "too long a chain"),
    "doubling terminals": ({"grammar": DOUBLING}, "too big|more than"),
    "intersections": ({"grammar": ALL_OF}, "more than .* (s|MiB)"),
    "exponential oneOf": ({"json": exponential(30, "oneOf")}, "too large|more than|supported"),
    "exponential anyOf": ({"json": exponential(30, "anyOf")}, "too large|more than"),
    "endless rule": ({"grammar": "start: start"}, "no text matches it"),
    "loop of references": (
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        "no text matches it",
    ),
    "remote reference": ({"json": {"$ref": "https://127.0.0.1/s.json"}}, "not present"),
    "reference to a file": ({"json": {"$ref": "file:///etc/passwd"}}, "not present"),
    "references to nothing": ({"json": {"$ref": "#/$defs/nowhere"}}, "nowhere|exist|resolve"),
    "many values": ({"json": {"enum": [f"value {n}" for n in range(100_000)]}}, "bytes, at most"),
    "many properties": ({"json": FLAT}, "too long a chain|Too many|more than"),
    "long number": ({"json": '{"type": "integer", "maximum": 1' + "0" * 4000 + "}"}, "number"),
    "not disjoint": (
        {"json": {"patternProperties": {f"^a{n}.*b": {} for n in range(100)}}},
        "not disjoint",
    ),
    "unknown keyword": ({"json": {"not": {"type": "string"}}}, "Unimplemented keys"),
    "unknown type": ({"json": {"type": "strin"}}, "Invalid type"),
    "unknown format": ({"json": {"type": "string", "format": "shape"}}, "Unknown format"),
    "nothing fits": ({"json": {"type": "string", "enum": [1]}}, "Unsatisfiable"),
    "oneOf of equals": (
        {"json": {"oneOf": [{"type": "integer"}, {"type": "integer"}]}},
        "use anyOf",
    ),
    "options": ({"json": {"x-guidance": {"lenient": True}, "not": {}}}, "x-guidance"),
    "no JSON": ({"json": "{"}, "is not JSON"),
    "look-ahead": ({"regex": "(?=a)b"}, "look-ahead"),
    "not a grammar": ({"grammar": "hello"}, "cannot be used"),
    "not GBNF": ({"grammar": 'root ::= "a'}, "neither Lark nor GBNF"),
    "control token": ({"grammar": "start: <start_of_turn>"}, "cannot be used"),
    "surrogate": ({"regex": "\ud800"}, "UTF-8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler(pieces: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(pieces, GrammarLimits(compile_seconds=1.0))
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", REFUSED)
def test_a_grammar_that_cannot_be_used_is_refused(compiler: GrammarCompiler, name: str) -> None:
    outputs, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason) as raised:
        compiler.compile(StructuredOutputs.model_validate(outputs).spec()).result(60)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
    # The next one finds everything as it was.
    assert compiler.compile(GrammarSpec("regex", "a")).result(30).vocab_size == 512


@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": "(" * 200 + "a" + ")" * 200},
        {"regex": "(a|b)*a(a|b){200}c"},
        {"regex": "(a{1,1000}){1,1000}"},
        {"json": {"type": "string", "maxLength": 10**9}},
        {"json": {"type": "array", "minItems": 10**7}},
        {"json": {"type": "string", "pattern": "^(.*a){30}.*$"}},
        {"json": {"enum": [f"value {n}" for n in range(5000)]}},
        {"json": nested(60)},
        {"grammar": 'start: s\ns: s s | s s s | "a" |'},
        {"grammar": "start: " + "|".join(f"/[a-z]*{c}[a-z]*/" for c in "abcdefgh")},
    ],
    ids=lambda outputs: str(outputs)[:40],
)
def test_a_grammar_that_is_only_large_runs_or_ends_with_an_error(
    compiler: GrammarCompiler, pieces: Tokenizer, outputs: dict[str, Any]
) -> None:
    constraint = compiler.compile(StructuredOutputs.model_validate(outputs).spec()).result(60)
    begin = time.thread_time()
    try:
        walk(constraint, pieces, random.Random(1), 120)
    except ConstraintError as error:
        assert "\n" not in str(error)
    assert time.thread_time() - begin < 6


def test_128_tools(compiler: GrammarCompiler, pieces: Tokenizer) -> None:
    properties = {f"p{n}": {"type": "string", "description": "text " * 9} for n in range(12)}
    tools = [
        FunctionDefinition(name=f"tool_{n}", parameters={"properties": properties})
        for n in range(128)
    ]
    constraint = compiler.compile(ToolUse(tools, "required").spec()).result(60)
    text, _ = walk(constraint, pieces, random.Random(1), 40)
    assert text.startswith('<tool_call>{"name": "tool_')
    with pytest.raises(ConfigError, match="129 tools; at most 128"):
        ToolUse([*tools, FunctionDefinition(name="more")])


def test_other_grammars_are_compiled_meanwhile(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial of one grammar does not end before another has been compiled."""
    slow, goes_on = GrammarSpec("regex", "slow"), threading.Event()
    run = TrialProcess.run

    def patient(self: TrialProcess, spec: GrammarSpec) -> str:
        assert spec != slow or goes_on.wait(60)
        return run(self, spec)

    monkeypatch.setattr(TrialProcess, "run", patient)
    waiting = compiler.compile(slow)
    compiler.compile(GrammarSpec("regex", "quick")).result(60)
    assert not waiting.done()
    goes_on.set()
    waiting.result(60)


def test_a_refused_grammar_is_not_tried_again(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = GrammarSpec("grammar", ALL_OF + "\n// once")
    with pytest.raises(ConfigError):
        compiler.compile(spec).result(60)
    monkeypatch.delattr(TrialProcess, "run")
    with pytest.raises(ConfigError):
        compiler.compile(spec).result(60)


def test_a_grammar_that_could_not_be_tried_is_tried_again(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise TrialError("no process to compile grammars in")

    spec = GrammarSpec("regex", "tried again")
    with monkeypatch.context() as patch:
        patch.setattr(TrialProcess, "run", fail)
        with pytest.raises(TrialError):
            compiler.compile(spec).result(60)
    assert compiler.compile(spec).result(60).vocab_size == 512


def test_memory_that_earlier_grammars_have_taken_is_not_missing(
    pieces: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = GrammarCompiler(pieces, GrammarLimits(workers=1))
    try_once, tried = TrialProcess._try, list[GrammarSpec]()

    def without_memory(self: TrialProcess, spec: GrammarSpec) -> Any:
        tried.append(spec)
        return (None, -signal.SIGABRT) if len(tried) == 2 else try_once(self, spec)

    monkeypatch.setattr(TrialProcess, "_try", without_memory)
    try:
        compiler.compile(GrammarSpec("regex", "a")).result(60)
        compiler.compile(GrammarSpec("regex", "b")).result(60)
        assert [spec.source for spec in tried] == ["a", "b", "b"]
    finally:
        compiler.close()


def test_random_json_as_a_schema_ends_somehow(compiler: GrammarCompiler) -> None:
    """Keywords with values that do not belong to them."""
    rng = random.Random(3)
    keys = ["type", "enum", "properties", "items", "$ref", "minLength", "anyOf", "required"]
    keys += ["const", "pattern", "additionalProperties", "maxItems", "minimum", "format"]

    def value(depth: int) -> object:
        kinds = [None, True, -1, 0.5, "", "string", "#", "object", "a+", 10**30]
        if depth and rng.random() < 0.6:
            if rng.random() < 0.7:
                return {rng.choice(keys): value(depth - 1) for _ in range(rng.randrange(4))}
            return [value(depth - 1) for _ in range(rng.randrange(3))]
        return rng.choice(kinds)

    refused = 0
    for n in range(150):
        try:
            schema = {"properties": {"a": value(2)}} if n % 2 else {rng.choice(keys): value(3)}
            compiler.compile(GrammarSpec.json_schema(schema)).result(60)
        except ConfigError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 20 < refused < 140
