"""Answers of a model under grammars: they always fit, whatever else the engine does."""

import json
import random
from collections.abc import Iterator

import pytest
from grammars import fits, random_schema

from gemmule.errors import ConfigError
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.infer.core.request import Completion, Request, RequestOutput
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import NgramDrafter, Speculation
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tools import FunctionDefinition, ToolUse

pytest.importorskip("llguidance", reason="structured output needs the extra serve")


@pytest.fixture(scope="module")
def compiler(pieces: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(pieces)
    yield compiler
    compiler.close()


def run(engine: Engine, requests: list[Request]) -> list[list[Completion]]:
    """The completions of each request's samples."""
    ids = [engine.submit(request) for request in requests]
    completions = dict[int, list[Completion]]()
    while engine.busy:
        for output in engine.step():
            if output.completion is not None:
                completions.setdefault(output.request_id, []).append(output.completion)
    return [completions[i] for i in ids]


def test_every_answer_that_ends_fits_its_schema(
    lm: LanguageModel, compiler: GrammarCompiler
) -> None:
    """Random weights at temperature 1, random schemas, all at the same time."""
    rng = random.Random(7)
    schemas = [random_schema(rng) for _ in range(48)]
    constraints = [compiler.compile(GrammarSpec.json_schema(s)).result(30) for s in schemas]
    prompt = lm.tokenizer.encode("json:", bos=True)
    requests = [
        Request(prompt, SamplingParams(seed=n, max_new_tokens=120), constraint=constraint)
        for n, constraint in enumerate(constraints)
    ]
    ended = 0
    for schema, (completion,) in zip(schemas, run(lm.engine(), requests), strict=True):
        if completion.finish_reason == "length":
            assert len(completion.ids) == 120
            continue
        assert completion.finish_reason == "stop", completion.error
        assert fits(json.loads(completion.text), schema), (schema, completion.text)
        ended += 1
    assert ended > 36


@pytest.fixture
def person(compiler: GrammarCompiler) -> TokenConstraint:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 8},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    }
    return compiler.compile(GrammarSpec.json_schema(schema)).result(30)


def test_speculation_and_company_change_nothing(lm: LanguageModel, person: TokenConstraint) -> None:
    runner = make_runner(lm.model)
    if isinstance(runner, TorchRunner):
        pytest.skip("the plain runner is not exact with draft tokens")
    # The prompt has what n-grams find again.
    text = '{"name": "", "tags": ["red", "green", "red", "red"]}\n' * 2
    prompt = lm.tokenizer.encode(text, bos=True)
    requests = [
        Request(prompt, SamplingParams(seed=n, max_new_tokens=90), constraint=person)
        for n in range(8)
    ]
    alone = [run(lm.engine(), [request])[0][0] for request in requests]
    speculation = Speculation(NgramDrafter(), always=True)
    engine = Engine(runner, lm.tokenizer, speculation=speculation, cache_tokens=4096)
    together = [completion for (completion,) in run(engine, requests)]
    assert [c.ids for c in together] == [c.ids for c in alone]
    assert speculation.drafted > 20
    assert speculation.accepted > 0
    assert {c.finish_reason for c in together} <= {"stop", "length"}


def test_samples_have_positions_of_their_own(lm: LanguageModel, person: TokenConstraint) -> None:
    prompt = lm.tokenizer.encode("json:", bos=True)
    params = SamplingParams(seed=3, n=4, max_new_tokens=120)
    (samples,) = run(lm.engine(), [Request(prompt, params, constraint=person)])
    assert len({sample.text for sample in samples}) == 4
    for sample in samples:
        if sample.finish_reason == "stop":
            assert json.loads(sample.text).keys() == {"name", "tags"}


def test_an_answer_that_is_cut_says_so(lm: LanguageModel, person: TokenConstraint) -> None:
    prompt = lm.tokenizer.encode("json:", bos=True)
    params = SamplingParams(max_new_tokens=3)
    ((completion,),) = run(lm.engine(), [Request(prompt, params, constraint=person)])
    assert completion.finish_reason == "length"


def test_required_calls_come(lm: LanguageModel, compiler: GrammarCompiler) -> None:
    tool = FunctionDefinition(
        name="f", parameters={"properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    )
    constraint = compiler.compile(ToolUse([tool], "required", parallel=False).spec()).result(30)
    prompt = lm.tokenizer.encode("call:", bos=True)
    params = SamplingParams(max_new_tokens=150)
    ((completion,),) = run(lm.engine(), [Request(prompt, params, constraint=constraint)])
    assert completion.finish_reason == "stop"
    body = completion.text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    call = json.loads(body)
    assert call["name"] == "f"
    assert isinstance(call["arguments"]["x"], bool)


def test_an_asynchronous_engine_waits_for_the_grammar(
    lm: LanguageModel, compiler: GrammarCompiler
) -> None:
    prompt = lm.tokenizer.encode("json:", bos=True)
    good = compiler.compile(GrammarSpec.choice(["yes", "no"]))
    bad = compiler.compile(GrammarSpec("regex", "*"))
    outputs = list[RequestOutput]()
    with lm.async_engine() as engine:
        for constraint in (good, bad):
            engine.submit(Request(prompt, SamplingParams(), constraint=constraint), outputs.append)
    ended = {output.request_id: output for output in outputs if output.completion}
    completions = [output.completion for _, output in sorted(ended.items())]
    assert completions[0] is not None
    assert completions[0].text in ("yes", "no")
    assert completions[1] is not None
    assert completions[1].finish_reason == "error"
    assert isinstance(completions[1].error, ConfigError)


def test_a_grammar_that_fails_ends_its_request_and_no_other(
    lm: LanguageModel, compiler: GrammarCompiler
) -> None:
    """An ambiguous grammar, whose masks become too much work after some tokens."""
    hard = compiler.compile(GrammarSpec("grammar", 'start: s\ns: s s | s s s | "a" | "b"'))
    easy = compiler.compile(GrammarSpec("regex", "[ab]{1,200}"))
    prompt = lm.tokenizer.encode("x", bos=True)
    params = SamplingParams(seed=1, max_new_tokens=240, ignore_eos=True)
    requests = [Request(prompt, params, constraint=c.result(30)) for c in (easy, hard, easy)]
    (first,), (failed,), (last,) = run(lm.engine(), requests)
    assert first.ids == last.ids
    assert first.finish_reason == "stop"
    assert len(first.text) == 200
    assert failed.finish_reason == "error"
    assert "\n" not in str(failed.error)
