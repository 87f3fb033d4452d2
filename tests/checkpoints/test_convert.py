"""Conversion: nothing lost, nothing half written, and nothing called done that is not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gemmule.checkpoints import peers, tensor_layout, verify
from gemmule.checkpoints.checkpoint import of_model, weights_fingerprint
from gemmule.checkpoints.convert import FORMATS, convert, summary
from gemmule.checkpoints.hf import writer
from gemmule.checkpoints.hf.reader import open_hf
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.stored_tensor import HeldTensor, StoredTensor
from gemmule.checkpoints.streamed_forward import streamed_logits
from gemmule.errors import CheckpointError, ConfigError, OutputError
from gemmule.model.tokenizer import Tokenizer
from models import DISTINCT_CONFIG, TOKENS, random_model


@pytest.fixture
def fake_reader(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A reader that agrees, in no time; what it is set to answer can be changed."""
    answer: dict[str, Any] = {"error": 0.0}

    def ask(format: str, export: Path, question: peers.Question) -> peers.Answer:
        if "crash" in answer:
            raise peers.PeerError(answer["crash"])
        with open_checkpoint(export) as checkpoint:
            ids = [checkpoint.tokenizer.encode(t, bos=True) for t in question.texts]
            logits = streamed_logits(checkpoint, list(question.tokens))
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        if "ids" in answer:
            ids[3] = answer["ids"]
        return peers.Answer("1", logits + answer["error"] * noise, ids, [])

    monkeypatch.setattr(peers, "ask", ask)
    return answer


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "export.json"}


# --- what comes out -----------------------------------------------------------------------------


def test_the_reader_of_the_format_agrees(saved: Path, tmp_path: Path) -> None:
    """transformers itself, in its own process."""
    report = convert(saved, tmp_path / "out", "hf")
    assert json.loads((tmp_path / "out/export.json").read_text()) == report
    assert report["verified"]["weights"]["equal"]
    reader = report["verified"]["reader"]
    assert reader["program"] == f"transformers {transformers.__version__}"
    assert reader["top1_agreement"] == 1.0
    assert reader["max_logit_difference"] <= 3e-5
    assert reader["texts_tokenized_alike"] == 200
    assert {f["name"] for f in report["files"]} == set(content(tmp_path / "out"))
    assert content(tmp_path / "out") == content(saved)
    shown = dict(summary(report))
    assert shown["weights"] == "equal to the source's, bit for bit"
    assert "top-1 agreement 100.0%" in shown[reader["program"]]


@pytest.mark.parametrize("dtype", FORMATS["hf"])
@pytest.mark.usefixtures("fake_reader")
def test_an_error_is_stated(saved: Path, tmp_path: Path, dtype: str) -> None:
    checked = convert(saved, tmp_path / "out", "hf", dtype)["verified"]
    model, _ = load_model(tmp_path / "out", dtype="float32")
    expected = random_model().to(getattr(torch, dtype)).float()
    assert weights_fingerprint(model) == weights_fingerprint(expected)
    differences = [
        (a - b).abs().max().item()
        for a, b in zip(model.parameters(), random_model().parameters(), strict=True)
    ]
    assert checked["weights"]["equal"] == (dtype == "float32")
    assert checked["weights"]["largest_difference"] == pytest.approx(max(differences))
    if dtype != "float32":
        assert checked["weights"]["relative_error"] == pytest.approx(
            {"bfloat16": 1.7e-3, "float16": 2.1e-4}[dtype], rel=0.2
        )
        assert 0 < checked["against_source"]["kl_nats"] < 1
    else:
        assert "against_source" not in checked


@torch.no_grad()
def test_streamed_logits_are_the_models(saved: Path) -> None:
    with open_hf(saved) as checkpoint:
        got = streamed_logits(checkpoint, TOKENS[0].tolist())
    assert (got - random_model()(TOKENS[:1])[0]).abs().max() <= 3e-5


def test_weights_are_compared_wherever_chunks_end(
    saved: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = property(lambda tensor: 7 if isinstance(tensor, HeldTensor) else 3)
    monkeypatch.setattr(StoredTensor, "rows_at_once", rows)
    other = random_model()
    with open_hf(saved) as checkpoint:
        assert verify.compare_weights(checkpoint, of_model(other, tokenizer))["equal"]
        with torch.no_grad():
            other.layers[1].mlp.up_proj.weight[47, 31] += 0.5
        comparison = verify.compare_weights(checkpoint, of_model(other, tokenizer))
    assert not comparison["equal"]
    assert comparison["largest_difference"] == pytest.approx(0.5, abs=1e-6)


@torch.no_grad()
def test_shards(saved: Path, tmp_path: Path) -> None:
    with open_hf(saved) as source:
        layouts = writer.layouts(source, shard_bytes=40_000)
        tensor_layout.write(layouts, tmp_path)
        writer.write_companions(source, tmp_path, None)
    assert len(layouts) > 3
    names = {f"model-{i:05}-of-{len(layouts) - 1:05}.safetensors" for i in range(1, len(layouts))}
    assert {p.name for p in tmp_path.glob("*.safetensors")} == names
    # The embedding alone is larger than a shard should be.
    assert sorted(p.stat().st_size for p in tmp_path.glob("*.safetensors"))[-2] < 45_000
    ours, _ = load_model(tmp_path)
    assert weights_fingerprint(ours) == weights_fingerprint(random_model())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= 3e-5


# --- stopped and resumed ------------------------------------------------------------------------

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from gemmule.checkpoints import convert, tensor_layout, verify
from gemmule.checkpoints.stored_tensor import StoredTensor
tensor_layout.SYNC_BYTES = 1
left = int(sys.argv[3])
def count(f):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return f(*args, **kwargs)
    return counted
StoredTensor.rows_as = count(StoredTensor.rows_as)
verify.compare_weights = count(verify.compare_weights)
verify.streamed_logits = count(verify.streamed_logits)
convert.convert(sys.argv[1], Path(sys.argv[2]), "hf", "bfloat16")
"""


@pytest.mark.parametrize("tensors", [1, 20, 35])
@pytest.mark.usefixtures("fake_reader")
def test_killed_and_resumed(
    saved: Path, tmp_path: Path, tensors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """35 is after the last of 35 tensors: while weights are compared."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, str(saved), str(out), str(tensors)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    read: list[str] = []
    rows_as = StoredTensor.rows_as

    def recorded(self: StoredTensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        read.append(self.name)
        return rows_as(self, dtype)

    monkeypatch.setattr(StoredTensor, "rows_as", recorded)
    monkeypatch.setattr(verify, "streamed_logits", lambda c, t: torch.zeros(len(t), 9))
    monkeypatch.setattr(peers, "installed", lambda _: None)
    convert(saved, out, "hf", "bfloat16")
    assert len(read) == 35 - tensors
    monkeypatch.undo()
    convert(saved, tmp_path / "unbroken", "hf", "bfloat16", verify=False)
    assert content(out) == content(tmp_path / "unbroken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "unbroken"]


@pytest.mark.usefixtures("fake_reader")
def test_what_was_begun_otherwise_is_begun_anew(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        verify, "compare_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        convert(saved, tmp_path / "out", "hf", "bfloat16")
    monkeypatch.undo()
    convert(saved, tmp_path / "out", "hf", "float16", verify=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"


# --- what is not as it should be ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": 0.5}, "computes other logits from .*: KL .* nats"),
        ({"error": float("nan")}, "computes other logits"),
        ({"ids": [2, 9, 9]}, r"tokenizes '.*' as \[2, 9, 9\], gemmule as .*1 of 200 texts differ"),
        ({"crash": "transformers cannot read it (exit 1):\nboom"}, "cannot read it .*\nboom"),
    ],
)
def test_a_reader_that_disagrees_is_believed(
    saved: Path, tmp_path: Path, fake_reader: dict[str, Any], answer: dict[str, Any], message: str
) -> None:
    fake_reader |= answer
    with pytest.raises(verify.VerificationError, match=message) as e:
        convert(saved, tmp_path / "out", "hf")
    assert e.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_real_reader_that_crashes_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(peers.PeerError, match=r"transformers cannot read .* \(exit 1\)"):
        peers.ask("hf", tmp_path, peers.Question([2], ["a"]))


def test_without_a_reader_it_says_so(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    report = convert(saved, tmp_path / "out", "hf", "bfloat16")
    assert report["verified"]["reader"] == {"skipped": "transformers is not installed"}
    assert report["verified"]["against_source"]["top1_agreement"] > 0.5
    unchecked = convert(saved, tmp_path / "unchecked", "hf", verify=False)
    assert unchecked["verified"] is None
    assert dict(summary(unchecked))["compared"] == "no (--no-verify)"


def test_what_a_user_can_get_wrong(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/x").write_text("x")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty.txt").write_text(" \n")
    for wrong, error, message in (
        ({"to": "ggml"}, ConfigError, "unknown format 'ggml'; did you mean 'gguf'"),
        ({"dtype": "int3"}, ConfigError, "hf cannot be written as 'int3'"),
        ({"out": tmp_path / "used"}, OutputError, "already in use"),
        ({"out": tmp_path / "file"}, OutputError, "already in use"),
        ({"out": tmp_path / "file/below"}, OutputError, "is a file, not a folder"),
        ({"path": tmp_path / "nothing"}, CheckpointError, "nothing at"),
        ({"text": tmp_path / "no.txt"}, ConfigError, "cannot read .*no.txt as text"),
        ({"text": tmp_path / "empty.txt"}, ConfigError, "is empty"),
    ):
        call: dict[str, Any] = {"path": saved, "out": tmp_path / "out", "to": "hf", **wrong}
        with pytest.raises(error, match=message):
            convert(**call)
        assert not (tmp_path / "out").exists()


def test_a_damaged_source_leaves_nothing_under_the_name(
    saved: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    broken = random_model()
    with torch.no_grad():
        broken.layers[2].mlp.down_proj.weight[3, 3] = float("nan")
    hf = tmp_path / "broken"
    hf.mkdir()
    layouts = writer.layouts(of_model(random_model(), tokenizer))
    tensor_layout.write(layouts, hf)
    writer.write_companions(of_model(broken, tokenizer), hf, None)
    data = bytearray((hf / "model.safetensors").read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"
    (hf / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        convert(hf, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_clear_error(saved: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(OutputError, match="larger than this file system or limit allows"):
            convert(saved, tmp_path / "out", "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()
    report = convert(saved, tmp_path / "out", "hf", verify=False)  # and then it goes on
    assert report["dtype"] == "float32"
    assert load_model(tmp_path / "out")[0].config == DISTINCT_CONFIG
