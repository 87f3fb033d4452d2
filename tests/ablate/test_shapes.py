"""The ladder, and variants with equal parameters, counted on the real modules."""

import pytest
import torch

from gemmule.ablate import shapes
from gemmule.errors import ConfigError
from gemmule.model.config import PRESETS, GemmaConfig
from gemmule.model.gemma import Gemma


def counted(shape: GemmaConfig) -> int:
    """Non-embedding parameters of the module itself."""
    with torch.device("meta"):
        model = Gemma(shape)
    return sum(p.numel() for p in model.parameters()) - model.embed_tokens.weight.numel()


def test_the_ladder_climbs_to_the_smallest_preset() -> None:
    sizes = {name: counted(shapes.shape(name, 512)) for name in shapes.STUDENTS}
    assert len(sizes) >= 4
    assert list(sizes.values()) == sorted(sizes.values())
    for name, size in sizes.items():
        assert size == pytest.approx(float(name.removesuffix("m")) * 1e6, rel=0.12), name
    assert max(sizes.values()) < counted(shapes.shape("3m", 512)) / 2
    for name in shapes.SMALL:
        shape = shapes.shape(name, 512)
        assert shape.num_attention_heads * shape.head_dim == shape.hidden_size
        assert shape.num_attention_heads == 2 * shape.num_key_value_heads


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model size '0.25'; did you mean '0.25m'"):
        shapes.shape("0.25", 512)


@pytest.mark.parametrize("size", [*shapes.STUDENTS, *[n for n in PRESETS if n != "27b"]])
def test_deep_and_wide_have_equal_parameters(size: str) -> None:
    base = shapes.shape(size, 512)
    layers = base.num_hidden_layers
    wide = shapes.stretched(base, layers // 2)
    deep = shapes.stretched(base, layers * 2)
    assert wide.hidden_size > base.hidden_size > deep.hidden_size
    assert wide.num_hidden_layers < deep.num_hidden_layers
    assert counted(wide) == pytest.approx(counted(deep), rel=0.02)


def test_grouped_queries_at_equal_parameters() -> None:
    base = shapes.shape("1m", 512)
    mha, gqa = shapes.multi_head(base), shapes.grouped(base)
    filled = shapes.filled(gqa, mha.non_embedding_parameters)
    assert (mha.num_key_value_heads, gqa.num_key_value_heads) == (4, 2)
    assert counted(gqa) < 0.95 * counted(mha)
    assert counted(filled) == pytest.approx(counted(mha), rel=0.02)
    assert filled.num_key_value_heads == 2


def test_heads_that_do_not_pair() -> None:
    odd = shapes.shape("1m", 512, num_attention_heads=3, num_key_value_heads=1)
    with pytest.raises(ConfigError, match="3 attention heads cannot be grouped"):
        shapes.grouped(odd)
