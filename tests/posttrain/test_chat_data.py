"""Chat data folders: what is written is what is read back, and the split."""

import hashlib
import json
from pathlib import Path

import pytest

from gemmule.errors import DataError, OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import (
    ChatData,
    ChatOptions,
    write_conversations,
    write_pairs,
    write_prompts,
)
from gemmule.posttrain.conversations import Conversation, Message, PreferencePair, Prompt
from gemmule.posttrain.rendering import render_conversation, render_prompt

SPLITS = ("train", "validation", "heldout")


def conversation(n: int) -> Conversation:
    question = Message("user", f"What is the number after {n}?")
    return Conversation((question, Message("assistant", f"It is {n + 1}.")), f"made#{n}", {"n": n})


def test_conversations_are_read_back_as_they_were_written(
    pieces: Tokenizer, tmp_path: Path
) -> None:
    items = [conversation(n) for n in range(60)]
    data = write_conversations(items, pieces, tmp_path / "data")
    assert data.kind == "conversations"
    read = [entry for split in SPLITS for entry in data.conversations(split)]
    assert len(read) == 60 == sum(map(data.count, SPLITS))
    for entry in read:
        expected = render_conversation(items[entry.record["n"]].messages, pieces)
        assert entry.rendered == expected
    heldout = data.dataset.split("heldout")
    assert heldout.has_mask


def test_pairs_are_read_back_as_they_were_written(pieces: Tokenizer, tmp_path: Path) -> None:
    items = [
        PreferencePair(c.messages[:1], c.messages[1:], (Message("assistant", "No."),), n / 2)
        for n, c in enumerate(map(conversation, range(40)))
    ]
    data = write_pairs(items, pieces, tmp_path / "data")
    for pair in [pair for split in SPLITS for pair in data.pairs(split)]:
        assert pair.margin is not None
        item = items[int(2 * pair.margin)]
        prompt = render_prompt(item.prompt, pieces)
        assert pair.prompt_tokens == len(prompt)
        for answer, messages in ((pair.chosen, item.chosen), (pair.rejected, item.rejected)):
            assert answer.ids[: len(prompt)] == prompt
            assert answer == render_conversation((*item.prompt, *messages), pieces)
            assert all(answer.trained[len(prompt) :])


def test_prompts_are_read_back_with_their_records(pieces: Tokenizer, tmp_path: Path) -> None:
    items = [Prompt(c.messages[:1], c.key, {"answer": n}) for n, c in
             enumerate(map(conversation, range(30)))]  # fmt: skip
    data = write_prompts(items, pieces, tmp_path / "data")
    for prompt in [prompt for split in SPLITS for prompt in data.prompts(split)]:
        item = items[prompt.record["answer"]]
        assert (prompt.messages, prompt.ids) == (
            item.messages,
            render_prompt(item.messages, pieces),
        )


def test_near_copies_of_a_question_are_on_one_side(pieces: Tokenizer, tmp_path: Path) -> None:
    items = []
    for n in range(40):
        for variant in (f"What comes after {n}?", f"what comes  after {n}"):
            answer = Message("assistant", f"{variant} {len(items)}")
            items.append(Conversation((Message("user", variant), answer), record={"n": n}))
    data = write_conversations(items, pieces, tmp_path / "data")
    sides = [{c.record["n"] for c in data.conversations(split)} for split in SPLITS]
    assert sum(map(len, sides)) == 40 == len(set().union(*sides))


def test_a_field_can_decide_the_split(pieces: Tokenizer, tmp_path: Path) -> None:
    items = [
        Conversation(conversation(n).messages, record={"module": f"m{n % 20}"}) for n in range(80)
    ]
    options = ChatOptions(split_by="module")
    data = write_conversations(items, pieces, tmp_path / "data", options)
    sides = [{c.record["module"] for c in data.conversations(split)} for split in SPLITS]
    assert sum(map(len, sides)) == 20 == len(set().union(*sides))
    with pytest.raises(DataError, match="no field 'topic' to split by; its fields are module"):
        options = ChatOptions(split_by="topic")
        write_conversations(items, pieces, tmp_path / "other", options)


def test_the_same_folder_is_made_once(pieces: Tokenizer, tmp_path: Path) -> None:
    items = [conversation(n) for n in range(30)]
    out = tmp_path / "data"
    first = write_conversations(items, pieces, out)
    made = (out / "manifest.json").stat().st_mtime_ns
    again = write_conversations(items, pieces, out)
    assert (out / "manifest.json").stat().st_mtime_ns == made
    assert first.dataset.fingerprint == again.dataset.fingerprint
    with pytest.raises(OutputError, match="already holds data made from something else"):
        write_conversations(items[:-1], pieces, out)


def test_records_belong_to_the_fingerprint(pieces: Tokenizer, tmp_path: Path) -> None:
    prompts = [Prompt(conversation(n).messages[:1], record={"answer": n}) for n in range(20)]
    other = [Prompt(p.messages, record={"answer": -1}) for p in prompts]
    folders = [
        write_prompts(items, pieces, tmp_path / name)
        for name, items in (("a", prompts), ("b", other))
    ]
    assert folders[0].dataset.fingerprint != folders[1].dataset.fingerprint


def test_damaged_records_are_an_error(pieces: Tokenizer, tmp_path: Path) -> None:
    data = write_conversations([conversation(n) for n in range(20)], pieces, tmp_path / "data")
    (tmp_path / "data/records/train.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="does not match: make the folder again"):
        data.conversations("train")


def test_records_without_a_field_are_an_error(pieces: Tokenizer, tmp_path: Path) -> None:
    write_conversations([conversation(n) for n in range(20)], pieces, tmp_path / "data")
    records, manifest = (tmp_path / f"data/{n}" for n in ("records/train.jsonl", "manifest.json"))
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    records.write_text("".join(json.dumps({"record": x["record"]}) + "\n" for x in lines))
    about = json.loads(manifest.read_text())
    about["chat"]["records_sha256"]["train"] = hashlib.sha256(records.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"records without 'prompt_tokens'.* make the folder again"):
        ChatData.open(tmp_path / "data").conversations("train")


def test_another_kind_is_refused(pieces: Tokenizer, tmp_path: Path) -> None:
    write_conversations([conversation(n) for n in range(20)], pieces, tmp_path / "data")
    with pytest.raises(DataError, match="holds conversations: give a folder of pairs"):
        ChatData.open(tmp_path / "data", kind="pairs")


def test_what_is_left_out_is_counted(pieces: Tokenizer, tmp_path: Path) -> None:
    items = [conversation(n) for n in (*range(20), 3, 4)]
    long = Message("assistant", "one " * 400)
    items.append(Conversation((Message("user", "Count."), long), "made#long"))
    options = ChatOptions(max_tokens=300)
    data = write_conversations(items, pieces, tmp_path / "data", options)
    assert data.dataset.manifest["dropped"] == {"duplicate": 2, "longer than 300 tokens": 1}
    assert data.dataset.manifest["dropped_examples"]["longer than 300 tokens"] == ["made#long"]


def test_too_little_is_an_error(pieces: Tokenizer, tmp_path: Path) -> None:
    items = [conversation(1), conversation(2), conversation(2)]
    with pytest.raises(DataError, match=r"each of the 3 splits needs one \(left out: 1 duplicate"):
        write_conversations(items, pieces, tmp_path / "data")
    assert not (tmp_path / "data").exists()
