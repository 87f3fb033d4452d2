"""The published sizes, full and on the meta device, against the report and transformers."""

import pytest
import torch
from pairs import their_model, weights

from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from parity_figures import Figures

# The report's table 2; it counts embeddings of 256128 rows, of which 256000 were released.
NON_EMBEDDING = {"2b": 2_024_517_888, "9b": 8_324_201_984, "27b": 26_047_480_320}
EMBEDDING = {
    256_128: {"2b": 590_118_912, "9b": 917_962_752, "27b": 1_180_237_824},
    256_000: {"2b": 589_824_000, "9b": 917_504_000, "27b": 1_179_648_000},
}


def count(model: torch.nn.Module) -> tuple[int, int]:
    """Parameters without and of the embedding; a tied head is no parameter of its own."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    embedding = sum(n for name, n in sizes.items() if "embed" in name)
    return sum(sizes.values()) - embedding, embedding


@pytest.mark.parametrize("rows", EMBEDDING)
@pytest.mark.parametrize("name", NON_EMBEDDING)
def test_full_size_parameter_counts(name: str, rows: int, figures: Figures) -> None:
    config = preset(name, vocab_size=rows)
    reported = (NON_EMBEDDING[name], EMBEDDING[rows][name])
    with torch.device("meta"):
        ours, theirs = Gemma(config), their_model(config)
    assert count(ours) == reported
    assert count(theirs) == reported
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in weights(theirs).items()
    }
    difference = abs(sum(count(ours)) - sum(reported))
    figures.note("full sizes, parameters off the report", difference, 0)
