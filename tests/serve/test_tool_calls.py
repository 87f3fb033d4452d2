"""Tools: how they are written for the model, the grammar of calls, and reading calls back."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grammars import accepts, walk

from gemmule.errors import ConfigError
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.grammar.answer_format import StructuredAnswer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tool_call_parser import CallPart, ToolCallParser
from gemmule.serve.grammar.tool_format import answer_text, call_text, result_text
from gemmule.serve.grammar.tools import (
    FunctionDefinition,
    FunctionName,
    NamedTool,
    Tool,
    ToolUse,
    chosen_tools,
)

WEATHER = FunctionDefinition(
    name="get_weather",
    description="The weather of a city",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
WIND = FunctionDefinition(name="get_wind")
TOOLS = [WEATHER, WIND]
ROME = '{"city": "Rome"}'
CALL = f'<tool_call>{{"name": "get_weather", "arguments": {ROME}}}</tool_call>'
CALM = '<tool_call>{"name": "get_wind", "arguments": {}}</tool_call>'
Compile = Callable[[GrammarSpec], TokenConstraint]


@pytest.fixture(scope="module")
def compiled(pieces: Tokenizer) -> Iterator[Compile]:
    pytest.importorskip("llguidance", reason="structured output needs the extra serve")
    compiler = GrammarCompiler(pieces)
    yield lambda spec: compiler.compile(spec).result(30)
    compiler.close()


@pytest.mark.parametrize(
    ("use", "good", "bad"),
    [
        (
            ToolUse(TOOLS),
            ["", "hello", "a < b", "<tool_cal l", CALL, "I look.\n" + CALL, CALL + "\n" + CALM],
            [CALL + "x", CALL + CALM, CALL + "\n", "x <tool_call> y", CALM.replace("wind", "sun")],
        ),
        (ToolUse(TOOLS, parallel=False), ["hi", CALM], [CALL + "\n" + CALM]),
        (
            ToolUse(TOOLS, "required"),
            [CALL, CALL + "\n" + CALM],
            ["", "hello", " " + CALL, "I look.\n" + CALL, CALL + "\n"],
        ),
        (
            ToolUse(TOOLS, FunctionName(name="get_wind")),
            [CALM],
            [CALL, "hello", CALM + "\n" + CALM],
        ),
    ],
    ids=["auto", "one", "required", "named"],
)
def test_what_an_answer_may_be(
    compiled: Compile, pieces: Tokenizer, use: ToolUse, good: list[str], bad: list[str]
) -> None:
    constraint = compiled(use.spec())
    assert [text for text in good if not accepts(constraint, pieces, text)] == []
    assert [text for text in bad if accepts(constraint, pieces, text)] == []


def test_json_or_a_call(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(ToolUse(TOOLS).spec(GrammarSpec.json_object()))
    for text in ('{"a": "<tool_call>"}', CALL):
        assert accepts(constraint, pieces, text)
    assert not accepts(constraint, pieces, "hello")
    parser = ToolCallParser(anywhere=False)
    assert parser.feed('{"a": "<tool_call>"}') == ['{"a": "<tool_call>"}']
    assert parser.calls == 0


def test_arguments_follow_the_schema(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(ToolUse(TOOLS, "required", parallel=False).spec())
    complete = 0
    for seed in range(60):
        text, whole = walk(constraint, pieces, random.Random(seed), 150)
        if not whole:
            continue
        complete += 1
        ((name, arguments),) = calls_of(text)[1]
        assert name in ("get_weather", "get_wind")
        allowed = {"city", "days"} if name == "get_weather" else set()
        assert json.loads(arguments).keys() <= allowed
        if name == "get_weather":
            assert len(json.loads(arguments)["city"]) <= 12
    assert complete > 30


@pytest.mark.parametrize(
    ("parameters", "extra"),
    [
        (None, False),
        ({}, False),
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "required": ["b"]}, True),
        ({"$defs": {"x": {"properties": {}}}, "$ref": "#/$defs/x"}, True),
    ],
)
def test_other_arguments_are_allowed_if_the_schema_says_so(
    compiled: Compile, pieces: Tokenizer, parameters: dict[str, Any] | None, extra: bool
) -> None:
    use = ToolUse([FunctionDefinition(name="f", parameters=parameters)], "required")
    text = call_text("f", '{"b": 1}')
    assert accepts(compiled(use.spec()), pieces, text) == extra


def calls_of(*pieces_of_text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text, and name and arguments of the calls, of an answer that comes in pieces."""
    parser, text, calls = ToolCallParser(), "", list[tuple[str, str]]()
    parts = [part for piece in pieces_of_text for part in parser.feed(piece)] + parser.finish()
    for part in parts:
        if isinstance(part, str):
            assert not calls, "text after a call"
            text += part
        elif part.name is not None:
            assert part.index == len(calls)
            assert part.id is not None
            calls.append((part.name, part.arguments))
        else:
            assert part.id is None
            name, arguments = calls[part.index]
            calls[part.index] = (name, arguments + part.arguments)
    assert parser.calls == len(calls)
    return text, calls


ANSWERS = [
    ("", []),
    ("hello", []),
    ("1 < 2, <tool and 🎉", []),
    ("", [("get_weather", ROME)]),
    ("Let me look. 🌦\n", [("get_weather", '{"city": "São \\"P\\" {[}\\\\", "x": [{}, "]}"]}')]),
    ("", [("a", "{}"), ("b-1", '{"n":\n{"m": "</tool_call>"}}'), ("c", '{"t": "<tool_call>"}')]),
]


@pytest.mark.parametrize("content, calls", ANSWERS)
def test_calls_are_read_in_pieces_of_any_size(content: str, calls: list[tuple[str, str]]) -> None:
    text = answer_text(content, calls)
    assert calls_of(text) == (content, calls)
    assert calls_of(*text) == (content, calls)
    rng = random.Random(1)
    for _ in range(50):
        cuts = sorted(rng.sample(range(len(text) + 1), min(5, len(text))))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert calls_of(*parts) == (content, calls)


@pytest.mark.parametrize("content, calls", ANSWERS)
def test_an_answer_that_is_cut_loses_nothing_but_frames(
    content: str, calls: list[tuple[str, str]]
) -> None:
    text = answer_text(content, calls)
    for size in range(len(text)):
        shown, begun = calls_of(*text[:size])
        assert [name for name, _ in begun] == [name for name, _ in calls[: len(begun)]]
        for (_, arguments), (_, whole) in zip(begun, calls, strict=False):
            assert whole.startswith(arguments)
        if not begun:
            assert shown == text[:size]


def test_text_is_not_held_back_longer_than_it_may_be_a_marker() -> None:
    parser = ToolCallParser()
    assert parser.feed("a <") == ["a "]
    assert parser.feed("b <tool_") == ["<b "]
    assert parser.feed("call") == []
    assert parser.feed("ed") == ["<tool_called"]
    assert parser.finish() == []
    assert not parser.complete


def test_a_call_begins_with_its_name_and_id_and_ends_complete() -> None:
    parser = ToolCallParser()
    assert parser.feed('<tool_call>{"name": "get_wind", "argum') == []
    first, second = parser.feed('ents": {"a')
    assert isinstance(first, CallPart)
    assert first.name == "get_wind"
    assert first.id is not None
    assert first.id.startswith("call_")
    assert second == CallPart(0, arguments='{"a')
    assert parser.feed('": 1}}') == [CallPart(0, arguments='": 1}')]
    assert not parser.complete
    assert parser.feed("</tool_call>") == []
    assert parser.complete


def test_what_no_grammar_leads_to_is_text() -> None:
    text = "<tool_call> is how calls begin, " + "and this is one that never was " * 9
    assert calls_of(text) == (text, [])


def test_instructions_name_every_tool() -> None:
    text = ToolUse(TOOLS, "required").instructions()
    assert json.dumps(WEATHER.described()) in text
    assert '{"name": "get_wind", "parameters": {}}' in text
    assert "Answer with a call." in text
    assert "plain text" in ToolUse(TOOLS).instructions()
    assert "in JSON" in ToolUse(TOOLS).instructions(json_otherwise=True)
    assert "several" not in ToolUse(TOOLS, parallel=False).instructions()


def test_results_stay_within_their_quotes() -> None:
    text = result_text("f", '"}</tool_result>\n<tool_call>')
    begin, end = "<tool_result>", "</tool_result>"
    assert json.loads(text.removeprefix(begin).removesuffix(end))["content"].endswith("<tool_call>")


TOOL = Tool(type="function", function=WIND)


def test_no_tools_are_used_without_any_or_with_none() -> None:
    assert chosen_tools(None, None, None) is None
    assert chosen_tools([], None, True) is None
    assert chosen_tools([TOOL], "none", None) is None
    use = chosen_tools([TOOL], None, None)
    assert use is not None
    assert not use.must
    assert use.parallel
    named = chosen_tools(
        [TOOL], NamedTool(type="function", function=FunctionName(name="get_wind")), None
    )
    assert named is not None
    assert named.must
    assert not named.parallel


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chosen_tools(None, "required", None), "there are no tools"),
        (lambda: ToolUse([WIND], FunctionName(name="x")), "not among the tools: get_wind"),
        (lambda: ToolUse([WIND, WIND]), "two tools have the name get_wind"),
        (
            lambda: ToolUse([FunctionDefinition(name="f", parameters={"type": "array"})]).spec(),
            'tool f has the type "array": arguments are an "object"',
        ),
    ],
)
def test_impossible_tools_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_llguidance_the_server_says_what_is_missing() -> None:
    answer = StructuredAnswer(None, GrammarSpec.json_object())
    with pytest.raises(ApiError, match=r"gemmule\[serve\]") as raised:
        answer.constraint()
    assert raised.value.status == 501
