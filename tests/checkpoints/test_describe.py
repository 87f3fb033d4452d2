"""`gemmule info`: from headers alone, so full sizes are described without their bytes."""

from pathlib import Path

import pytest
import torch

from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.describe import REPORTED, describe, lines
from gemmule.checkpoints.hf import writer
from gemmule.errors import CheckpointError
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from models import random_model


def test_a_small_model(saved: Path) -> None:
    description = describe(saved)
    model = random_model()
    assert description["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert description["published"] is None
    assert description["parameters"]["reported"] is None
    assert description["stored_as"] == {"F32": description["parameters"]["total"]}
    assert description["bytes"]["weights"] == 4 * description["parameters"]["total"]
    # Two local layers of 6 tokens and a global one of 64; K and V; 2 heads of 16; fp32.
    assert description["bytes"]["cache"] == (6 + 64 + 6) * 2 * 2 * 16 * 4
    shown = dict(lines(description))
    assert shown["layers"] == "3, of which 2 local (window 6)"
    assert shown["scores divided by"] == "sqrt(24)"
    assert shown["tokenizer"].startswith("512 pieces")


@pytest.mark.parametrize("name", REPORTED)
def test_full_sizes_against_the_report(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The header of a full-size checkpoint, over a file that is all hole."""
    with torch.device("meta"):
        model = Gemma(preset(name)).bfloat16()
    checkpoint = of_model(model, tokenizer)
    for layout in writer.layouts(checkpoint):
        with (tmp_path / layout.name).open("wb") as f:
            for offset, part in layout.parts:
                f.seek(offset)
                f.write(part)
            f.truncate(layout.size)
    writer.write_companions(checkpoint, tmp_path, None)
    description = describe(tmp_path)
    assert description["published"] == name
    assert description["parameters"]["non_embedding"] == REPORTED[name]["non_embedding"]
    rows = preset(name).vocab_size
    assert description["parameters"]["embedding"] * 256_128 == REPORTED[name]["embedding"] * rows
    assert "the report: the same" in dict(lines(description))["  without embedding"]
    assert "for 256,128 rows" in dict(lines(description))["  embedding"]


def test_a_missing_tokenizer_is_told_and_not_fatal(saved: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    description = describe(tmp_path)
    assert "no tokenizer in" in description["tokenizer"]["problem"]
    assert "no tokenizer in" in dict(lines(description))["tokenizer"]


def test_a_model_that_lacks_weights_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no weights in"):
        describe(tmp_path)
