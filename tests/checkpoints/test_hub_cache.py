"""Folders of the hub's cache, as huggingface_hub lays them out, and folders around a model."""

import shutil
from pathlib import Path

import pytest

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.load import load_model
from gemmule.checkpoints.locate import locate
from gemmule.errors import CheckpointError
from models import random_model

COMMITS = ("a" * 40, "b" * 40, "c" * 40)


def cached(saved: Path, hub: Path, name: str = "org--name", commits: int = 1) -> Path:
    """A model in the cache: blobs, snapshots of links to them, and no refs yet."""
    model = hub / f"models--{name}"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    for i, path in enumerate(sorted(saved.iterdir())):
        shutil.copy(path, model / "blobs" / f"{i:064}")
        for commit in COMMITS[:commits]:
            (model / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
            link = model / "snapshots" / commit / path.name
            link.symlink_to(Path("../../blobs") / f"{i:064}")
    return model


def check_loads(path: Path) -> None:
    model, tokenizer = load_model(path)
    assert weights_fingerprint(model) == weights_fingerprint(random_model())
    assert tokenizer.vocab_size == 512


def blob_of(model: Path, name: str) -> Path:
    return (model / "snapshots" / COMMITS[0] / name).resolve()


def test_every_way_to_name_a_cached_model(saved: Path, tmp_path: Path) -> None:
    model = cached(saved, tmp_path / "hub")
    snapshot = model / "snapshots" / COMMITS[0]
    for path in (
        model, snapshot, model / "snapshots", tmp_path / "hub", tmp_path,
        snapshot / "model.safetensors", blob_of(model, "model.safetensors"),
        blob_of(model, "config.json"),
    ):  # fmt: skip
        check_loads(path)


def test_main_is_chosen_among_snapshots(saved: Path, tmp_path: Path) -> None:
    model = cached(saved, tmp_path, commits=3)
    (model / "refs/main").write_text(COMMITS[1])
    assert locate(model).path == model / "snapshots" / COMMITS[1]


@pytest.mark.parametrize(
    ("main", "why"), [(None, "no refs/main"), ("d" * 40, "which is not among them")]
)
def test_several_snapshots_without_main(
    saved: Path, tmp_path: Path, main: str | None, why: str
) -> None:
    model = cached(saved, tmp_path, commits=2)
    if main:
        (model / "refs/main").write_text(main)
    with pytest.raises(CheckpointError, match=f"holds 2 snapshots of org/name and .*{why}"):
        locate(model)


def test_a_cache_of_several_models(saved: Path, tmp_path: Path) -> None:
    cached(saved, tmp_path, "org--one")
    cached(saved, tmp_path, "org--two")
    with pytest.raises(
        CheckpointError, match=r"a cache of 2 models \(org/one, org/two\): name one"
    ):
        locate(tmp_path)


def test_downloads_that_did_not_finish(saved: Path, tmp_path: Path) -> None:
    model = cached(saved, tmp_path)
    blob_of(model, "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"are not there \(model\.safetensors\).*run it again"
    ):
        locate(model)
    shutil.rmtree(model / "snapshots" / COMMITS[0])
    with pytest.raises(CheckpointError, match="holds no snapshot of org/name: its download did no"):
        locate(model)


def test_a_folder_around_a_model(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "out/checkpoint-100")
    (tmp_path / "out/logs").mkdir()
    check_loads(tmp_path / "out")
    shutil.copytree(saved, tmp_path / "out/checkpoint-200")
    message = r"holds several models: name one, such as .*checkpoint-200 \(also checkpoint-100\)"
    with pytest.raises(CheckpointError, match=message):
        locate(tmp_path / "out")
    with pytest.raises(CheckpointError, match="no model in"):
        locate(tmp_path)  # two folders up is too far to guess
