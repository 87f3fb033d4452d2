"""Recording a teacher, verifying the record, and learning from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import SEQUENCE_INDICES, PackedText, eval_batches
from gemmule.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
    TokenizerError,
)
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.logit_store import Store
from gemmule.teachers.record import describe, record
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.target_spec import TargetSpec
from gemmule.teachers.verify_store import verify
from gemmule.train.config import RunConfig
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.stored_distillation import StoredDistillation
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")


@pytest.fixture(scope="module")
def teacher(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(tiny(steps=8, seed=5)), out)
    return out


@pytest.fixture(scope="module")
def settings(teacher: Path, prepared: Path) -> Callable[..., RecordConfig]:
    def made(**changes: Any) -> RecordConfig:
        values = {
            "teacher": str(teacher), "data": prepared, "seq_len": 24, "batch_size": 4,
            "targets": {"draws": 12}, "dtype": "float32", "compile": False, "threads": 1,
        }  # fmt: skip
        return RecordConfig.parse({**values, **changes})

    return made


def content(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((store / "shards").iterdir())}


def windows(store: Store) -> list[bytes]:
    return [s.read(i).tobytes() for s in store.shards for i in range(s.first, s.stop)]


def test_record_describe_and_repeat(settings: Callable[..., RecordConfig], tmp_path: Path) -> None:
    out = tmp_path / "store"
    result = record(settings(), out)
    store = Store.open(out)
    store.check_complete()
    assert result["tokens"] == store.sequences * 24
    assert result["missing_tokens"] == 0
    assert not result["biased"]
    assert 3 < result["bytes_per_token"] < 25
    assert dict(describe(result))["targets"] == "sampled-12 (unbiased)"
    manifest = store.manifest
    assert manifest["teacher"]["precision"] == "float32"
    assert manifest["teacher"]["final_logit_softcapping"] == 30.0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = record(settings(), out)  # nothing is left to do
    assert again["tokens"] == result["tokens"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_stored_is_what_the_teacher_says(
    settings: Callable[..., RecordConfig], teacher: Path, prepared: Path, tmp_path: Path
) -> None:
    """The mean over many draws of every token, against the softmax of the teacher's own logits."""
    out = tmp_path / "store"
    record(settings(targets={"draws": 4096}, tokens=96), out)
    store = Store.open(out)
    dataset = Dataset.open(prepared)
    model = GemmaTeacher.open(str(teacher), dataset).model
    batch = next(iter(eval_batches(dataset.split("train"), 4, 24)))
    with torch.no_grad():
        logits = model(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
    p_NV = logits.flatten(0, 1).softmax(-1)
    got = store.targets(range(4))
    sampled = torch.zeros_like(p_NV).scatter_add_(1, got.ids_NK, got.weight_NK)
    spread = (p_NV * (1 - p_NV) / 4096).sqrt()
    assert ((sampled - p_NV).abs() <= 6 * spread + 1e-3).all()
    assert (got.entropy_N - torch.special.entr(p_NV).sum(-1)).abs().max() < 0.005


def test_appended_and_in_parts(settings: Callable[..., RecordConfig], tmp_path: Path) -> None:
    record(settings(), tmp_path / "whole")
    expected = windows(Store.open(tmp_path / "whole"))
    assert len(expected) > 200

    grown = tmp_path / "grown"
    assert record(settings(tokens=24 * 50), grown)["tokens"] == 24 * 50
    assert record(settings(tokens=24 * 20), grown)["tokens"] == 24 * 50  # never shrinks
    record(settings(), grown)
    assert windows(Store.open(grown)) == expected

    shared = tmp_path / "shared"
    parts = [record(settings(part=f"{i}/3"), shared) for i in (2, 3, 1)]
    assert [p["missing_tokens"] > 0 for p in parts] == [True, True, False]
    assert windows(Store.open(shared)) == expected
    assert len(Store.open(shared).sessions()) == sum(1 for p in parts if p["tokens_per_second"])


def test_a_deleted_shard_is_made_again(
    settings: Callable[..., RecordConfig], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    record(settings(), out)
    before = content(out)
    (out / "shards" / sorted(before)[0]).unlink()
    assert record(settings(), out)["missing_tokens"] == 0
    assert content(out) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": {"draws": 13}}, r"draws: 12 there, 13 now"),
        ({"seq_len": 16}, r"seq_len: 24 there, 16 now"),
        ({"seed": 4}, r"seed: 0 there, 4 now"),
    ],
)
def test_a_store_of_something_else_is_left_alone(
    changes: dict[str, Any], message: str, settings: Callable[..., RecordConfig], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    record(settings(tokens=240), out)
    before = content(out)
    with pytest.raises(OutputError, match=message):
        record(settings(tokens=240, **changes), out)
    assert content(out) == before


def test_what_cannot_be_recorded(
    settings: Callable[..., RecordConfig],
    other_pieces: Tokenizer,
    text_folder: Path,
    tmp_path: Path,
) -> None:
    from gemmule.data.prepare import prepare

    other = prepare(text_folder, other_pieces, tmp_path / "other").path
    out = tmp_path / "store"
    with pytest.raises(TokenizerError, match="has another tokenizer"):
        record(settings(data=other), out)
    with pytest.raises(ConfigError, match="longer than the teacher's context of 64"):
        record(settings(seq_len=65), out)
    with pytest.raises(ConfigError, match="k = 600 is more than the vocabulary's 512"):
        record(settings(targets={"kind": "top_k", "k": 600}), out)
    with pytest.raises(ConfigError, match="write which of how many, as in 2/4"):
        settings(part="5/4")
    assert not out.exists()


@pytest.mark.parametrize(
    "targets",
    [{"draws": 12}, {"draws": 12, "proposal": 0.8}, {"kind": "top_k", "k": 6},
     {"kind": "top_k_tail", "k": 6}, {"kind": "top_p", "p": 0.8}, {"draws": 12, "temperature": 2}],
    ids=str,
)  # fmt: skip
def test_verify(
    targets: dict[str, Any], settings: Callable[..., RecordConfig], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    record(settings(targets=targets), out)
    report = verify(out, tokens=1200)
    assert report["ok"]
    assert report["faithfulness"]["total_variation"]["high"] < 0.005
    assert report["integrity"]["damaged"] == 0
    cut = report["truncation"]
    bias, loss = cut["gradient_bias_squared"], cut["loss_gap_nats"]
    if targets.get("kind") in ("top_k", "top_p"):
        assert bias["low"] > 0
        assert loss["low"] > 0
    else:
        assert bias["low"] <= 1e-6
    assert cut["full_gradient_squared"]["mean"] == 0  # at a student that equals its teacher
    json.dumps(report, allow_nan=False)


def test_verify_at_a_student(
    settings: Callable[..., RecordConfig], tiny: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    record(settings(tokens=2400), out)
    run_training(RunConfig.parse(tiny(steps=2)), tmp_path / "student")
    report = verify(out, student=str(tmp_path / "student"), tokens=480)
    assert report["truncation"]["full_gradient_squared"]["low"] > 0
    loss = report["truncation"]["loss_gap_nats"]
    assert loss["low"] < 0.5 * (loss["high"] - loss["low"])


def test_verify_refuses(
    settings: Callable[..., RecordConfig], tiny: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    record(settings(), out)
    run_training(RunConfig.parse(tiny(steps=2, seed=8)), tmp_path / "another")
    with pytest.raises(CheckpointError, match="its weights differ"):
        verify(out, teacher=str(tmp_path / "another"))
    shard = sorted((out / "shards").iterdir())[-1]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged .*targets\. Delete it"):
        verify(out)


def test_unfaithful_targets_are_called_so(
    settings: Callable[..., RecordConfig], tiny: Settings, teacher: Path, tmp_path: Path
) -> None:
    """A store of one teacher under another's name."""
    run_training(RunConfig.parse(tiny(steps=12, seed=8)), tmp_path / "another")
    for name, targets in (("s", {"draws": 12}), ("k", {"kind": "top_k", "k": 6})):
        mine, theirs = tmp_path / f"{name}1", tmp_path / f"{name}2"
        record(settings(targets=targets), mine)
        record(settings(targets=targets, teacher=str(tmp_path / "another")), theirs)
        lie = files.read_json(theirs / "manifest.json")
        true = files.read_json(mine / "manifest.json")
        # Shards know their store: the liar rewrites them, too.
        store = Store.open(theirs)
        data = windows(store)
        shutil.rmtree(theirs / "shards")
        lie["teacher"] = true["teacher"]
        files.write_json(theirs / "manifest.json", lie)
        from gemmule.teachers.logit_store import identity, write_shard

        write_shard(theirs, identity(lie), 0, data)
        assert verify(mine, tokens=1200)["ok"]
        report = verify(theirs, tokens=1200)
        assert not report["ok"]


def test_loss_from_a_store_is_that_of_its_teacher_on_average(
    settings: Callable[..., RecordConfig], teacher: Path, prepared: Path, tmp_path: Path
) -> None:
    """One batch, one student: many draws against the whole distribution."""
    out = tmp_path / "store"
    record(settings(targets={"draws": 4096}, tokens=96), out)
    dataset = Dataset.open(prepared)
    batch = next(iter(eval_batches(dataset.split("train"), 4, 24)))
    original = GemmaTeacher.open(str(teacher), dataset)
    from gemmule.model.gemma import Gemma

    torch.manual_seed(0)
    student = Gemma(original.model.config)
    online, hard = Distillation(original, 1.0, 0.25).loss(student, batch)
    stored, same = StoredDistillation(Store.open(out), 1.0, 0.25).loss(student, batch)
    assert stored.item() == pytest.approx(online.item(), rel=0.01)
    assert same["next_token_loss"].item() == pytest.approx(hard["next_token_loss"].item())
    grads = [torch.autograd.grad(loss, list(student.parameters())) for loss in (online, stored)]
    a, b = (torch.cat([g.flatten() for g in grad]) for grad in grads)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99


def test_distill_from_a_store(
    settings: Callable[..., RecordConfig], tiny: Settings, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    record(settings(), store)
    out = tmp_path / "run"
    result = run_training(
        RunConfig.parse(tiny(objective={"targets": str(store), "alpha": 0.25})), out
    )
    scratch = run_training(RunConfig.parse(tiny()), tmp_path / "scratch")
    assert result["train_flops"] == scratch["train_flops"]  # no teacher took part
    manifest = files.read_json(out / "manifest.json")
    assert manifest["kind"] == "distill"
    assert manifest["targets"]["label"] == "sampled-12"
    assert manifest["targets"]["identity"] == Store.open(store).identity
    assert manifest["parent"] == Store.open(store).manifest["teacher"]


def test_mismatches_are_refused(
    settings: Callable[..., RecordConfig], tiny: Settings, text_folder: Path, tmp_path: Path,
    pieces: Tokenizer,
) -> None:  # fmt: skip
    from gemmule.data.prepare import prepare

    store = tmp_path / "store"
    record(settings(), store)
    out = tmp_path / "run"

    def refused(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            objective = {"targets": str(store), **changes.pop("objective", {})}
            run_training(RunConfig.parse(tiny(objective=objective, **changes)), out)
        assert not out.exists()

    (tmp_path / "text").mkdir()
    for path in sorted(text_folder.iterdir())[:80]:
        shutil.copy(path, tmp_path / "text")
    other = prepare(tmp_path / "text", pieces, tmp_path / "other").path
    refused(DataError, "recorded on other data", data={"path": str(other)})
    refused(ConfigError, "set data.seq_len = 24", data={"seq_len": 16})
    refused(
        ConfigError, "only top_k and top_p ones can be converted", objective={"temperature": 2.0}
    )
    refused(ConfigError, "needs the teacher's whole distribution", objective={"loss": "reverse_kl"})
    refused(ConfigError, "set model.vocab_size = 512", model={**tiny()["model"], "vocab_size": 600})
    refused(ConfigError, "set either teacher", objective={"teacher": "runs/some"})
    shard = sorted((store / "shards").iterdir())[0]
    whole = shard.read_bytes()
    shard.unlink()
    refused(DataError, "is not finished: 128 of .* sequences are missing")
    shard.write_bytes(whole[:-1])
    refused(DataError, "is damaged")
    ranked = tmp_path / "ranked"
    record(settings(targets={"kind": "top_k", "k": 5}), ranked)
    run_training(
        RunConfig.parse(tiny(objective={"targets": str(ranked), "temperature": 2.0}, steps=2)), out
    )


def test_a_flipped_byte_stops_training_before_the_step(
    settings: Callable[..., RecordConfig], tiny: Settings, tmp_path: Path
) -> None:
    """The index is whole, so that only the window's own checksum can tell."""
    store = tmp_path / "store"
    record(settings(), store)
    for shard in sorted((store / "shards").iterdir()):
        data = bytearray(shard.read_bytes())
        first = Store.open(store).shards[0]
        for end in first._ends[1:]:
            data[len(data) - first.byte_count + int(end) - 1] ^= 1
        shard.write_bytes(data)
        break
    out = tmp_path / "run"
    with pytest.raises(DataError, match=r"the checksum of sequence .* does not match"):
        run_training(RunConfig.parse(tiny(objective={"targets": str(store)}, steps=200)), out)
    assert not (out / "model").exists()


def test_another_store_does_not_slip_into_a_resumed_run(
    settings: Callable[..., RecordConfig], tiny: Settings, tmp_path: Path
) -> None:
    store, out = tmp_path / "store", tmp_path / "run"
    record(settings(), store)
    config = RunConfig.parse(tiny(objective={"targets": str(store)}))
    run_training(config, out)
    (out / "result.json").unlink()
    shutil.rmtree(store)
    record(settings(seed=3), store)
    with pytest.raises(DataError, match="started with another logit store"):
        run_training(config, out, resume=True)


def test_corpus_tokens(tiny: Settings, tmp_path: Path) -> None:
    few = RunConfig.parse(tiny(data={"corpus_tokens": 24 * 4, "batch_size": 4}, steps=3))
    run_training(few, tmp_path / "few")
    split = Dataset.open(few.data.path).split("train")
    source = PackedText(split, 4, 24, 0, sequences=4)
    seen = {int(w) for _ in range(3) for w in source.next().extras[SEQUENCE_INDICES]}
    assert seen == {0, 1, 2, 3}
    state = files.read_json(next((tmp_path / "few/checkpoints").iterdir()) / "state.json")
    assert state["loader"] == source.state()


def test_spec_labels() -> None:
    assert TargetSpec().label == "sampled-50"
    assert TargetSpec(spread="independent").label == "sampled-50 independent"
    assert TargetSpec(kind="top_k_tail", k=8, temperature=2).label == "top-8+tail at T=2"
