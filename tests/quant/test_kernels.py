"""The kernels in C++ against the plain product, bit for bit, on every instruction set here."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemmule.errors import ConfigError
from gemmule.quant import native, product
from gemmule.quant.layout import PACKED
from gemmule.quant.packed import FORMATS, plain, quantize

pytestmark = pytest.mark.skipif(not native.available(), reason="built without the library")

# Rows and columns that fill whole tiles and superblocks, and others that do not.
SHAPES = [(48, 256), (37, 300), (1, 1), (100, 64), (33, 1000), (16, 2304)]
TOKENS = (1, 2, 3, 5, 8, 9, 13, 17, 33, 140)  # on either side of every kernel's limits


def draw(*shape: int, seed: int) -> Tensor:
    """Numbers whose rows differ in size, with a few far from the rest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x *= torch.exp(torch.randn(shape[0], 1, generator=generator))
    return torch.where(torch.rand(shape, generator=generator) < 0.002, 30 * x, x)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_kernel_gives_the_plain_product_s_bits(
    instructions: str, kind: str, rows: int, columns: int
) -> None:
    matrix = quantize(draw(rows, columns, seed=rows) * 0.1, kind)
    for tokens in TOKENS:
        x = draw(tokens, columns, seed=tokens)
        if tokens > 2:
            x[1] = 0.0
        expected = product.linear(matrix, x)
        for pool in (native.threads(1), native.threads(2)):
            assert torch.equal(native.linear(matrix, x, pool), expected), tokens


def test_the_largest_sums_do_not_overflow(instructions: str) -> None:
    """Weights and inputs all at their limits, in the direction that adds up."""
    wide = 36864  # the widest input of the published models
    w = torch.full((16, wide), -1.0)
    w[::2] = 1.0
    for kind in PACKED:
        matrix = quantize(w, kind)
        for x in (torch.ones(9, wide), -torch.ones(9, wide)):
            y = native.linear(matrix, x)
            assert torch.equal(y, product.linear(matrix, x))
            torch.testing.assert_close(y, x @ matrix.dequantize().T, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_float_matrices(instructions: str, dtype: torch.dtype, rows: int, columns: int) -> None:
    matrix = plain(draw(rows, columns, seed=3).to(dtype))
    x = draw(21, columns, seed=4)
    exact = x.double() @ matrix.data.double().T
    y = native.linear(matrix, x)
    assert (y - exact).abs().max() <= 1e-6 * exact.abs().max() + 1e-30
    for row in range(21):  # a token alone gets the same bits
        assert torch.equal(native.linear(matrix, x[row : row + 1])[0], y[row])


@pytest.mark.parametrize("kind", FORMATS)
def test_rows(kind: str) -> None:
    w = draw(37, 300, seed=5)
    matrix = quantize(w, kind)
    ids = [36, 0, 15, 16, 16]
    assert torch.equal(native.rows(matrix, ids), matrix.take(torch.tensor(ids)))


def test_no_tokens_and_unknown_instructions() -> None:
    matrix = quantize(draw(20, 64, seed=1), "int4")
    assert native.linear(matrix, torch.empty(0, 64)).shape == (0, 20)
    with pytest.raises(ConfigError, match=r"'abacus' cannot be used here; choose one of portable"):
        native.use_instruction_set("abacus")


class _WiderMatrix(ctypes.Structure):
    _fields_ = (*native.CMatrix._fields_, ("added", ctypes.c_int64))


class _ShiftedStep(ctypes.Structure):
    """As large as gm_step, with two fields the other way round."""

    _fields_ = tuple(
        ({"top_ids": "logits", "logits": "top_ids"}.get(name, name), kind)
        for name, kind in native.CStep._fields_
    )


class _RenamedLayer(ctypes.Structure):
    _fields_ = tuple(("room" if name == "slot" else name, t) for name, t in native.CLayer._fields_)


@pytest.mark.parametrize(
    ("structures", "difference"),
    [
        ({"gm_matrix": _WiderMatrix}, "gm_matrix is 40 here and 32 in the library"),
        ({"gm_step": _ShiftedStep}, r"gm_step.logits is \d+ here and \d+ in the library"),
        ({"gm_layer": _RenamedLayer}, r"gm_layer.room is \d+ here and -1 in the library"),
    ],
)
def test_a_library_with_other_structs_is_refused(
    structures: dict[str, type[ctypes.Structure]], difference: str
) -> None:
    assert native.load(native.PATH).gm_abi(b"gm_matrix") == ctypes.sizeof(native.CMatrix)
    with pytest.raises(ImportError, match=rf"{difference}.*build it again with pip install"):
        native.load(native.PATH, structures)


def test_a_file_that_is_not_a_library_is_refused() -> None:
    with pytest.raises(OSError, match=r"test_kernels\.py"):
        native.load(Path(__file__))


def test_with_a_library_of_other_sources_torch_does_the_work() -> None:
    reason = "built from other sources .*gm_abi.*build it again"
    code = """
import torch
from gemmule.quant import native, packed
from gemmule.quant.linear import PackedLinear
assert not native.available()
print(native.unavailable_reason())
matrix = packed.quantize(torch.randn(16, 64), "int8")
x = torch.randn(3, 64)
torch.testing.assert_close(PackedLinear(matrix)(x), x @ matrix.dequantize().T, rtol=1e-4, atol=1e-4)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "GEMMULE_LIBRARY": torch._C.__file__},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(reason, done.stdout)
    assert re.search(reason, " ".join(done.stderr.split()))


def test_reading_is_measured() -> None:
    data = torch.ones(2**22, dtype=torch.uint8)
    assert native.read_speed(data, rounds=2) > 0


@pytest.mark.parametrize("kind", PACKED)
def test_the_product_is_an_operation_of_torch_s(kind: str) -> None:
    matrix, x = quantize(draw(40, 100, seed=1), kind), draw(3, 100, seed=2)
    arguments = (matrix.data, matrix.scales, kind, matrix.rows, matrix.columns)
    torch.library.opcheck(native.packed_linear, (x, *arguments))

    def twice(x: Tensor) -> Tensor:
        return native.packed_linear(x + 1.0, *arguments) * 2.0

    whole = torch.compile(twice, fullgraph=True, backend="eager")
    assert torch.equal(whole(x), twice(x))
