"""Encoding of sparse targets: the bits of one sequence in a logit store (docs/logit-store.md).

A sequence is written as streams, each padded to a whole byte. The first one, the number of ids of
every token, determines the length of the others:

    lengths    number of ids of each token, bit_length(max_ids) bits
    entropies  entropy of each token in 1/256 nats, 12 bits
    tails      log-weight of the bucket of all other ids, 12 bits; only for targets with a tail
    low        low bits of each id; their number follows from the token's number of ids
    high       high bits of each token's ids, in unary (Elias 1974, Fano 1971)
    counts     number of draws of each id; for other targets log-weights, 12 bits

Ids are sorted: a sorted set of u ids out of V takes about u (2 + log2(V / u)) bits in this code.
The counts of a token add up to the draws, so that the last one is not stored. They are stored as
numbers, or, where that is shorter, as one bit per draw that marks where a new id begins.

Shapes: T tokens of a sequence, M ids of all its tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from gemmule.errors import DataError
from gemmule.losses.sparse_targets import SparseTargets
from gemmule.teachers import bit_packing
from gemmule.teachers.bit_packing import Bytes, Ints

CODE_BITS = 12
ENTROPY_STEPS = 256  # per nat: up to 16 nats, more than ln(2^20)
LOG_STEPS = 128  # per nat: the error of a weight is at most 0.4%
LARGEST_LOG = 4.0  # importance weights may exceed 1; e^-28 is the smallest that is not 0
_LARGEST_CODE = 2**CODE_BITS - 1

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SequenceTargets:
    """Decoded targets of one sequence, the ids of all tokens one after another.

    Attributes:
        length_T: number of ids of each token.
        id_M: ids, ascending within a token.
        weight_M: weight of each id, fp32.
        entropy_T: entropy of each token, nats, fp32.
        tail_T: probability of all other ids together, fp32; None without a tail.
    """

    length_T: Ints
    id_M: Ints
    weight_M: Floats
    entropy_T: Floats
    tail_T: Floats | None


@dataclass(frozen=True)
class TargetCodec:
    """Encodes the targets of a sequence and decodes them.

    Attributes:
        vocab_size: number of ids.
        max_ids: limit of the ids per token.
        draws: number of draws, of which all weights are multiples of 1 / draws; None: any weights.
        tail: whether there is a bucket for all other ids.
        normalized: whether weights and tail add up to 1, which decoding restores after rounding.
    """

    vocab_size: int
    max_ids: int
    draws: int | None = None
    tail: bool = False
    normalized: bool = True

    def encode(self, targets: SparseTargets) -> bytes:
        """The encoded targets of one sequence.

        Raises:
            ValueError: for more ids per token, or larger ids, than the codec allows.
        """
        ids, weights = targets.ids_NK.cpu().numpy(), targets.weight_NK.float().cpu().numpy()
        kept = weights > 0
        length_T = kept.sum(1)
        order = np.argsort(np.where(kept, ids, self.vocab_size), axis=1, kind="stable")
        in_front = np.arange(ids.shape[1]) < length_T[:, None]
        id_M = np.take_along_axis(ids, order, 1)[in_front]
        weight_M = np.take_along_axis(weights, order, 1)[in_front]
        if length_T.max(initial=0) > self.max_ids or id_M.max(initial=0) >= self.vocab_size:
            raise ValueError("more ids per token, or larger ids, than this codec allows")

        low_T, high_T = self._low_bits[length_T], self._high_bits[length_T]
        low_M = np.repeat(low_T, length_T)
        rank_M = np.arange(len(id_M)) - np.repeat(np.cumsum(length_T) - length_T, length_T)
        high = np.zeros(int(high_T.sum()), np.bool_)
        high[np.repeat(np.cumsum(high_T) - high_T, length_T) + (id_M >> low_M) + rank_M] = True

        entropy_T = np.rint(targets.entropy_N.cpu().numpy() * ENTROPY_STEPS).astype(np.int64)
        streams = [
            bit_packing.packed(length_T, self._length_bits),
            bit_packing.packed(np.clip(entropy_T, 0, _LARGEST_CODE), CODE_BITS),
        ]
        if self.tail:
            assert targets.tail_N is not None
            streams.append(
                bit_packing.packed(_to_codes(targets.tail_N.float().cpu().numpy()), CODE_BITS)
            )
        streams += [
            bit_packing.packed(id_M & ((1 << low_M) - 1), low_M),
            bit_packing.from_bits(high),
        ]
        if self.draws is None:
            streams.append(bit_packing.packed(_to_codes(weight_M), CODE_BITS))
        else:
            streams += self._counts_to_bytes(length_T, np.rint(weight_M * self.draws), rank_M)
        return b"".join(streams)

    def decode(self, data: Bytes, tokens: int) -> SequenceTargets:
        """The targets that `encode` was given, with the weights that the format stores.

        Args:
            data: all bytes of a sequence, uint8.
            tokens: number of its tokens, T.

        Raises:
            DataError: when the bytes cannot be the targets of such a sequence.
        """
        stream = _Streams(data)
        try:
            length_T = stream.fields(tokens, self._length_bits)
            entropy_T = (stream.fields(tokens, CODE_BITS) / ENTROPY_STEPS).astype(np.float32)
            tail_T = _from_codes(stream.fields(tokens, CODE_BITS)) if self.tail else None
            total = int(length_T.sum())
            low_M = np.repeat(self._low_bits[length_T], length_T)
            high_T = self._high_bits[length_T]
            id_M = stream.fields(total, low_M)
            one_M = np.flatnonzero(stream.bits(int(high_T.sum())))
            first_M = np.repeat(np.cumsum(length_T) - length_T, length_T)
            start_M = np.repeat(np.cumsum(high_T) - high_T, length_T)
            id_M += (one_M - start_M - (np.arange(total) - first_M)) << low_M
            if self.draws is None:
                weight_M = _from_codes(stream.fields(total, CODE_BITS))
            else:
                counts = self._counts_from_bytes(length_T, stream)
                weight_M = (counts / self.draws).astype(np.float32)
            stream.end()
        except (ValueError, IndexError) as e:
            raise DataError(f"these bytes are not the targets of a sequence ({e})") from None
        if self.draws is None and self.normalized:
            weight_M, tail_T = _normalized(length_T, weight_M, tail_T)
        return SequenceTargets(length_T, id_M, weight_M, entropy_T, tail_T)

    def _counts_to_bytes(self, length_T: Ints, counts: Floats, rank_M: Ints) -> list[bytes]:
        assert self.draws is not None
        count_M = counts.astype(np.int64)
        by_bit_T = self._by_bit[length_T]
        by_bit_M = np.repeat(by_bit_T, length_T)
        last_M = rank_M == np.repeat(length_T, length_T) - 1
        numbers = count_M[~by_bit_M & ~last_M] - 1
        end_M = np.cumsum(count_M[by_bit_M])  # the counts of each token add up to the draws
        begins = np.zeros(int(by_bit_T.sum()) * self.draws, np.bool_)
        begins[end_M - count_M[by_bit_M]] = True
        begins = begins.reshape(-1, self.draws)[:, 1:]  # the first draw always begins an id
        return [
            bit_packing.packed(numbers, self._count_bits),
            bit_packing.from_bits(begins.ravel()),
        ]

    def _counts_from_bytes(self, length_T: Ints, stream: "_Streams") -> Ints:
        assert self.draws is not None
        by_bit_T = self._by_bit[length_T]
        by_bit_M = np.repeat(by_bit_T, length_T)
        count_M = np.zeros(len(by_bit_M), np.int64)
        end_T = np.cumsum(length_T)
        has_ids_T = length_T > 0
        last_M = np.zeros(len(count_M), np.bool_)
        last_M[end_T[has_ids_T] - 1] = True
        stored_M = ~by_bit_M & ~last_M
        count_M[stored_M] = stream.fields(int(stored_M.sum()), self._count_bits) + 1
        sums = np.concatenate([[0], np.cumsum(count_M)])
        rest_T = self.draws - (sums[end_T] - sums[end_T - length_T])
        count_M[end_T[has_ids_T] - 1] = rest_T[has_ids_T]

        rows = int(by_bit_T.sum())
        begins = np.ones((rows, self.draws), np.bool_)
        begins[:, 1:] = stream.bits(rows * (self.draws - 1)).reshape(rows, self.draws - 1)
        start = np.flatnonzero(begins)
        count_M[by_bit_M] = np.diff(np.append(start, begins.size))
        return count_M

    @property
    def _length_bits(self) -> int:
        return self.max_ids.bit_length()

    @property
    def _count_bits(self) -> int:
        return max(1, ((self.draws or 0) - 2).bit_length())

    @cached_property
    def _low_bits(self) -> Ints:
        """Low bits of an id, by number of ids of the token: floor(log2(vocabulary / ids))."""
        sizes = [self.vocab_size // max(1, u) for u in range(self.max_ids + 1)]
        return np.array([max(0, size.bit_length() - 1) for size in sizes])

    @cached_property
    def _high_bits(self) -> Ints:
        """Bits of a token in the stream of high bits, by its number of ids."""
        highest = (self.vocab_size - 1) >> self._low_bits
        return np.where(np.arange(self.max_ids + 1) > 0, highest + np.arange(self.max_ids + 1), 0)

    @cached_property
    def _by_bit(self) -> npt.NDArray[np.bool_]:
        """Whether counts are stored as one bit per draw, by number of ids of the token."""
        others = np.maximum(np.arange(self.max_ids + 1) - 1, 0)
        return (others > 0) & ((self.draws or 0) - 1 <= others * self._count_bits)


class _Streams:
    """Reads the streams of a sequence one after another."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> Bytes:
        if self.at + size > len(self.data):
            raise ValueError("they end too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def fields(self, count: int, widths: Ints | int) -> Ints:
        widths = np.broadcast_to(np.asarray(widths, np.int64), (count,))
        ends = np.cumsum(widths)
        size = bit_packing.byte_count(int(ends[-1]) if count else 0)
        return bit_packing.unpacked(self.take(size), ends - widths, widths)

    def bits(self, count: int) -> npt.NDArray[np.bool_]:
        return bit_packing.to_bits(self.take(bit_packing.byte_count(count)), count)

    def end(self) -> None:
        if self.at != len(self.data):
            raise ValueError("some are left over")


def _to_codes(weight: Floats) -> Ints:
    """Log-weights in steps below the largest; 0 stands for a weight of 0."""
    with np.errstate(divide="ignore"):
        steps = (LARGEST_LOG - np.log(weight.astype(np.float64))) * LOG_STEPS
    codes = np.clip(np.rint(np.minimum(steps, 2 * _LARGEST_CODE)), 0, None).astype(np.int64) + 1
    return np.where(codes > _LARGEST_CODE, 0, codes)


def _from_codes(codes: Ints) -> Floats:
    weights = np.exp(LARGEST_LOG - (codes - 1) / LOG_STEPS)
    return np.where(codes > 0, weights, 0.0).astype(np.float32)


def _normalized(
    length_T: Ints, weight_M: Floats, tail_T: Floats | None
) -> tuple[Floats, Floats | None]:
    """Weights and tail of each token, scaled to add up to 1."""
    sums = np.concatenate([[0.0], np.cumsum(weight_M, dtype=np.float64)])
    end_T = np.cumsum(length_T)
    total_T = sums[end_T] - sums[end_T - length_T]
    if tail_T is not None:
        total_T = total_T + tail_T
    scale_T = (1.0 / np.where(total_T > 0, total_T, 1.0)).astype(np.float32)
    return weight_M * np.repeat(scale_T, length_T), None if tail_T is None else tail_T * scale_T


def to_sparse_targets(sequences: list[SequenceTargets], temperature: float) -> SparseTargets:
    """The targets of sequences one after another, padded to the token with most ids."""
    length_N = np.concatenate([s.length_T for s in sequences])
    width = max(1, int(length_N.max(initial=0)))
    ids = np.zeros((len(length_N), width), np.int64)
    weights = np.zeros((len(length_N), width), np.float32)
    place = np.arange(width) < length_N[:, None]
    ids[place] = np.concatenate([s.id_M for s in sequences])
    weights[place] = np.concatenate([s.weight_M for s in sequences])
    tails = [s.tail_T for s in sequences if s.tail_T is not None]
    return SparseTargets(
        torch.from_numpy(ids),
        torch.from_numpy(weights),
        torch.from_numpy(np.concatenate([s.entropy_T for s in sequences])),
        torch.from_numpy(np.concatenate(tails)) if tails else None,
        temperature,
    )
