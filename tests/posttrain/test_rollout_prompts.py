"""Prompts that a model is asked, from every kind of chat data."""

from pathlib import Path

import pytest

from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import (
    ChatData,
    write_conversations,
    write_pairs,
    write_prompts,
)
from gemmule.posttrain.conversations import Conversation, Message, PreferencePair, Prompt
from gemmule.posttrain.rollout_prompts import PromptTable, prompts_of


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def test_prompts_of_every_kind_of_data(pieces: Tokenizer, tmp_path: Path) -> None:
    said = [f"wind {n}" for n in range(6)]
    answer = (Message("assistant", "red sail"),)
    items: list[ChatData] = [
        write_prompts([Prompt(user(s)) for s in said], pieces, tmp_path / "a"),
        write_conversations([Conversation(user(s) + answer) for s in said], pieces, tmp_path / "b"),
        write_pairs(
            [PreferencePair(user(s), answer, (Message("assistant", "no"),)) for s in said],
            pieces,
            tmp_path / "c",
        ),
    ]
    first, *others = [[p.ids for p in prompts_of(d, "train")] for d in items]
    assert first
    assert others == [first, first]


def test_of_several_turns_the_last_answer_is_asked_for(pieces: Tokenizer, tmp_path: Path) -> None:
    turns = [
        (*user(f"wind {n}"), Message("assistant", "a sail"), *user("and then?")) for n in range(6)
    ]
    ships = (Message("assistant", "a ship"),)
    record = {"answer": "a ship"}
    prompts = write_prompts([Prompt(t, record=record) for t in turns], pieces, tmp_path / "a")
    whole = [Conversation(t + ships, record=record) for t in turns]
    conversations = write_conversations(whole, pieces, tmp_path / "b")
    expected = prompts_of(prompts, "train")
    assert expected
    assert prompts_of(conversations, "train") == expected


def test_long_prompts_are_left_out_and_counted(
    pieces: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [Prompt(user(f"{n} " + "wind " * n)) for n in range(12)]
    data = write_prompts(items, pieces, tmp_path / "data")
    every = prompts_of(data, "train")
    longest = max(len(prompt.ids) for prompt in every)
    table = PromptTable.read(data, seq_len=longest + 9, max_new_tokens=10)
    assert 0 < table.counts()["train"] < len(every)
    for split, count in table.too_long.items():
        assert len(table.prompts[split]) + count == data.count(split)
    table.say_left_out()
    printed = "".join(capsys.readouterr()).replace("\n", " ")
    total = sum(table.too_long.values())
    assert f"left out: {total} of 12 prompts, which leave no room for an answer" in printed
    PromptTable.read(data, seq_len=200, max_new_tokens=10).say_left_out()
    assert not "".join(capsys.readouterr())
    with pytest.raises(DataError, match=r"none of the .* of the train split has at most 2 tokens"):
        PromptTable.read(data, seq_len=12, max_new_tokens=10)
