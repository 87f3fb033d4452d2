"""Responses kept as they arrive: what survives a kill, and what is refused."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule.errors import ConfigError, DataError, OutputError
from gemmule.evals.response_cache import ResponseCache, request_key

MODEL = {"model": "m", "shots": 5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_answers_are_there_again(path: Path) -> None:
    answers: list[tuple[str, Any]] = [
        ("a", [-1.25, True]), ("b", "text with \"quotes\"\nand lines, ü 🙂"), ("c", None),
        ("d", -0.1 + 1e-17), ("e", [[-3.0000000000000004, False], True]),
    ]  # fmt: skip
    cache = ResponseCache(path, MODEL)
    assert cache.responses == {}
    cache.add(answers[:2])
    cache.add(answers[2:])
    assert cache.responses == dict(answers)
    before = path.read_bytes()
    again = ResponseCache(path, dict(reversed(MODEL.items())))  # in another order: the same
    assert again.responses == dict(answers)  # to the last bit
    assert path.read_bytes() == before


def test_a_file_to_begin_with(path: Path) -> None:
    """There from the start, so that a place that cannot be written to is found out at once."""
    ResponseCache(path, MODEL)
    assert json.loads(path.read_text()) == {"format": 1, "depends_on": MODEL}
    assert ResponseCache(path, MODEL).responses == {}
    path.write_text("")
    assert ResponseCache(path, MODEL).responses == {}
    (path.parent / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        ResponseCache(path.parent / "file" / "answers", MODEL)


def test_other_settings_are_refused(path: Path) -> None:
    ResponseCache(path, MODEL).add([("a", 1)])
    before = path.read_bytes()
    for other in ({"model": "n", "shots": 5}, {"model": "m"}, {}):
        with pytest.raises(ConfigError, match="responses of another model, or to other settings"):
            ResponseCache(path, other)
    assert path.read_bytes() == before


def test_a_cut_off_line_is_no_answer(path: Path) -> None:
    """Wherever in it a kill fell; the next answer does not stick to what is left of it."""
    cache = ResponseCache(path, MODEL)
    cache.add([("a", 1), ("b", "ü")])
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    first = whole.index(b"\n", head) + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        again = ResponseCache(path, MODEL)
        assert again.responses == {"a": 1}
        again.add([("c", 3)])
        assert ResponseCache(path, MODEL).responses == {"a": 1, "c": 3}


def test_a_cut_off_beginning_is_begun_again(path: Path) -> None:
    ResponseCache(path, MODEL)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert ResponseCache(path, MODEL).responses == {}
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", ["no JSON", "[1]", '"text"', '{"key": "k"}', '{"answer": 1}', "", "\x00\x00",
             '{"key": [1], "answer": 1}'],
)  # fmt: skip
def test_a_broken_line_is_named(path: Path, line: str) -> None:
    ResponseCache(path, MODEL).add([("a", 1)])
    with path.open("a") as file:
        file.write(f'{line}\n{{"key": "b", "answer": 2}}\n')
    with pytest.raises(DataError, match=r"answers\.jsonl:3: not a response: delete the file"):
        ResponseCache(path, MODEL)


def test_what_is_no_text_is_named(path: Path) -> None:
    ResponseCache(path, MODEL).add([("a", 1)])
    with path.open("ab") as file:
        file.write(b"\xff\xfe broken\n")
    with pytest.raises(DataError, match=r"answers\.jsonl:3: not a response: delete the file"):
        ResponseCache(path, MODEL)


def test_answers_are_kept_through_a_kill(path: Path) -> None:
    """What `add` has returned from is there, whatever happens next."""
    code = f"""
from pathlib import Path
from gemmule.evals.response_cache import ResponseCache
cache = ResponseCache(Path({str(path)!r}), {MODEL!r})
for i in range(100000):
    cache.add([(f"{{i}} a", i), (f"{{i}} b", "x" * 200)])
    print(i, flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "20\n":
            assert process.poll() is None
        time.sleep(0.01)
        process.kill()
        printed = process.stdout.read().split("\n")[:-1]  # the last may be cut off
    last = int(printed[-1]) if printed else 20
    kept = ResponseCache(path, MODEL).responses
    assert {f"{i} {x}" for i in range(last + 1) for x in "ab"} <= kept.keys()
    assert all(kept[f"{i} a"] == i for i in range(last + 1))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, max_size=4), st.lists(values, max_size=4))
def test_keys_differ_where_questions_do(first: list[Any], second: list[Any]) -> None:
    equal = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (request_key(*first) == request_key(*second)) == equal
    assert request_key(*first) == request_key(*json.loads(json.dumps(first)))
    assert len(request_key(*first)) == 32


def test_keys_tell_apart_what_looks_similar() -> None:
    questions = [("a", "b"), ("ab",), ("a", ["b"]), ("a", "b", None), ("", "ab"), (1,), ("1",)]
    assert len({request_key(*question) for question in questions}) == len(questions)
