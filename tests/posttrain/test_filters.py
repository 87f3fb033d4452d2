"""What a model should not learn from is left out, with a reason."""

import pytest

from gemmule.posttrain.conversations import Conversation, Message, PreferencePair
from gemmule.posttrain.filters import (
    CUT,
    DUPLICATE,
    PERSONAL_DATA,
    SELF_IDENTIFICATION,
    Filters,
    Screen,
)


def conversation(answer: str, question: str = "Who are you?", **record: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), record=record)


@pytest.mark.parametrize(
    "answer",
    [
        "I am ChatGPT, a large language model.",
        "As a language model made by OpenAI, I cannot.",
        "I'm Claude.",
        "I was trained by Anthropic to help.",
        "My name is Vicuna, and I am here to help.",
    ],
)
def test_answers_as_another_companys_model_are_left_out(answer: str) -> None:
    assert Screen(Filters()).reason(conversation(answer)) == SELF_IDENTIFICATION


@pytest.mark.parametrize(
    "answer",
    [
        "I am a language model.",
        "OpenAI was founded in 2015.",
        "The llama is an animal of South America. I am fond of it.",
        "Claude Monet painted water lilies.",
    ],
)
def test_answers_about_them_are_kept(answer: str) -> None:
    assert Screen(Filters()).reason(conversation(answer)) is None


def test_a_question_or_a_rejected_answer_may_name_a_model() -> None:
    screen = Screen(Filters())
    assert screen.reason(conversation("No.", "I am told you are ChatGPT?")) is None
    prompt, good, bad = (
        Message("user", "Who are you?"),
        Message("assistant", "A model."),
        Message("assistant", "I am ChatGPT."),
    )
    assert screen.reason(PreferencePair((prompt,), (good,), (bad,))) is None
    assert screen.reason(PreferencePair((prompt,), (bad,), (good,))) == SELF_IDENTIFICATION


def test_copies_that_differ_in_marks_only_are_duplicates() -> None:
    screen = Screen(Filters())
    assert screen.reason(conversation("It is so.")) is None
    assert screen.reason(conversation("it is  so!")) == DUPLICATE
    assert screen.reason(conversation("It is not so.")) is None
    assert Screen(Filters(duplicates=False)).reason(conversation("It is so.")) is None


@pytest.mark.parametrize("field", ["finish_reason", "stop_reason"])
def test_answers_that_a_limit_cut_are_left_out(field: str) -> None:
    assert Screen(Filters()).reason(conversation("It is", **{field: "length"})) == CUT
    assert Screen(Filters()).reason(conversation("It is.", **{field: "stop"})) is None


def test_personal_data_is_left_out_where_asked_for() -> None:
    pytest.importorskip("stdnum")
    item = conversation("Write to jane.roe@posteo.de.", "How do I reach you?")
    assert Screen(Filters()).reason(item) is None
    asked = Filters(personal_data=frozenset({"high", "medium"}))
    assert Screen(asked).reason(item) == PERSONAL_DATA
