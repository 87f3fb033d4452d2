"""Conversations as ids: one <bos>, stop tokens trained, and answers that follow their prompt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule.errors import TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.conversations import Message, messages_of
from gemmule.posttrain.rendering import render_conversation, render_prompt

BOS, EOS, START, END = 2, 1, 106, 107
MARKERS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "model\n", "user\n", "\n", " "]
TEXTS = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=8)), max_size=5).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    rounds = draw(st.integers(1, 3))
    system = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    turns = [Message(role, draw(TEXTS), draw(st.booleans()) or role == "user")
             for _ in range(rounds) for role in ("user", "assistant")]  # fmt: skip
    return [*system, *turns]


@given(messages=conversations())
@settings(max_examples=150, deadline=None)
def test_whatever_the_messages_hold(pieces: Tokenizer, messages: list[Message]) -> None:
    rendered = render_conversation(messages, pieces)
    ids, trained = rendered.ids, rendered.trained
    assert len(ids) == len(trained)
    assert ids.count(BOS) == 1 and ids[0] == BOS
    assert ids.count(EOS) == 1 and ids[-2:] == (END, EOS)
    # A conversation begins with each of its prompts, so an answer's ids follow its prompt's.
    answers = [n for n, m in enumerate(messages) if m.role == "assistant"]
    for n in answers:
        prompt = render_prompt(messages[:n], pieces)
        assert ids[: len(prompt)] == prompt
        end = ids.index(END, len(prompt))
        assert set(trained[len(prompt) : end + 1]) == {messages[n].trained}
    assert ids.count(START) == ids.count(END) == 2 * len(answers)
    # Nothing but answers and the end is trained.
    learned = [m for m in messages if m.role == "assistant" and m.trained]
    stops = sum(flag for token, flag in zip(ids, trained, strict=True) if token == END)
    assert stops == len(learned)
    assert trained[-1] == messages[-1].trained


def test_the_reports_tables_4_and_5(pieces: Tokenizer) -> None:
    rendered = render_conversation(
        messages_of(
            [
                {"role": "user", "content": "the sea"},
                {"role": "assistant", "content": "a ship"},
                {"role": "user", "content": "old"},
                {"role": "assistant", "content": "red sail"},
            ]
        ),
        pieces,
    )
    assert pieces.decode(rendered.ids, control=True) == (
        "<bos><start_of_turn>user\nthe sea<end_of_turn>\n"
        "<start_of_turn>model\na ship<end_of_turn>\n"
        "<start_of_turn>user\nold<end_of_turn>\n<start_of_turn>model\nred sail<end_of_turn><eos>"
    )
    shown = [i for i, flag in zip(rendered.ids, rendered.trained, strict=True) if flag]
    learned = pieces.decode(shown, control=True)
    assert learned == "a ship<end_of_turn>red sail<end_of_turn><eos>"


def test_a_conversation_must_end_with_an_answer(pieces: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="does not end with the assistant's answer"):
        render_conversation([Message("user", "Hello")], pieces)


CHATML = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
MESSAGES = messages_of(
    [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "a ship"}]
)


def test_a_template_of_its_own_ends_with_its_own_stop_token(pieces: Tokenizer) -> None:
    tokenizer = pieces.with_chat_format(CHATML, (END,))
    rendered = render_conversation(MESSAGES, tokenizer)
    assert rendered.ids[-1] == END and rendered.trained[-1]
    prompt = render_prompt(MESSAGES[:1], tokenizer)
    assert rendered.ids[: len(prompt)] == prompt
    assert all(rendered.trained[len(prompt) :]) and not any(rendered.trained[: len(prompt)])


@pytest.mark.parametrize(("start", "count"), [("", 0), ("{{ bos_token }}{{ bos_token }}", 2)])
def test_a_template_without_exactly_one_bos_is_refused(
    pieces: Tokenizer, start: str, count: int
) -> None:
    tokenizer = pieces.with_chat_format(CHATML.replace("{{ bos_token }}", start), (END,))
    with pytest.raises(TokenizerError, match=f"writes <bos> {count} times"):
        render_conversation(MESSAGES, tokenizer)


def test_a_template_whose_prompt_is_written_otherwise_is_refused(pieces: Tokenizer) -> None:
    template = CHATML.replace("assistant\n", "assistant\nthink\n").replace(
        "{% for", "{% generation %}{% endgeneration %}{% for"
    )
    tokenizer = pieces.with_chat_format(template, (END,))
    with pytest.raises(TokenizerError, match="writes the prompt of an answer otherwise"):
        render_conversation(MESSAGES, tokenizer)
