"""int4, int6 and int8: bytes as specified, searches that are good, products that are exact."""

import math
import struct
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from gemmule.errors import CheckpointError
from gemmule.quant import int4, int6, int8, product
from gemmule.quant.layout import PACKED, bits_per_weight, tensor_specs
from gemmule.quant.packed import FORMATS, PackedMatrix, plain, quantize

SHAPES = [(16, 256), (1, 1), (17, 64), (40, 320), (33, 100), (16, 449), (50, 600), (2, 511)]


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def read_int4(packed: PackedMatrix) -> list[list[float]]:
    """The format's description, read literally, a number at a time."""
    out = [[0.0] * packed.columns for _ in range(packed.rows)]
    k_padded = math.ceil(packed.columns / 64) * 64
    for n in range(packed.rows):
        tile, r = bytes(packed.data[n // 16].tolist()), n % 16
        at = 0
        for first in range(0, k_padded, 256):
            groups = min(256, k_padded - first) // 32
            quants, mults = tile[at : at + 256 * groups], tile[at + 256 * groups :][:64]
            scales = tile[at + 256 * groups + 64 :][:32]
            at += 256 * groups + 96
            (word,) = struct.unpack_from("<I", mults, 4 * r)
            (half,) = struct.unpack_from("<H", scales, 2 * r)
            (scale,) = struct.unpack("<f", struct.pack("<I", half << 16))
            for g in range(groups):
                mult = word >> 4 * [0, 2, 4, 6, 1, 3, 5, 7].index(g) & 15
                for j in range(32):
                    byte = quants[256 * g + 64 * (j // 4 % 4) + 4 * r + j % 4]
                    q = (byte >> 4 if j >= 16 else byte & 15) - 8
                    if first + 32 * g + j < packed.columns:
                        out[n][first + 32 * g + j] = scale * mult * q
        assert at == len(tile)
    return out


def read_int6(packed: PackedMatrix) -> list[list[float]]:
    """The description of int6, read literally, a number at a time."""
    out = [[0.0] * packed.columns for _ in range(packed.rows)]
    k_padded = math.ceil(packed.columns / 64) * 64
    for n in range(packed.rows):
        tile, r = bytes(packed.data[n // 16].tolist()), n % 16
        at = 0
        for first in range(0, k_padded, 256):
            groups = min(256, k_padded - first) // 32
            (half,) = struct.unpack_from("<H", tile, at + 384 * groups + 2 * r)
            (scale,) = struct.unpack("<f", struct.pack("<I", half << 16))
            for g in range(groups):
                quants = tile[at + 384 * g :][:384]
                u = [-1] * 32
                for i in range(4):
                    for c in range(4):
                        byte = quants[64 * i + 4 * r + c]
                        u[4 * i + c], u[4 * (i + 4) + c] = byte & 15, byte >> 4
                for j in range(2):
                    for c in range(4):
                        byte = quants[256 + 64 * j + 4 * r + c]
                        for t in range(4):
                            u[4 * (4 * j + t) + c] |= (byte >> 2 * t & 3) << 4
                for k, number in enumerate(u, first + 32 * g):
                    if k < packed.columns:
                        out[n][k] = scale * (number - 32)
            at += 384 * groups + 32
        assert at == len(tile)
    return out


def read_int8(packed: PackedMatrix) -> list[list[float]]:
    assert packed.scales is not None
    return [
        [
            packed.scales[n].item()
            * (int(packed.data[n // 16, k // 4 * 64 + n % 16 * 4 + k % 4]) - 128)
            for k in range(packed.columns)
        ]
        for n in range(packed.rows)
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_are_as_described(shape: tuple[int, int]) -> None:
    four, six, eight = (quantize(matrix(*shape), kind) for kind in PACKED)
    assert torch.equal(four.dequantize(), torch.tensor(read_int4(four)))
    assert torch.equal(six.dequantize(), torch.tensor(read_int6(six)))
    torch.testing.assert_close(
        eight.dequantize(), torch.tensor(read_int8(eight)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", PACKED)
def test_quantizing_again_changes_next_to_nothing(kind: str, shape: tuple[int, int]) -> None:
    once = quantize(matrix(*shape), kind)
    again = quantize(once.dequantize(), kind)
    assert (again.dequantize() - once.dequantize()).norm() < 0.03 * once.dequantize().norm()


@pytest.mark.parametrize("columns", [64, 192, 448, 512])
def test_int4_packs_and_unpacks_any_integers(columns: int) -> None:
    draw = torch.Generator().manual_seed(0)
    wide = -(-columns // 256) * 256
    q = torch.randint(-8, 8, (30, wide), generator=draw).float()
    q[:, columns:] = 0
    mult = torch.randint(0, 16, (30, wide // 256, 8), generator=draw).float()
    mult.view(30, -1)[:, columns // 32 :] = 0
    scale = torch.randn(30, wide // 256, generator=draw).bfloat16().float()
    data = torch.empty(2, sum(w * 8 + 96 for w in [256] * (columns // 256) + [columns % 256] if w))
    data = data.to(torch.uint8)
    int4.pack_into(data, q, int4.Scales(scale, mult), columns)
    unpacked, scales = int4.unpack(data, columns)
    assert torch.equal(unpacked[:30].float(), q)
    assert torch.equal(scales.mult_NSG[:30], mult)
    assert torch.equal(scales.scale_NS[:30], scale)
    assert not int4.dequantize(data, columns)[30:].any()  # padding rows


@pytest.mark.parametrize("columns", [64, 128, 192, 448, 512])
def test_int6_packs_and_unpacks_any_integers(columns: int) -> None:
    draw = torch.Generator().manual_seed(0)
    wide = -(-columns // 256) * 256
    q = torch.randint(-32, 32, (30, wide), generator=draw).float()
    q[:, columns:] = 0
    scale = torch.randn(30, wide // 256, generator=draw).bfloat16().float()
    data = torch.empty(tensor_specs("int6", 30, columns)[0][0], dtype=torch.uint8)
    int6.pack_into(data, q, scale, columns)
    assert data.shape == (2, columns * 12 + 32 * (wide // 256))
    unpacked, scales = int6.unpack(data, columns)
    assert torch.equal(unpacked[:30].float(), q)
    assert torch.equal(scales[:30], scale)
    assert not int6.dequantize(data, columns)[30:].any()  # padding rows


def test_bits() -> None:
    assert quantize(matrix(16, 256), "int6").bits_per_weight == 6 + 16 / 256
    assert quantize(matrix(16, 256), "int4").bits_per_weight == 4 + 4 / 32 + 16 / 256
    assert quantize(matrix(16, 256), "int8").bits_per_weight == 8 + 32 / 256
    assert bits_per_weight("int4", 2304, 9216) == 4.1875
    assert bits_per_weight("int6", 256_000, 2304) == 6.0625
    assert bits_per_weight("bf16", 3, 5) == 16
    for kind in PACKED:
        assert quantize(matrix(17, 100), kind).bits_per_weight == bits_per_weight(kind, 17, 100)


def relative_error(packed: PackedMatrix, weight: Tensor) -> float:
    return float((packed.dequantize() - weight).square().sum() / weight.square().sum())


def test_errors_match_the_number_of_bits() -> None:
    weight = matrix(64, 1024)
    assert relative_error(quantize(weight, "int8"), weight) < 1e-4
    # One step for all groups would give 0.012; a free fp32 step for each 0.0071.
    assert relative_error(quantize(weight, "int4"), weight) < 0.0076
    # The largest weight at the end of the range would give 0.00076.
    assert relative_error(quantize(weight, "int6"), weight) < 0.00074


def test_int6_search_is_near_the_best_there_is() -> None:
    weight = matrix(16, 256, seed=3)
    weight[:8] *= torch.randn(8, 256, generator=torch.Generator().manual_seed(4)).abs()
    error = (quantize(weight, "int6").dequantize() - weight).square().sum(-1)
    best = torch.full((16,), torch.inf)
    largest = weight.abs().amax(-1, keepdim=True)
    for reach in torch.linspace(25, 50, 1500):
        for sign in (1, -1):
            scale = (sign * largest / reach).bfloat16().float()
            q = (weight / scale).round().clamp(-32, 31)
            best = torch.minimum(best, (q * scale - weight).square().sum(-1))
    assert (error < 1.08 * best).all()
    assert error.sum() < 1.03 * best.sum()


def test_int4_search_is_near_the_best_there_is() -> None:
    weight = matrix(8, 256, seed=3)
    error = (quantize(weight, "int4").dequantize() - weight).square().sum(-1)
    groups = weight.view(8, 8, 32)
    best = torch.full((8,), torch.inf)
    for scale in torch.linspace(0.0006, 0.004, 400).bfloat16().float().unique():
        for signed in (scale, -scale):
            errors = [groups.square().sum(-1)]
            for mult in range(1, 16):
                step = signed * mult
                q = (groups / step).round().clamp(-8, 7)
                errors.append((q * step - groups).square().sum(-1))
            best = torch.minimum(best, torch.stack(errors).amin(0).sum(-1))
    assert (error < 1.06 * best).all()
    assert error.sum() < 1.02 * best.sum()


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    weight = matrix(32, 512)
    importance = torch.ones(512)
    importance[::7] = 100.0
    weighted = int4.dequantize(int4.quantize(weight, importance), 512) - weight
    unweighted = int4.dequantize(int4.quantize(weight), 512) - weight
    assert (weighted.square() * importance).sum() < 0.9 * (unweighted.square() * importance).sum()


@pytest.mark.parametrize("kind", PACKED)
def test_zeros_stay_zeros(kind: str) -> None:
    weight = matrix(20, 300)
    weight[3] = 0
    weight[:, 64:96] = 0
    values = quantize(weight, kind).dequantize()
    assert not values[3].any()
    assert not values[:, 64:96].any()
    assert not quantize(torch.zeros(5, 70), kind).dequantize().any()


@pytest.mark.parametrize("kind", PACKED)
def test_an_outlier_only_hurts_its_own_superblock_or_row(kind: str) -> None:
    weight = matrix(16, 512)
    spoilt = weight.clone()
    spoilt[5, 40] = 80.0
    values, before = quantize(spoilt, kind).dequantize(), quantize(weight, kind).dequantize()
    assert values[5, 40] == pytest.approx(80.0, rel=0.01)
    rest = torch.arange(16) != 5
    assert torch.equal(values[rest], before[rest])
    if kind != "int8":
        assert torch.equal(values[5, 256:], before[5, 256:])


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 1e30])
def test_numbers_of_any_size(kind: str, size: float) -> None:
    values = quantize(matrix(4, 256) * size, kind).dequantize()
    assert values.isfinite().all()
    assert values.abs().max() <= 1.1 * matrix(4, 256).abs().max() * size


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused(kind: str, bad: float) -> None:
    weight = matrix(40, 300)
    weight[37, 299] = bad
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        quantize(weight, kind)


def test_half_precision_is_quantized_as_its_values() -> None:
    weight = matrix(20, 300).bfloat16()
    for kind in PACKED:
        from_floats = quantize(weight.float(), kind)
        assert torch.equal(quantize(weight, kind).dequantize(), from_floats.dequantize())


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_by_number(kind: str) -> None:
    weight = matrix(50, 300)
    packed = quantize(weight, kind)
    ids = torch.tensor([[0, 49, 16], [17, 17, 3]])
    assert torch.equal(packed.take(ids), packed.dequantize()[ids])
    if kind in ("f32", "bf16"):
        assert packed.data.dtype == {"f32": torch.float32, "bf16": torch.bfloat16}[kind]


@pytest.mark.parametrize("shape", [(16, 256), (40, 320), (33, 100)], ids=str)
@pytest.mark.parametrize("kind", PACKED)
def test_products_are_the_specified_arithmetic(kind: str, shape: tuple[int, int]) -> None:
    """Against rational numbers, rounded to fp32 where the specification rounds."""
    packed, x = quantize(matrix(*shape), kind), matrix(3, shape[1], seed=1) * 40
    x[1, :64] = 0
    y = product.linear(packed, x)
    f32 = torch.tensor  # rounds a Python float once
    integers = {"int4": _int4_integers, "int6": _int6_integers, "int8": _int8_integers}
    integer = integers[kind](packed)
    for m in range(3):
        tokens = [_token(x[m, k : k + 256]) for k in range(0, shape[1], 256)]
        for n in range(0, shape[0], 7):
            acc = f32(0.0)
            for s, (q, scale) in enumerate(tokens):
                w, w_scale = integer(n, s)
                total = sum(a * b for a, b in zip(q, w, strict=False))
                exact = Fraction(total) * Fraction((w_scale * scale).item()) + Fraction(acc.item())
                acc = f32(float(exact))  # fp64 first: rounding twice is tested below
            torch.testing.assert_close(y[m, n], acc, rtol=2e-7, atol=1e-30)


def _token(x: Tensor) -> tuple[list[int], Tensor]:
    largest = x.abs().max()
    if largest == 0:
        return [0] * len(x), largest
    return [round(v) for v in (x * (127 / largest)).tolist()], largest / 127


def _int4_integers(packed: PackedMatrix):  # type: ignore[no-untyped-def]
    q, scales = int4.unpack(packed.data, packed.columns)

    def of(n: int, s: int) -> tuple[list[int], Tensor]:
        mult = scales.mult_NSG[n, s].repeat_interleave(32)
        whole = q[n, s * 256 : s * 256 + 256] * mult
        return [int(v) for v in whole], scales.scale_NS[n, s]

    return of


def _int6_integers(packed: PackedMatrix):  # type: ignore[no-untyped-def]
    q, scales = int6.unpack(packed.data, packed.columns)
    return lambda n, s: ([int(v) for v in q[n, s * 256 : s * 256 + 256]], scales[n, s])


def _int8_integers(packed: PackedMatrix):  # type: ignore[no-untyped-def]
    assert packed.scales is not None
    q, scales = int8.unpack(packed.data), packed.scales
    return lambda n, s: ([int(v) for v in q[n, s * 256 : s * 256 + 256]], scales[n])


def test_fma_rounds_once() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randn(20000, generator=draw) * 2.0 ** torch.randint(-9, 9, (20000,), generator=draw)
        for _ in range(3)
    )
    results = product.fma(a, b, c).double().tolist()
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), results, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        step = Fraction(math.ulp(got)) * 2**29 if got else Fraction(1, 2**149)
        assert abs(Fraction(got) - exact) * 2 <= step
    # A sum that fp64 rounds to just between two fp32 numbers: rounding twice would go to even.
    one, tiny = torch.tensor([1.0]), torch.tensor([2.0**-60])
    half_way = torch.tensor([1 + 2.0**-23]) * torch.tensor([1.0])
    assert product.fma(tiny, one, half_way).item() == 1 + 2.0**-23
    assert product.fma(torch.tensor([1 + 2.0**-12]), torch.tensor([1 + 2.0**-12]), tiny).item() == (
        1 + 2.0**-11 + 2.0**-23
    )


@pytest.mark.parametrize("kind", PACKED)
def test_products_are_near_those_of_the_floats(kind: str) -> None:
    packed, x = quantize(matrix(70, 640), kind), matrix(5, 640, seed=2)
    exact = x @ packed.dequantize().T
    assert (product.linear(packed, x) - exact).norm() < 0.01 * exact.norm()
    alone = torch.cat([product.linear(packed, row[None]) for row in x])
    assert torch.equal(product.linear(packed, x), alone)


def test_products_of_floats_are_torch_s() -> None:
    weight, x = matrix(7, 30), matrix(2, 30, seed=1)
    assert torch.equal(product.linear(plain(weight), x), x @ weight.T)
