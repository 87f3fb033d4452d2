"""The forms of chat data, and files of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.data.read_log import ReadLog
from gemmule.errors import DataError
from gemmule.posttrain import forms
from gemmule.posttrain.conversations import Message
from gemmule.posttrain.readers import read_conversations, read_pairs, read_prompts

ASK, ANSWER = Message("user", "Hello"), Message("assistant", "Hi")
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
TURN = "\n\nHuman: Hello\n\nAssistant: "
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nHello\n\n### Response:\n"
)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"prompt": "Hello", "completion": "Hi"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"prompt": ALPACA, "response": "Hi"},
        {"question": "Hello", "answer": "Hi"},
        {"instruction": "Hello", "input": "", "output": "Hi"},
        {"instruction": "Hello", "context": None, "response": "Hi"},
        {"instruction": "Hello", "instances": [{"input": "", "output": "Hi"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                MESSAGES[1],
            ]
        },
    ],
)
def test_forms_of_a_conversation(row: dict[str, Any]) -> None:
    (conversation,) = forms.conversations(row, "made#0")
    assert conversation.messages == (ASK, ANSWER)


def test_an_instruction_with_input_is_one_message() -> None:
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5", "topic": "sums"}
    (conversation,) = forms.conversations(row, "made#0")
    assert conversation.messages[0].content == "Add.\n\n2 and 3"
    assert conversation.record == {"topic": "sums"}


def test_answers_of_weight_0_are_not_trained() -> None:
    row = {"messages": [*MESSAGES[:1], {**MESSAGES[1], "weight": 0}, *MESSAGES]}
    (conversation,) = forms.conversations(row, "made#0")
    assert [m.trained for m in conversation.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "Hello"}, "no messages and no prompt"),
        ({"prompt": "Hello"}, "no answer"),
        ({"prompt": "Hello", "completion": "  "}, "an empty answer"),
        ({"prompt": "Hello", "completion": 3}, "content that is not text"),
        ({"messages": "Hello"}, "messages that are not a list of objects"),
        ({"messages": MESSAGES[:1]}, "does not end with an answer"),
        ({"messages": [*MESSAGES[:1], *MESSAGES]}, "roles that do not alternate"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message with role 'tool'"),
    ],
)
def test_what_is_no_conversation_has_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(forms.NotThisFormError, match=reason):
        list(forms.conversations(row, "made#0"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No"},
        {
            "prompt": MESSAGES[:1],
            "chosen": MESSAGES[1:],
            "rejected": [{"role": "model", "content": "No"}],
        },
        {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "No"}]},
        {"chosen": f"{TURN}Hi", "rejected": f"{TURN}No"},
    ],
)
def test_forms_of_a_pair(row: dict[str, Any]) -> None:
    pair = forms.pair({**row, "score_chosen": 4.0, "score_rejected": 1.5}, "made#0")
    assert (pair.prompt, pair.chosen) == ((ASK,), (ANSWER,))
    assert pair.rejected == (Message("assistant", "No"),)
    assert pair.margin == 2.5 and pair.record == {}


def test_equal_answers_are_no_pair() -> None:
    with pytest.raises(forms.NotThisFormError, match="chosen and rejected are the same"):
        forms.pair({"prompt": "Hello", "chosen": "Hi", "rejected": "Hi"}, "made#0")


def test_a_prompt_keeps_what_a_reward_reads() -> None:
    prompt = forms.prompt({"prompt": "2 + 3?", "answer": "5", "task": "sums"}, "made#0")
    assert prompt.messages == (Message("user", "2 + 3?"),)
    assert prompt.record == {"answer": "5", "task": "sums"}
    assert forms.prompt({"messages": MESSAGES}, "made#0").messages == (ASK,)


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json"])
def test_files_are_read_and_bad_records_counted(tmp_path: Path, name: str) -> None:
    rows = [{"messages": MESSAGES}, {"text": "x"}, {"prompt": "a", "completion": "b"}]
    lines = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    (tmp_path / name).write_text(lines)
    log = ReadLog()
    keys = [c.key for c in read_conversations([tmp_path / name], log)]
    assert keys == [f"{name}#0", f"{name}#2"]
    assert log.left_out == {"no messages and no prompt": 1}


def test_csv_columns_are_fields(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nHello,Hi,No\n")
    (pair,) = read_pairs([tmp_path / "pairs.csv"], ReadLog())
    assert pair.chosen == (ANSWER,)


def test_parquet_columns_are_fields(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(
        [{"messages": MESSAGES, "n": 1}, {"messages": MESSAGES, "n": 2}]
    )
    parquet.write_table(table, tmp_path / "chats.parquet")
    read = list(read_conversations([tmp_path / "chats.parquet"], ReadLog()))
    assert [(c.messages, c.record) for c in read] == [((ASK, ANSWER), {"n": n}) for n in (1, 2)]


def test_a_file_without_any_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "id": 1}\n{"text": "b", "id": 2}\n')
    expected = r"no prompt in .*texts\.jsonl \(its records have text, id\): 2 no messages"
    with pytest.raises(DataError, match=expected):
        list(read_prompts([tmp_path / "texts.jsonl"], ReadLog()))
