// AVX2 without VNNI: products of bytes go through 16 bits.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace avx2 {

#include "simd.hpp"
#include "rows_impl.hpp"
#include "ymm.hpp"

// int4. Sums of a group's products of nibbles and bytes, two per row, stay within
// 8 x 2 x 15 x 127 < 2^15; another multiplication by the group's multiplier makes them one.

// The offsets of a pair of groups, as 16-bit numbers side by side: 32 x 8 x 127 < 2^15.
inline __m256i pair_of_offsets(const int32_t* group_sums) {
  int64_t both;
  std::memcpy(&both, group_sums, 8);
  const __m256i sums = _mm256_set1_epi64x(both);
  return _mm256_packs_epi32(sums, sums);
}

// Adds the products of a group of sixteen rows and M tokens to `dot`.
template <int M>
inline void group(const uint8_t* data, const int8_t* q, int64_t q_stride, const __m256i* mult,
                  __m256i (&dot)[M][2]) {
  __m256i sums[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_si256();
  GM_UNROLL for (int i = 0; i < 4; ++i) {
    prefetch(data + i * 64);
    const __m256i both[2] = {loadi(data + i * 64), loadi(data + i * 64 + 32)};
    GM_UNROLL for (int high = 0; high < 2; ++high) {
      __m256i w[2];
      GM_UNROLL for (int half = 0; half < 2; ++half)
        w[half] = high ? high_nibbles(both[half]) : low_nibbles(both[half]);
      GM_UNROLL for (int m = 0; m < M; ++m) {
        const __m256i x = four(q + m * q_stride + 4 * i + 16 * high);
        GM_UNROLL for (int half = 0; half < 2; ++half) {
          sums[m][half] = _mm256_add_epi16(sums[m][half], _mm256_maddubs_epi16(w[half], x));
          in_order(sums[m][half]);
        }
      }
    }
  }
  GM_UNROLL for (int m = 0; m < M; ++m)
    GM_UNROLL for (int half = 0; half < 2; ++half)
      dot[m][half] =
          _mm256_add_epi32(dot[m][half], _mm256_madd_epi16(sums[m][half], mult[half]));
}

template <int M>
inline void tile_int4(const uint8_t* data, const Inputs& in, int m0, float (*y)[kTile]) {
  __m256 acc[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int first = block * (kBlock / kGroup);
    const int groups = in.groups - first < 8 ? in.groups - first : 8;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    const int8_t* q = in.q + m0 * in.q_stride + block * kBlock;
    const int32_t* group_sums = in.group_sums + m0 * in.groups + first;
    const __m256i mults[2] = {loadi(head), loadi(head + 32)};
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m) dot[m][0] = dot[m][1] = _mm256_setzero_si256();
    for (int pair = 0; pair < groups / 2; ++pair) {
      const __m256i both[2] = {pair_of_mults(mults[0], pair), pair_of_mults(mults[1], pair)};
      const __m256i even[2] = {even_mult(both[0]), even_mult(both[1])};
      const __m256i odd[2] = {odd_mult(both[0]), odd_mult(both[1])};
      GM_UNROLL for (int m = 0; m < M; ++m) {
        const __m256i offsets = pair_of_offsets(group_sums + m * in.groups + 2 * pair);
        GM_UNROLL for (int half = 0; half < 2; ++half)
          dot[m][half] =
              _mm256_add_epi32(dot[m][half], _mm256_madd_epi16(both[half], offsets));
      }
      group<M>(data, q, in.q_stride, even, dot);
      group<M>(data + kInt4GroupBytes, q + kGroup, in.q_stride, odd, dot);
      data += 2 * kInt4GroupBytes;
      q += 2 * kGroup;
    }
    add_scaled<M>(dot, head + 64, in, m0, block, acc);
    data = head + kInt4HeadBytes;
  }
  save_rows<M>(acc, y);
}

template <int M>
inline void tile_int6(const uint8_t* data, const Inputs& in, int m0, float (*y)[kTile]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 acc[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    const int8_t* q = in.q + m0 * in.q_stride + block * kBlock;
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m)  // -128 times the sum, and 32 was added to the weights.
      dot[m][0] = dot[m][1] =
          _mm256_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block] / 4);
    for (int g = 0; g < groups; ++g, q += kGroup, data += kInt6GroupBytes)
      unpack_int6(data, [&](int i, int half, __m256i a, __m256i b) {
        GM_UNROLL for (int m = 0; m < M; ++m) {
          const int8_t* x = q + m * in.q_stride + 4 * i;
          // Four products stay within 4 x 63 x 127 < 2^15.
          const __m256i p = _mm256_add_epi16(_mm256_maddubs_epi16(a, four(x)),
                                             _mm256_maddubs_epi16(b, four(x + 16)));
          dot[m][half] = _mm256_add_epi32(dot[m][half], _mm256_madd_epi16(p, ones));
          in_order(dot[m][half]);
        }
      });
    add_scaled<M>(dot, data, in, m0, block, acc);
    data += kInt6HeadBytes;
  }
  save_rows<M>(acc, y);
}

// int8: |a| x (w with the sign of a): two products stay within 2 x 127 x 127 < 2^15.
template <int M>
inline void tile_int8(const uint8_t* data, const float* scales, const Inputs& in, int m0,
                      float (*y)[kTile]) {
  const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
  const int8_t* q = in.q + m0 * in.q_stride;
  __m256 acc[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m) dot[m][0] = dot[m][1] = _mm256_setzero_si256();
    for (int k = begin; k < end; k += 4, data += 64) {
      prefetch(data);
      const __m256i w[2] = {_mm256_xor_si256(loadi(data), flip),
                            _mm256_xor_si256(loadi(data + 32), flip)};
      GM_UNROLL for (int m = 0; m < M; ++m) {
        const __m256i a = four(q + m * in.q_stride + k), size = _mm256_abs_epi8(a);
        GM_UNROLL for (int half = 0; half < 2; ++half) {
          const __m256i p = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w[half], a));
          dot[m][half] = _mm256_add_epi32(dot[m][half], _mm256_madd_epi16(p, ones));
        }
      }
    }
    add_scaled<M>(dot, scales, in, m0, block, acc);
  }
  save_rows<M>(acc, y);
}

template <int M>
inline void tile_rows(int format, const uint8_t* data, const float* scales, const Inputs& in,
                      int m0, float (*y)[kTile]) {
  if (format == GM_INT4) return tile_int4<M>(data, in, m0, y);
  if (format == GM_INT6) return tile_int6<M>(data, in, m0, y);
  tile_int8<M>(data, scales, in, m0, y);
}

void tile(const gm_matrix& w, int64_t at, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  if (w.format == GM_F32) return dense<false>(w, at, in, m0, rows, y);
  if (w.format == GM_BF16) return dense<true>(w, at, in, m0, rows, y);
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + at * tile_bytes(w);
  const float* scales = w.scales + at * kTile;
  in_parts<4, 3, 2, 1>(rows, [&]<int M>(int m) {
    tile_rows<M>(w.format, data, scales, in, m0 + m, y + m);
  });
}

// Panels. A superblock of a tile of int4 becomes, for each group, nibbles as bytes (8 quads of
// sixteen rows) and multipliers (twice in each row), then, for each pair of groups, both multipliers.
// The other formats become 16-bit values, two of each of sixteen rows together: a product of two of
// them and their sum fill a register of eight 32-bit lanes, while bytes need two steps more.
constexpr int kNibbleGroup = 512 + 64;
constexpr int kRowsAtOnce = 6;  // 12 sums, two vectors of weights, one of inputs, one product

void widen_int4(const uint8_t* data, int columns, uint8_t* bytes, float* scales) {
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    uint8_t* pairs = bytes + groups * kNibbleGroup;
    for (int half = 0; half < 2; ++half) {
      const __m256i mults = loadi(head + half * 32);
      _mm256_storeu_ps(scales + half * 8, bf16_scales(head + 64 + half * 16));
      for (int pair = 0; pair < groups / 2; ++pair) {
        const __m256i both = pair_of_mults(mults, pair);
        savei(pairs + pair * 64 + half * 32, both);
        uint8_t* even = bytes + 2 * pair * kNibbleGroup + 512 + half * 32;
        savei(even, even_mult(both));
        savei(even + kNibbleGroup, odd_mult(both));
      }
    }
    for (int g = 0; g < groups; ++g, data += kInt4GroupBytes, bytes += kNibbleGroup)
      for (int at = 0; at < kInt4GroupBytes; at += 32) {
        if (at % 64 == 0) prefetch(data + at);
        const __m256i w = loadi(data + at);
        savei(bytes + at, low_nibbles(w));
        savei(bytes + at + 256, high_nibbles(w));
      }
    data += kInt4HeadBytes;
    bytes = pairs + groups * 32;
  }
}

// Eight rows of a quad, bytes from which `offset` is taken, as 16-bit values.
inline void widen_quad(__m256i w, __m256i offset, uint8_t* words) {
  const __m256i low = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0,
                                       -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
  const __m256i high = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1,
                                        2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
  savei(words, _mm256_sub_epi16(_mm256_shuffle_epi8(w, low), offset));
  savei(words + 64, _mm256_sub_epi16(_mm256_shuffle_epi8(w, high), offset));
}

void widen_int6(const uint8_t* data, int columns, uint8_t* words, float* scales) {
  const __m256i offset = _mm256_set1_epi16(32);
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    for (int g = 0; g < groups; ++g, data += kInt6GroupBytes, words += kGroup * kTile * 2)
      unpack_int6(data, [&](int i, int half, __m256i a, __m256i b) {
        widen_quad(a, offset, words + i * 128 + half * 32);
        widen_quad(b, offset, words + (i + 4) * 128 + half * 32);
      });
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_ps(scales + half * 8, bf16_scales(data + half * 16));
    data += kInt6HeadBytes;
  }
}

void widen_int8(const uint8_t* data, int columns, uint8_t* words) {
  const __m256i offset = _mm256_set1_epi16(128);
  for (int k = 0; k < columns; k += 4, data += 64, words += 128) {
    prefetch(data);
    for (int half = 0; half < 2; ++half)
      widen_quad(loadi(data + half * 32), offset, words + half * 32);
  }
}

const uint8_t* prepare(int format, const uint8_t* data, int columns, uint8_t* bytes,
                       float* scales) {
  if (format == GM_INT4)
    widen_int4(data, columns, bytes, scales);
  else if (format == GM_INT6)
    widen_int6(data, columns, bytes, scales);
  else
    widen_int8(data, columns, bytes);
  return bytes;
}

// Not inlined, or GCC keeps sums in memory.
template <int M>
[[gnu::noinline]] void nibble_rows(const uint8_t* bytes, int groups, const int8_t* q, int64_t q_stride,
                        const int32_t* group_sums, int64_t sums_stride, __m256i (&dot)[M][2]) {
  const uint8_t* pairs = bytes + groups * kNibbleGroup;
  for (int m = 0; m < M; ++m) {
    __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int pair = 0; pair < groups / 2; ++pair) {
      const __m256i offsets = pair_of_offsets(group_sums + m * sums_stride + 2 * pair);
      GM_UNROLL for (int half = 0; half < 2; ++half)
        total[half] = _mm256_add_epi32(
            total[half], _mm256_madd_epi16(loadi(pairs + pair * 64 + half * 32), offsets));
    }
    dot[m][0] = total[0], dot[m][1] = total[1];
  }
  for (int g = 0; g < groups; ++g, bytes += kNibbleGroup, q += kGroup) {
    __m256i sums[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int quad = 0; quad < 8; ++quad) {
      const __m256i w[2] = {loadi(bytes + quad * 64), loadi(bytes + quad * 64 + 32)};
      GM_UNROLL for (int m = 0; m < M; ++m) {
        const __m256i x = four(q + m * q_stride + 4 * quad);
        GM_UNROLL for (int half = 0; half < 2; ++half) {
          sums[m][half] = _mm256_add_epi16(sums[m][half], _mm256_maddubs_epi16(w[half], x));
          in_order(sums[m][half]);
        }
      }
    }
    GM_UNROLL for (int half = 0; half < 2; ++half) {
      const __m256i mult = loadi(bytes + 512 + half * 32);
      GM_UNROLL for (int m = 0; m < M; ++m)
        dot[m][half] = _mm256_add_epi32(dot[m][half], _mm256_madd_epi16(sums[m][half], mult));
    }
  }
}

template <int M>
[[gnu::noinline]] void word_rows(const uint8_t* words, int columns, const int16_t* x,
                                 __m256i (&dot)[M][2]) {
  __m256i sums[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_si256();
  for (int k = 0; k < columns; k += 2, words += 64) {
    const __m256i w[2] = {loadi(words), loadi(words + 32)};
    GM_UNROLL for (int m = 0; m < M; ++m) {
      int32_t bits;
      std::memcpy(&bits, x + m * kBlock + k, 4);
      const __m256i both = _mm256_set1_epi32(bits);
      GM_UNROLL for (int half = 0; half < 2; ++half)
        sums[m][half] = _mm256_add_epi32(sums[m][half], _mm256_madd_epi16(w[half], both));
    }
  }
  GM_UNROLL for (int m = 0; m < M; ++m) dot[m][0] = sums[m][0], dot[m][1] = sums[m][1];
}

// One superblock of both tiles for M rows.
template <int M>
inline void panel_rows(const Panel& p, const Inputs& in, int m0, int block, float* c) {
  const int begin = block * kBlock;
  const int columns = in.columns - begin < kBlock ? in.columns - begin : kBlock;
  const int8_t* q = in.q + m0 * in.q_stride + begin;
  alignas(64) int16_t x[M * kBlock];
  if (p.format[0] != GM_INT4 || p.format[1] != GM_INT4)
    for (int m = 0; m < M; ++m)
      for (int k = 0; k < columns; k += 16)
        savei(x + m * kBlock + k, _mm256_cvtepi8_epi16(_mm_loadu_si128(
                                      reinterpret_cast<const __m128i*>(q + m * in.q_stride + k))));
  for (int t = 0; t < 2; ++t) {
    __m256i dot[M][2];
    if (p.format[t] == GM_INT4)
      nibble_rows<M>(p.tile[t] + static_cast<int64_t>(begin) / kGroup * (kNibbleGroup + 32),
                     columns / kGroup, q, in.q_stride,
                     in.group_sums + m0 * in.groups + begin / kGroup, in.groups, dot);
    else
      word_rows<M>(p.tile[t] + static_cast<int64_t>(begin) * kTile * 2, columns, x, dot);
    add_to_panel<M>(dot, p.scale[t] + block * p.scale_step, in, m0, block, c + t * kTile);
  }
}

// A superblock of the weights is in the L1 cache for all rows.
void panel(const Panel& p, const Inputs& in, int m0, int rows, float* c) {
  for (int block = 0; block < in.blocks; ++block)
    in_parts<kRowsAtOnce, 3, 1>(rows, [&]<int M>(int m) {
      panel_rows<M>(p, in, m0 + m, block, c + m * 2 * kTile);
    });
}

}  // namespace avx2

constinit const Kernels kAvx2 = avx2::with_rows({
    .name = "avx2",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 2,
    .tile = avx2::tile,
    .prepare = avx2::prepare,
    .panel = avx2::panel,
});

}  // namespace gemmule
