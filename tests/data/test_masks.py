"""Loss masks of token shards: on disk, and on their way to the loss."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gemmule import files
from gemmule.data.batch import Batch
from gemmule.data.canaries import add_canaries
from gemmule.data.dataset import MANIFEST, Dataset
from gemmule.data.packed_text import PackedText, batch_of, eval_batches, sequence_count
from gemmule.data.prepare import describe_split, fingerprint_of, prepare
from gemmule.data.shards import write_shard
from gemmule.errors import DataError
from gemmule.losses.labels import IGNORED
from gemmule.model.tokenizer import Tokenizer
from models import fresh_model, tiny_config

Ids = npt.NDArray[Any]


@pytest.fixture(scope="module")
def plain(
    corpus_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    return prepare(corpus_folder, tokenizer, tmp_path_factory.mktemp("data") / "plain")


def masked_copy(plain: Dataset, out: Path, keep: Callable[[Ids], Ids], shards: int = 3) -> Dataset:
    """A copy with masks for the training split; of several shards the last has none."""
    shutil.copytree(plain.path, out)
    splits = dict(plain.manifest["splits"])
    split = plain.split("train")
    (old,) = splits["train"]["shards"]
    names = files.read_json((out / old["file"]).with_suffix(".json"))["names"]
    entries = []
    for shard, part in enumerate(np.array_split(np.arange(split.document_count), shards)):
        documents = [split.document(n) for n in part]
        has_mask = shards == 1 or shard < shards - 1
        entries.append(
            write_shard(
                out,
                f"shards/train-{shard:05d}.tokens",
                [ids.tolist() for ids in documents],
                [names[n] for n in part],
                old if shards == 1 else {"bytes": 0, "text_sha256": ""},
                plain.manifest["vocab_size"],
                [keep(ids).tolist() for ids in documents] if has_mask else None,
            )
        )
    splits["train"] = describe_split(entries)
    fingerprint = fingerprint_of(splits, plain.tokenizer)
    files.write_json(
        out / MANIFEST, {**plain.manifest, "splits": splits, "fingerprint": fingerprint}
    )
    return Dataset.open(out)


def second_half(ids: Ids) -> Ids:
    """As of an answer after a prompt."""
    return np.arange(len(ids)) >= len(ids) // 2


@pytest.fixture(scope="module")
def masked(plain: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return masked_copy(plain, tmp_path_factory.mktemp("masked") / "data", second_half)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {**fields.pop("extras"), **{k: v for k, v in fields.items() if v is not None}}


def test_a_mask_comes_back_as_it_was_written(plain: Dataset, masked: Dataset) -> None:
    split = masked.split("train")
    assert split.has_mask
    assert not masked.split("validation").has_mask
    expected = []
    shards = masked.manifest["splits"]["train"]["shards"]
    assert len(shards) > 1
    document = 0
    for shard in shards:
        for _ in range(shard["documents"]):
            ids = plain.split("train").document(document)
            expected.append(second_half(ids) if "mask_sha256" in shard else np.ones(len(ids), bool))
            document += 1
    whole = np.concatenate(expected)
    assert np.array_equal(split.read_mask(0, split.token_count), whole)
    random = np.random.default_rng(0)
    for start in random.integers(0, split.token_count, 200):
        stop = start + int(random.integers(0, 3000))
        assert np.array_equal(split.read_mask(start, stop), whole[start:stop])
    assert np.array_equal(split.read(0, split.token_count), plain.split("train").read(0, 10**9))


@pytest.mark.parametrize("seq_len", [7, 64, 1001])
def test_masked_tokens_are_inputs_and_never_labels(
    plain: Dataset, masked: Dataset, seq_len: int
) -> None:
    ours, theirs = masked.split("train"), plain.split("train")
    whole = ours.read_mask(0, ours.token_count)
    pairs = zip(eval_batches(ours, 5, seq_len), eval_batches(theirs, 5, seq_len), strict=True)
    seen = first = 0
    for got, expected in pairs:
        assert torch.equal(got.tokens_BT, expected.tokens_BT)
        assert torch.equal(got.doc_ids_BT, expected.doc_ids_BT)
        for labels, unmasked in zip(got.labels_BT, expected.labels_BT, strict=True):
            mask = np.zeros(seq_len, bool)  # of the tokens after each input
            part = whole[first + 1 : first + 1 + seq_len]
            mask[: len(part)] = part
            assert torch.equal(labels, torch.where(torch.from_numpy(mask), unmasked, IGNORED))
            seen += int((labels != IGNORED).sum())
            first += seq_len
    assert 0 < seen < 0.9 * theirs.token_count


def test_masked_tokens_never_reach_the_loss(plain: Dataset, masked: Dataset) -> None:
    """The loss is the sum over labels; a masked label may be anything."""
    model = fresh_model(tiny_config(vocab_size=512, max_position_embeddings=400), seed=0)
    batch = PackedText(masked.split("train"), 4, 400, seed=0).next()
    everything = batch_of(plain.split("train"), batch.extras["sequence_indices_B"].numpy(), 400)
    with torch.no_grad():
        x_ND = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).flatten(0, 1)
        labels_N = batch.labels_BT.flatten()
        loss = model.head.cross_entropy(x_ND, labels_N)
        each_N = model.head.log_likelihoods(x_ND, everything.labels_BT.flatten())
    kept_N = labels_N != IGNORED
    assert 0 < kept_N.sum() < (everything.labels_BT != IGNORED).sum()
    assert loss.item() == pytest.approx(-each_N[kept_N].sum().item(), rel=1e-5)


def test_data_without_masks_are_read_as_before(plain: Dataset, tmp_path: Path) -> None:
    """A mask that excludes nothing changes no batch, and no mask leaves no trace on disk."""
    full = masked_copy(plain, tmp_path / "data", lambda ids: np.ones(len(ids), bool))
    for name in ("train", "heldout"):
        for got, expected in zip(
            eval_batches(full.split(name), 4, 100),
            eval_batches(plain.split(name), 4, 100),
            strict=True,
        ):
            ours, theirs = tensors(got), tensors(expected)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not list(plain.path.rglob("*.mask"))
    assert "mask" not in (plain.path / MANIFEST).read_text()
    assert full.fingerprint != plain.fingerprint


def test_resuming_with_a_mask(masked: Dataset) -> None:
    a, b = (PackedText(masked.split("train"), 2, 40, seed) for seed in (3, 0))
    for _ in range(4):
        a.next()
    b.load_state(json.loads(json.dumps(a.state())))
    assert torch.equal(a.next().labels_BT, b.next().labels_BT)


def test_a_copy_with_canaries_keeps_the_masks(masked: Dataset, tmp_path: Path) -> None:
    copy = add_canaries(masked, tmp_path / "canaries", repeats=(1,), each=1, tokens=10).split(
        "train"
    )
    before = masked.split("train")
    mask = copy.read_mask(0, copy.token_count)
    assert np.array_equal(mask[: before.token_count], before.read_mask(0, before.token_count))
    assert mask[before.token_count :].all()
    assert sequence_count(copy, 16) > sequence_count(before, 16) - 1


def damage(data: bytearray) -> bytes:
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"train-00000.mask is missing, the manifest says \d+: the data folder is damaged"),
        (lambda data: data[:-1], r"train-00000.mask has \d+ bytes, the manifest says"),
        (damage, r"checksum of the loss mask .*train-00000.mask does not match: the data folder"),
    ],
)
def test_a_damaged_mask_is_refused(
    masked: Dataset, tmp_path: Path, change: Any, message: str
) -> None:
    folder = shutil.copytree(masked.path, tmp_path / "data")
    mask = folder / "shards/train-00000.mask"
    if change is None:
        mask.unlink()
    else:
        mask.write_bytes(change(bytearray(mask.read_bytes())))
    with pytest.raises(DataError, match=message):
        next(eval_batches(Dataset.open(folder).split("train"), 1, 16))


def test_a_mask_needs_a_value_for_each_id(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    facts = {"bytes": 1, "text_sha256": ""}
    with pytest.raises(DataError, match="do not have one value for each id"):
        write_shard(tmp_path, "shards/a.tokens", [[2, 5, 1]], ["a"], facts, 512, [[True, False]])


def test_a_shard_with_a_mask_is_not_taken_for_one_of_text(
    plain: Dataset, corpus_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    assert masked_copy(plain, folder, second_half, shards=1).split("train").has_mask
    (folder / MANIFEST).unlink()  # as if stopped before the end
    again = prepare(corpus_folder, tokenizer, folder)
    assert not again.split("train").has_mask
    assert again.fingerprint == plain.fingerprint
