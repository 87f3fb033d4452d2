"""Shapes and how they are cut, against the real model and the real fully_shard."""

import collections

import pytest
import torch

from gemmule.errors import ConfigError
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from gemmule.plan.cluster.devices import MAX_DEVICES, Cluster, devices
from gemmule.plan.cluster.shapes import PUBLISHED_SHAPES, Shape


@pytest.mark.parametrize("name", ["2b", "9b", "27b"])
def test_a_gemma_2_has_the_weights_of_the_real_model(name: str) -> None:
    config = preset(name)
    shape = Shape.of_gemma(name, config)
    with torch.device("meta"):
        model = Gemma(config)
    real = collections.Counter(
        (tuple(p.shape) if p.ndim == 2 else (p.numel(), 1)) for p in model.parameters()
    )
    assert collections.Counter(weight.size for weight in shape.weights()) == real
    assert shape.parameters == config.parameters
    forward = shape.linear_flops() + shape.head_flops() + shape.attention_flops(8192)
    assert forward == pytest.approx(config.forward_flops_per_token(8192), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),  # as their checkpoints have
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("mpt-7b", 6_658_859_008),  # llm-foundry's column NumParams, positions included
        ("mpt-70b", 64_862_437_376),
        ("gpt-462b", 462e9),
        ("maxtext-22b", 22e9),
        ("maxtext-52b", 52e9),
    ],
)
def test_published_shapes_have_the_published_size(name: str, parameters: float) -> None:
    exact = isinstance(parameters, int) and name.startswith("llama")
    rel = 1e-9 if exact else 0.02
    assert PUBLISHED_SHAPES[name].parameters == pytest.approx(parameters, rel=rel)


def test_tensor_parallelism_cuts_matrices_and_not_norms() -> None:
    shape = Shape.of_gemma("27b", preset("27b"))
    whole, root = shape.elements(1, 1)
    block, _ = shape.elements(8, 1)
    norms = 4 * shape.width
    assert block - norms == (whole - norms) / 8
    assert root == shape.vocab * shape.width + shape.width
    assert shape.elements(8, 64)[0] >= block / 64  # shares are rounded up


def test_every_device_is_read_and_a_lower_limit_means_a_lower_clock() -> None:
    for key, device in devices().items():
        assert Cluster.parse(f"{key}x2") == Cluster(key, device, 2)
        assert device.source
        assert device.busy_watts <= device.watts
    full, limited = devices()["h100"], devices()["h100-500w"]
    ratio = limited.peak_of("bfloat16") / full.peak_of("bfloat16")
    assert ratio == pytest.approx((500 / 700) ** (1 / 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100", "write a device and how many there are, as in h100x512"),
        ("h100x0", "write a device and how many"),
        ("h10x8", "no device 'h10' in the table; did you mean 'h100'"),
        (f"h100x{MAX_DEVICES + 1}", "at most 1,000,000 devices"),
    ],
)
def test_a_wrong_cluster_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster.parse(text)
    with pytest.raises(ConfigError, match="has no float8: use bfloat16"):
        devices()["a100"].peak_of("float8")
