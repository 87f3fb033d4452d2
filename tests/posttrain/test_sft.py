"""Supervised fine-tuning: what is learned, packing, micro-batches, resuming, stored targets."""

import math
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemmule import files
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset, Split
from gemmule.data.packed_text import PackedText, batch_of, sequence_count
from gemmule.data.read_log import ReadLog
from gemmule.errors import ConfigError, DataError, Interrupted, TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import ChatData, ChatOptions, write_conversations, write_prompts
from gemmule.posttrain.chat_folder import Entry, FolderOptions, write_folder
from gemmule.posttrain.conversations import Conversation, Message, Prompt
from gemmule.posttrain.objectives.answer_tokens import AnswerTokens
from gemmule.posttrain.recipes import sft
from gemmule.posttrain.recipes.sft import SftConfig
from gemmule.posttrain.rendering import Rendered, render_conversation
from gemmule.runtime.config import RuntimeConfig
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.target_spec import TargetSpec
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.run import run_training
from gemmule.train.step import accumulate
from models import TINY, random_model, tiny_config

Settings = Callable[..., dict[str, Any]]
SEQ_LEN = 64
WORDS = ["the", "a", "sea", "ship", "captain", "said", "never", "wind", "old", "and", "red", "sail"]
pytestmark = pytest.mark.usefixtures("no_meter")


def conversations(count: int = 60) -> list[Conversation]:
    """Conversations of one to three rounds, of all lengths."""
    items = []
    for n in range(count):
        pick = random.Random(n)
        messages = []
        for _ in range(pick.choice([1, 1, 2, 3])):
            for role in ("user", "assistant"):
                words = " ".join(pick.choice(WORDS) for _ in range(pick.randint(1, 6)))
                messages.append(Message(role, words))  # type: ignore[arg-type]
        items.append(Conversation(tuple(messages), f"made#{n}"))
    return items


@pytest.fixture(scope="module")
def chats(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ChatData:
    out = tmp_path_factory.mktemp("chats") / "data"
    options = ChatOptions(validation=0.15, heldout=0.15, max_tokens=SEQ_LEN + 1)
    return write_conversations(conversations(), pieces, out, options)


@pytest.fixture(scope="module")
def settings(tiny: Settings, chats: ChatData) -> Settings:
    def make(**changes: Any) -> dict[str, Any]:
        objective = {"kind": "sft", "stop_prompts": 0, **changes.pop("objective", {})}
        data = {"path": str(chats.dataset.path), "seq_len": SEQ_LEN, **changes.pop("data", {})}
        return tiny(objective=objective, data=data, **changes)

    return make


def rows_of(split: Split, seq_len: int = SEQ_LEN) -> Batch:
    return batch_of(split, np.arange(sequence_count(split, seq_len)), seq_len)


def alone(batch: Batch) -> list[Batch]:
    """Each conversation of a batch, in a row of its own without padding."""
    singles = []
    for tokens, labels, doc_ids in zip(
        batch.tokens_BT, batch.labels_BT, batch.doc_ids_BT, strict=True
    ):
        for number in range(1, int(doc_ids.max()) + 1):
            here = doc_ids == number
            ones = torch.ones(1, int(here.sum()), dtype=torch.int64)
            singles.append(Batch(tokens[here][None], labels[here][None], ones))
    return singles


def test_a_packed_rows_loss_is_the_sum_of_its_conversations_bit_for_bit(chats: ChatData) -> None:
    batch = rows_of(chats.dataset.split("train"))
    model, objective = random_model(tiny_config(TINY, vocab_size=512)), AnswerTokens()
    packed, _ = objective.loss(model, batch)
    losses = [objective.loss(model, single)[0] for single in alone(batch)]
    assert len(losses) > len(batch.tokens_BT) > 3
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    assert packed.item() == total.item()
    # The usual objective agrees up to rounding, so the two mean the same.
    assert NextToken().loss(model, batch)[0].item() == pytest.approx(packed.item(), rel=1e-5)


def test_the_rest_of_a_batch_changes_no_bit_of_a_conversations_gradient(chats: ChatData) -> None:
    batch = rows_of(chats.dataset.split("train"))
    singles = alone(batch)[:4]
    model, objective = random_model(tiny_config(TINY, vocab_size=512)), AnswerTokens()
    padded = [torch.nn.functional.pad(singles[0].tokens_BT, (0, 9))]
    padded += [torch.nn.functional.pad(singles[0].labels_BT, (0, 9), value=-100)]
    padded += [torch.nn.functional.pad(singles[0].doc_ids_BT, (0, 9))]
    losses = [objective.loss(model, b)[0].item() for b in (singles[0], Batch(*padded))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_gradient_of_the_whole_batch(chats: ChatData, size: int) -> None:
    split, runtime = chats.dataset.split("train"), RuntimeConfig(device="cpu", dtype="float32")
    objective = AnswerTokens()

    def gradients(micro_batch: int) -> list[torch.Tensor]:
        model = random_model(tiny_config(TINY, vocab_size=512))
        batches = [
            batch_of(split, np.arange(n, n + micro_batch), SEQ_LEN)
            for n in range(0, 4, micro_batch)
        ]
        accumulate(model, objective, batches, objective.denominator(batches), runtime)
        return [p.grad for p in model.parameters() if p.grad is not None]

    for one, other in zip(gradients(size), gradients(4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_denominator_counts_trained_tokens(chats: ChatData) -> None:
    batch = rows_of(chats.dataset.split("train"))
    trained = chats.dataset.manifest["chat"]["trained_tokens"]["train"]
    assert AnswerTokens().denominator([batch]) == trained == (batch.labels_BT != -100).sum()


def test_stop_tokens_are_labels_and_headers_are_not(chats: ChatData) -> None:
    for conversation in chats.conversations("train"):
        ids, trained = conversation.rendered.ids, conversation.rendered.trained
        assert ids[-2:] == (107, 1) and trained[-2:] == (True, True)
        assert ids.count(2) == 1 and not trained[0]
        turns = [n for n, token in enumerate(ids) if token == 107]
        assert [trained[n] for n in turns] == [n % 2 == 1 for n in range(len(turns))]
        assert not any(trained[n] for n, token in enumerate(ids) if token == 106)


def test_a_conversation_without_targets_is_left_out_and_counted(
    pieces: Tokenizer, tmp_path: Path
) -> None:
    silent = Message("assistant", "hidden", trained=False)
    items = [*conversations(20), Conversation((Message("user", "A question"), silent), "made#x")]
    manifest = write_conversations(items, pieces, tmp_path / "data").dataset.manifest
    assert manifest["dropped"] == {"no answer to learn": 1}
    assert manifest["dropped_examples"] == {"no answer to learn": ["made#x"]}


def test_a_folder_with_a_row_without_targets_is_refused_by_its_name(
    settings: Settings, pieces: Tokenizer, tmp_path: Path
) -> None:
    rendered = [render_conversation(c.messages, pieces) for c in conversations(20)]
    entries = [
        Entry([Rendered(r.ids, (False,) * len(r))], {"key": f"chats.jsonl#{n}"}, str(n))
        for n, r in enumerate(rendered)
    ]
    about = FolderOptions("conversations", "made", "none", 0.1, 0.1)
    dataset = write_folder(entries, pieces, tmp_path / "data", about, ReadLog())
    config = RunConfig.parse(settings(data={"path": str(dataset.path)}))
    with pytest.raises(DataError, match=r"conversation chats\.jsonl#\d+ .* has nothing to learn"):
        sft.build(config, dataset)


def test_conversations_that_do_not_fit_are_counted(settings: Settings, chats: ChatData) -> None:
    config = RunConfig.parse(settings(data={"seq_len": 32}))
    recipe = sft.build(config, chats.dataset)
    longer = sum(len(c.rendered) > 33 for c in chats.conversations("train"))
    assert recipe.inputs["packing"]["left_out"] == longer > 0


def test_text_and_other_kinds_are_refused(
    tiny: Settings, settings: Settings, pieces: Tokenizer, tmp_path: Path
) -> None:
    config = RunConfig.parse(tiny(objective={"kind": "sft"}))
    with pytest.raises(DataError, match="holds text, not conversations"):
        sft.build(config, Dataset.open(config.data.path))
    items = [Prompt(c.messages[:1]) for c in conversations(20)]
    prompts = write_prompts(items, pieces, tmp_path / "prompts").dataset
    with pytest.raises(DataError, match="holds prompts: give a folder of conversations"):
        sft.build(RunConfig.parse(settings(data={"path": str(prompts.path)})), prompts)


def test_settings_without_meaning_are_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="alpha has no meaning without targets"):
        RunConfig.parse(settings(objective={"alpha": 0.5}))
    with pytest.raises(ConfigError, match=r"max_new_tokens limits .* stop_prompts is 0"):
        RunConfig.parse(settings(objective={"stop_prompts": 0, "max_new_tokens": 8}))
    RunConfig.parse(settings(objective={"stop_prompts": 1, "max_new_tokens": 8}))


@pytest.fixture(scope="module")
def unbroken(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        objective = {"stop_prompts": 5, "max_new_tokens": 8}
        run_training(RunConfig.parse(settings(objective=objective)), out)
    return out


def test_a_run_says_what_it_did(unbroken: Path, chats: ChatData) -> None:
    manifest = files.read_json(unbroken / "manifest.json")
    assert manifest["kind"] == "sft"
    assert manifest["objective"] == {"name": "next-token prediction", "trained": "answers"}
    assert manifest["packing"]["left_out"] == 0
    result = files.read_json(unbroken / "result.json")
    heldout = chats.dataset.manifest["chat"]["trained_tokens"]["heldout"]
    assert result["heldout_tokens"] == heldout
    assert 0 <= result["stop_rate"]["low"] <= result["stop_rate"]["value"] <= 1
    assert result["stop_rate"]["n"] == min(5, chats.count("heldout"))


def test_a_killed_run_ends_in_the_same_bytes(
    settings: Settings, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = AnswerTokens.loss, iter(range(1, 1000))

    def loss(self: Any, model: Any, batch: Batch) -> Any:
        if next(calls) == 10:  # the second micro-batch of step 5
            signal.raise_signal(signal.SIGTERM)
        return plain(self, model, batch)

    out, objective = tmp_path / "run", {"stop_prompts": 5, "max_new_tokens": 8}
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 5 of 12"):
        patch.setattr(AnswerTokens, "loss", loss)
        run_training(RunConfig.parse(settings(objective=objective)), out)
    run_training(load_run_config(out / "config.toml"), out, resume=True)
    weights = [(run / "model/model.safetensors").read_bytes() for run in (out, unbroken)]
    assert weights[0] == weights[1]
    rates = [files.read_json(run / "result.json")["stop_rate"] for run in (out, unbroken)]
    assert rates[0] == rates[1]


def test_stored_targets_of_a_teacher_on_the_answers(
    settings: Settings, unbroken: Path, chats: ChatData, tmp_path: Path
) -> None:
    config = RecordConfig(
        teacher=str(unbroken), data=chats.dataset.path, seq_len=SEQ_LEN,
        targets=TargetSpec(kind="top_k", k=511), batch_size=2, device="cpu", dtype="float32",
        threads=1,
    )  # fmt: skip
    store = tmp_path / "targets"
    summary = record(config, store)
    assert summary["tokens"] == SEQ_LEN * sequence_count(chats.dataset.split("train"), SEQ_LEN)
    out = tmp_path / "run"
    objective = {"targets": str(store), "alpha": 0.25}
    run_training(RunConfig.parse(settings(objective=objective)), out)
    manifest = files.read_json(out / "manifest.json")
    assert manifest["objective"]["alpha"] == 0.25
    assert manifest["targets"]["identity"] and manifest["packing"]["rows"]
    assert manifest["parent"]["path"] == str(unbroken)


def test_another_chat_format_than_the_datas_is_refused(
    settings: Settings, unbroken: Path, chats: ChatData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.parse(settings(model={"init": str(unbroken)}))
    sft.build(config, chats.dataset)
    tokenizer = chats.dataset.tokenizer.with_chat_format("{{ messages }}", (1,), {}, {})
    monkeypatch.setitem(vars(chats.dataset), "tokenizer", tokenizer)
    with pytest.raises(TokenizerError, match="another chat template or other stop tokens"):
        sft.build(config, chats.dataset)


def test_epochs_are_steps(settings: Settings, chats: ChatData) -> None:
    config = RunConfig.parse(settings())
    rows = sequence_count(chats.dataset.split("train"), SEQ_LEN)
    assert sft.with_epochs(config, 2).steps == math.ceil(2 * rows / 4)
    for epochs in (0, -1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="it must be above 0"):
            sft.with_epochs(config, epochs)


def test_training_reads_whole_conversations(settings: Settings, chats: ChatData) -> None:
    config = RunConfig.parse(settings())
    assert isinstance(config.objective, SftConfig)
    source = sft.build(config, chats.dataset).source
    assert isinstance(source, PackedText)
    batch = source.next()
    assert all(int(ids[-1]) == 107 for ids in (b.tokens_BT[0] for b in alone(batch)))
