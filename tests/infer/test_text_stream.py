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
