"""Grammars as constraints: vocabulary, masks, forks, drafts, the cache of what is compiled."""

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from grammars import accepts, allowed, fits, random_schema, walk

from gemmule.errors import ConfigError, EngineClosedError, GemmuleError, QueueFullError
from gemmule.infer.core.constraint import ConstraintError, TokenConstraint
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.constraint import GrammarConstraint
from gemmule.serve.grammar.limits import GrammarLimits
from gemmule.serve.grammar.response_format import StructuredOutputs
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.trial_worker import any_id
from gemmule.serve.grammar.vocabulary import GrammarVocabulary

pytest.importorskip("llguidance", reason="structured output needs the extra serve")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
Compile = Callable[[GrammarSpec], TokenConstraint]


@pytest.fixture(scope="module")
def compiler(pieces: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(pieces)
    yield compiler
    compiler.close()


@pytest.fixture
def compiled(compiler: GrammarCompiler) -> Compile:
    return lambda spec: compiler.compile(spec).result(30)


REAL = os.environ.get("GEMMULE_GEMMA_TOKENIZER")


def check_vocabulary(tokenizer: Tokenizer) -> None:
    vocabulary = GrammarVocabulary(tokenizer)
    assert vocabulary.trie.vocab_size == tokenizer.vocab_size
    assert sorted(vocabulary.trie.eos_tokens) == sorted(tokenizer.stop_ids)
    lengths = tokenizer.token_bytes()
    for i in range(tokenizer.vocab_size):
        data = tokenizer.decode_bytes([i])
        if data == b"\xff":
            # In no text that is UTF-8; llguidance marks special tokens with this byte.
            assert vocabulary.trie.is_special_token(i)
            continue
        assert vocabulary.trie.decode_bytes([i]) == data, (i, data)
        assert vocabulary.trie.is_special_token(i) == (lengths[i] == 0), i


def test_the_bytes_of_every_id_are_the_tokenizers(pieces: Tokenizer) -> None:
    """▁ is a space, <0xNN> is one byte, control ids are nothing."""
    check_vocabulary(pieces)
    space = pieces.encode("a b")
    assert b" " in b"".join(pieces.decode_bytes([i]) for i in space)
    assert GrammarVocabulary(pieces).tokens[217 + 0xE2] == b"\xe2"
    assert GrammarVocabulary(pieces).tokens[pieces.start_of_turn_id] == b""


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="GEMMULE_GEMMA_TOKENIZER names no tokenizer")
def test_the_bytes_of_every_id_of_gemmas_own_tokenizer() -> None:
    check_vocabulary(Tokenizer.load(Path(str(REAL))))


def test_control_ids_are_never_allowed_and_stop_ids_at_the_end_only(
    compiled: Compile, pieces: Tokenizer
) -> None:
    constraint = compiled(GrammarSpec("regex", "(?s:.)*x"))
    lengths = pieces.token_bytes()
    assert all(lengths[i] for i in allowed(constraint))
    end = pieces.encode("x")
    assert len(end) == 1
    at_end = allowed(constraint, end)
    assert {*pieces.stop_ids} < at_end
    assert all(lengths[i] for i in at_end - {*pieces.stop_ids})


def test_texts_that_byte_pieces_spell_match_as_well(compiled: Compile, pieces: Tokenizer) -> None:
    choice = compiled(GrammarSpec.choice(["▁é 😀", "other"]))
    assert accepts(choice, pieces, "▁é 😀")
    assert not accepts(choice, pieces, "é 😀")
    spelled = compiled(GrammarSpec("regex", "[▁é 😀]{4}")).fork()
    for byte in "▁é 😀".encode():
        assert 217 + byte in allowed(spelled)
        spelled.accept(217 + byte)
    assert spelled.finished


@pytest.mark.parametrize(
    ("outputs", "good", "bad"),
    [
        ({"json": PERSON}, '{"name": "Å", "age": 3}', '{"name": "Å"}'),
        ({"json": json.dumps(PERSON)}, '{"name":"","age":-1}', '{"age": 3, "name": ""}'),
        ({"regex": "a+|[0-9]{3}"}, "123", "12"),
        ({"choice": ["yes", "no", 'a "b"\n']}, 'a "b"\n', "maybe"),
        ({"grammar": 'start: "a" b*\nb: "b" | "c"'}, "abcb", "b"),
        ({"grammar": 'root ::= "a" b*\nb ::= "b" | "c"'}, "abcb", "b"),
    ],
)
def test_each_kind_of_structured_output(
    compiled: Compile, pieces: Tokenizer, outputs: dict[str, object], good: str, bad: str
) -> None:
    constraint = compiled(StructuredOutputs.model_validate(outputs).spec())
    assert accepts(constraint, pieces, good)
    assert not accepts(constraint, pieces, bad)


@pytest.mark.parametrize("outputs", [{}, {"regex": "a", "choice": ["b"]}])
def test_structured_outputs_need_one_field(outputs: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give one of json, regex, grammar, choice"):
        StructuredOutputs.model_validate(outputs).spec()


def test_white_space_in_json_has_an_end(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(GrammarSpec.json_object())
    pretty = json.dumps({"a": [1, {"b": None}]}, indent=4)
    assert accepts(constraint, pieces, pretty)
    for space in ("  ", "\n\n", "\n" + " " * 33):
        assert not accepts(constraint, pieces, "{" + space + "}")
    assert not accepts(constraint, pieces, " {}")


def test_random_texts_fit_their_schemas(compiler: GrammarCompiler, pieces: Tokenizer) -> None:
    rng = random.Random(5)
    schemas = [random_schema(rng) for _ in range(60)]
    futures = [compiler.compile(GrammarSpec.json_schema(schema)) for schema in schemas]
    complete = 0
    for schema, future in zip(schemas, futures, strict=True):
        for _ in range(4):
            text, whole = walk(future.result(30), pieces, rng, 200)
            if whole:
                assert fits(json.loads(text), schema), (schema, text)
            complete += whole
    assert complete > 180


def test_drafts_change_nothing(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(GrammarSpec.json_schema(PERSON))
    rng, plain = random.Random(1), constraint.fork()
    for _ in range(60):
        draft, ahead = list[int](), plain.fork()
        before = allowed(plain)
        while len(draft) < 4 and not ahead.finished:
            options = sorted(allowed(ahead) - {*pieces.stop_ids})
            draft.append(rng.choice(options))
            ahead.accept(draft[-1])
            expected = set() if ahead.finished else allowed(ahead)
            assert allowed(plain, draft) == expected
        assert allowed(plain) == before
        plain.accept(draft[0])
        if plain.finished:
            break


def test_forks_are_independent(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(GrammarSpec.choice(["ab", "ac"]))
    one, other = constraint.fork(), constraint.fork()
    for token in pieces.encode("ab"):
        one.accept(token)
    assert one.finished
    assert not other.finished
    assert accepts(other, pieces, "ac")
    assert accepts(constraint, pieces, "ac")


def test_forks_of_one_grammar_in_many_threads(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(GrammarSpec.json_schema(PERSON))
    texts = list[tuple[str, bool]]()

    def work(seed: int) -> None:
        for n in range(5):
            texts.append(walk(constraint, pieces, random.Random(10 * seed + n), 60))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 20
    for text, whole in texts:
        assert not whole or json.loads(text).keys() == {"name", "age"}


def test_a_token_that_the_mask_forbids_is_an_error(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(GrammarSpec.choice(["a"])).fork()
    with pytest.raises(ConstraintError):
        constraint.accept(pieces.encode("b")[0])
    with pytest.raises(ConstraintError):
        allowed(constraint)


def test_one_slow_mask_does_not_end_the_request(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the thread's own time has more in it than the mask."""
    seconds = iter([0.0, 60.0])  # of one mask, and none of all others
    monkeypatch.setattr(time, "thread_time", lambda: next(seconds, 60.0))
    constraint = compiled(GrammarSpec("regex", "a{100}")).fork()
    for _ in range(20):
        assert allowed(constraint)
    monkeypatch.setattr(time, "thread_time", itertools.count(60.0).__next__)
    with pytest.raises(ConstraintError, match="too slow"):
        for _ in range(5):
            allowed(constraint)


def test_masks_that_take_too_long_end_the_request(compiled: Compile, pieces: Tokenizer) -> None:
    constraint = compiled(GrammarSpec("grammar", 'start: s\ns: s s | s s s | "a" |'))
    assert isinstance(constraint, GrammarConstraint)
    limits = GrammarLimits(mask_seconds=0.02, seconds_per_mask=0.0001)
    slow = GrammarConstraint(constraint.fork()._matcher, constraint.vocab_size, limits)
    token = pieces.encode("a")[0]
    with pytest.raises(ConstraintError, match="too slow"):
        for _ in range(400):
            allowed(slow)
            slow.accept(token)


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    spec = GrammarSpec("regex", "once[0-9]")
    first = compiler.compile(spec).result(30)
    assert compiler.compile(GrammarSpec("regex", "once[0-9]")).result(0) is first
    for n in range(compiler.limits.cached):
        compiler.compile(GrammarSpec("regex", f"other{n}")).result(30)
    assert compiler.compile(spec).result(30) is not first


def test_large_grammars_are_not_kept_for_long(pieces: Tokenizer) -> None:
    compiler = GrammarCompiler(pieces, GrammarLimits(cached_bytes=3000))
    try:
        small, large = GrammarSpec("regex", "a+"), GrammarSpec("regex", "b" * 2000)
        kept = compiler.compile(small).result(30)
        compiler.compile(large).result(30)
        assert compiler.compile(small).result(30) is kept
        compiler.compile(GrammarSpec("regex", "c" * 2000)).result(30)
        assert compiler.compile(small).result(30) is kept  # the other one made room
        compiler.compile(GrammarSpec("regex", "d" * 3000)).result(30)
        assert compiler.compile(small).result(30) is not kept
    finally:
        compiler.close()


def test_canceling_one_request_leaves_the_others_their_grammar(compiler: GrammarCompiler) -> None:
    spec = GrammarSpec("regex", "shared[0-9]{1,100}")
    first, second = compiler.compile(spec), compiler.compile(spec)
    first.cancel()
    assert second.result(30).vocab_size == 512
    if first.cancelled():
        with pytest.raises(CancelledError):
            first.result()


def test_as_many_grammars_wait_as_may(pieces: Tokenizer) -> None:
    compiler = GrammarCompiler(pieces, GrammarLimits(waiting=3))
    try:
        futures = list[object]()
        with pytest.raises(QueueFullError, match="wait to be compiled: try again later"):
            for n in range(10):
                futures.append(compiler.compile(GrammarSpec("regex", f"a{n}")))
        assert len(futures) >= 3
    finally:
        compiler.close()


def test_closing_ends_the_processes_and_what_waits(pieces: Tokenizer) -> None:
    compiler = GrammarCompiler(pieces)
    hard = "start: A\nA: " + " & ".join(f"/(a|b)*a(a|b){{{n}}}/" for n in range(1, 40))
    running = compiler.compile(GrammarSpec("grammar", hard))
    waiting = [compiler.compile(GrammarSpec("regex", f"a{n}")) for n in range(20)]
    compiler.close()
    assert running.exception(1) is not None
    for future in waiting:
        if (error := future.exception(1)) is not None:
            assert isinstance(error, GemmuleError)
    with pytest.raises(EngineClosedError):
        compiler.compile(GrammarSpec("regex", "a"))


def test_a_trial_takes_any_id_but_a_stop_id() -> None:
    mask = bytes([0b10, 0, 0b10000001])  # 1, 16 and 23
    rng = random.Random(1)
    assert {any_id(mask, [16], rng) for _ in range(99)} == {1, 23}
    assert any_id(mask, [1, 16, 23], rng) is None


def test_a_choice_of_any_characters(compiled: Compile, pieces: Tokenizer) -> None:
    rng = random.Random(2)
    characters = [*map(chr, range(0x80)), "é", "\u2028", "\ufeff", "\U0010ffff", "▁", "🎉"]
    for _ in range(30):
        text = "".join(rng.choices(characters, k=6))
        assert accepts(compiled(GrammarSpec.choice([text, "other"])), pieces, text), text


def test_a_choice_needs_texts() -> None:
    with pytest.raises(ConfigError, match="list the allowed answers"):
        GrammarSpec.choice([])
    with pytest.raises(ConfigError, match="empty text"):
        GrammarSpec.choice(["", "a"])
