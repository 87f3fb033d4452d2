"""Streaming: no stop string, no part of one, no half character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule.infer.core.text_stream import StopMatcher, TextStream
from gemmule.model.tokenizer import Tokenizer


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("ab.", max_size=4), max_size=12),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_streamed_text_is_the_text_up_to_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    matcher, out, seen = StopMatcher(stops), "", ""
    for piece in pieces:
        out += matcher.push(piece)
        seen += piece
        if matcher.stopped:
            break
        # Only what may still become a stop string is held back.
        held = seen[len(out) :]
        assert seen == out + held
        assert not held or any(s.startswith(held) for s in stops)
    out += matcher.flush()
    # The first step at which a stop string is complete decides, then the leftmost one.
    expected = seen
    if any(s in seen for s in stops):
        expected = seen[: min(seen.find(s) for s in stops if s in seen)]
    assert out == expected
    assert matcher.stopped == any(s in seen for s in stops)


def run(stream: TextStream, ids: list[int]) -> str:
    return "".join(stream.push(i) for i in ids)


def test_ends_at_stop_tokens_limits_and_context(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("wrap the text")
    for stop_id in (1, 107):
        stream = TextStream(tokenizer, (), 99, 99)
        assert run(stream, [*ids, stop_id, *ids]) == "wrap the text"
        assert (stream.reason, stream.ids) == ("stop", ids)
    stream = TextStream(tokenizer, (), 2, 99)
    assert run(stream, ids) == tokenizer.decode(ids[:2])
    assert stream.reason == "length"
    stream = TextStream(tokenizer, (), 99, 2)
    assert run(stream, ids) == tokenizer.decode(ids[:2])
    assert stream.reason == "context"


def test_held_text_comes_out_when_no_stop_string_follows(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the text")
    stream = TextStream(tokenizer, ("text!",), len(ids), 99)
    assert run(stream, ids) == "the text"
    stream = TextStream(tokenizer, ("text!",), 99, 99)
    assert run(stream, [*ids, 107]) == "the text"


@pytest.mark.parametrize("text", ["naïve 🙂 日本", "🙂🙂"])
def test_characters_are_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)  # spelled in bytes
    stream = TextStream(tokenizer, (), 999, 999)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    cut = TextStream(tokenizer, (), len(ids) - 1, 999)
    assert run(cut, ids) == text[:-1] + "\ufffd"  # the end really is half a character


def test_a_stop_string_split_over_bytes(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("🙂",), 999, 999)
    assert run(stream, tokenizer.encode("yes 🙂 no")) == "yes "
    assert stream.reason == "stop"


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("ab.", max_size=4), max_size=12),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
    ignored=st.integers(0, 12),
)
def test_stop_strings_that_end_too_early_do_not_count(
    pieces: list[str], stops: list[str], ignored: int
) -> None:
    matcher, out, seen = StopMatcher(stops), "", ""
    expected = None
    for number, piece in enumerate(pieces):
        before, seen = len(seen), seen + piece
        # Those that end in this piece; one may have begun in an ignored one.
        begins = [
            at
            for stop in stops
            for at in range(len(seen))
            if seen.startswith(stop, at) and at + len(stop) > before
        ]
        out += matcher.push(piece, ignore=number < ignored)
        if begins and number >= ignored:
            expected = seen[: min(begins)]
            break
    assert matcher.stopped == (expected is not None)
    assert out + matcher.flush() == (seen if expected is None else expected)


def test_min_tokens_puts_off_stop_strings(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abcabcabc")
    for count in range(len(ids) + 1):
        stream = TextStream(tokenizer, ["abc"], 100, 100, min_tokens=count)
        text = run(stream, ids)
        if stream.reason is None:
            continue
        assert stream.reason == "stop"
        assert len(stream.ids) >= count
        assert text == tokenizer.decode(stream.ids)[: len(text)]
        assert tokenizer.decode(stream.ids)[len(text) :].startswith("abc")


def test_a_complete_text_ends_with_what_was_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc")
    stream = TextStream(tokenizer, ["abcd"], len(ids), 100)
    text = "".join(stream.push(i, complete=i == ids[-1]) for i in ids)
    assert (text, stream.reason) == (tokenizer.decode(ids), "stop")
