// AVX2 with 256-bit VNNI: each of eight lanes adds up four byte products at once.
//
// Two encodings have the instruction: AVX-VNNI's, of processors without AVX-512, and AVX-512VL's.
// isa_avx_vnni_evex.cpp compiles this file for the second, which differs in nothing else.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"

#ifdef GEMMULE_EVEX
#define GEMMULE_ENCODING "%{evex%} "
#define GEMMULE_NAMESPACE avx_vnni_evex
#define GEMMULE_TABLE kAvxVnniEvex
#else
#define GEMMULE_ENCODING "%{vex%} "
#define GEMMULE_NAMESPACE avx_vnni
#define GEMMULE_TABLE kAvxVnni
#endif

namespace gemmule {
namespace GEMMULE_NAMESPACE {

#include "simd.hpp"
#include "rows_impl.hpp"
#include "ymm.hpp"

// Not the intrinsics: they need compiler flags that allow more of AVX-512, or newer compilers.
inline void add_bytes(__m256i& sum, __m256i u, __m256i s) {
  asm(GEMMULE_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(s));
}
inline void add_words(__m256i& sum, __m256i a, __m256i b) {
  asm(GEMMULE_ENCODING "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

// Two groups of sixteen rows for M tokens: dot += each sum x its multiplier.
template <int M>
inline void group_pair(const uint8_t* data, const int8_t* q, int64_t q_stride, const int32_t* sums,
                       int64_t sums_stride, const __m256i* factor, __m256i (&dot)[M][2]) {
  __m256i part[2][M][2];
  GM_UNROLL for (int g = 0; g < 2; ++g) {
    GM_UNROLL for (int m = 0; m < M; ++m)
      part[g][m][0] = part[g][m][1] = _mm256_set1_epi32(sums[m * sums_stride + g]);
    GM_UNROLL for (int i = 0; i < 4; ++i) {
      const uint8_t* p = data + g * kInt4GroupBytes + i * 64;
      prefetch(p);
      const __m256i both[2] = {loadi(p), loadi(p + 32)};
      GM_UNROLL for (int high = 0; high < 2; ++high) {
        __m256i w[2];
        GM_UNROLL for (int half = 0; half < 2; ++half)
          w[half] = high ? high_nibbles(both[half]) : low_nibbles(both[half]);
        GM_UNROLL for (int m = 0; m < M; ++m) {
          const __m256i x = four(q + m * q_stride + g * kGroup + 4 * i + 16 * high);
          GM_UNROLL for (int half = 0; half < 2; ++half) add_bytes(part[g][m][half], w[half], x);
        }
      }
    }
  }
  GM_UNROLL for (int m = 0; m < M; ++m)
    GM_UNROLL for (int half = 0; half < 2; ++half) {
      // Both sums fit into 16 bits: 32 x 8 x 127 < 2^15.
      const __m256i pair =
          _mm256_blend_epi16(part[0][m][half], _mm256_slli_epi32(part[1][m][half], 16), 0xaa);
      add_words(dot[m][half], pair, factor[half]);
    }
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
    const int32_t* sums = in.group_sums + m0 * in.groups + first;
    const __m256i mults[2] = {loadi(head), loadi(head + 32)};
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m) dot[m][0] = dot[m][1] = _mm256_setzero_si256();
    for (int pair = 0; pair < groups / 2; ++pair) {
      const __m256i factor[2] = {pair_of_mults(mults[0], pair), pair_of_mults(mults[1], pair)};
      group_pair<M>(data, q, in.q_stride, sums + 2 * pair, in.groups, factor, dot);
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
  __m256 acc[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    const int8_t* q = in.q + m0 * in.q_stride + block * kBlock;
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m)  // -128 times the sum, and 32 was added to the weights
      dot[m][0] = dot[m][1] =
          _mm256_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block] / 4);
    for (int g = 0; g < groups; ++g, q += kGroup, data += kInt6GroupBytes)
      unpack_int6(data, [&](int i, int half, __m256i a, __m256i b) {
        GM_UNROLL for (int m = 0; m < M; ++m) {
          const int8_t* x = q + m * in.q_stride + 4 * i;
          add_bytes(dot[m][half], a, four(x));
          add_bytes(dot[m][half], b, four(x + 16));
        }
      });
    add_scaled<M>(dot, data, in, m0, block, acc);
    data += kInt6HeadBytes;
  }
  save_rows<M>(acc, y);
}

// Adds the products of sixteen rows, as bytes of value + 128, and M tokens to `dot`.
template <int M>
[[gnu::noinline]] void byte_rows(const uint8_t* bytes, int columns, const int8_t* q,
                                 int64_t q_stride, __m256i (&dot)[M][2]) {
  __m256i sums[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) sums[m][0] = dot[m][0], sums[m][1] = dot[m][1];
  for (int k = 0; k < columns; k += 4, bytes += 64, q += 4) {
    prefetch(bytes);
    const __m256i w[2] = {loadi(bytes), loadi(bytes + 32)};
    GM_UNROLL for (int m = 0; m < M; ++m) {
      const __m256i x = four(q + m * q_stride);
      GM_UNROLL for (int half = 0; half < 2; ++half) add_bytes(sums[m][half], w[half], x);
    }
  }
  GM_UNROLL for (int m = 0; m < M; ++m) dot[m][0] = sums[m][0], dot[m][1] = sums[m][1];
}

template <int M>
inline void tile_int8(const uint8_t* data, const float* scales, const Inputs& in, int m0,
                      float (*y)[kTile]) {
  __m256 acc[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int columns = in.columns - begin < kBlock ? in.columns - begin : kBlock;
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m)
      dot[m][0] = dot[m][1] = _mm256_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block]);
    byte_rows<M>(data, columns, in.q + m0 * in.q_stride + begin, in.q_stride, dot);
    add_scaled<M>(dot, scales, in, m0, block, acc);
    data += columns * kTile;
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

// Panels hold, for each quad of columns, four bytes of value + 128 of each of sixteen rows, as int8
// does.
constexpr int kRowsAtOnce = 6;  // 12 sums, two vectors of weights, one of inputs

void widen_int4(const uint8_t* data, int columns, uint8_t* bytes, float* scales) {
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_ps(scales + half * 8, bf16_scales(head + 64 + half * 16));
    for (int g = 0; g < groups; ++g, data += kInt4GroupBytes, bytes += 512)
      for (int half = 0; half < 2; ++half) {
        const __m256i pair = pair_of_mults(loadi(head + half * 32), g / 2);
        const __m256i mult = g % 2 ? odd_mult(pair) : even_mult(pair);
        // 128 - 8 x multiplier in each byte.
        const __m256i offset = _mm256_sub_epi8(
            _mm256_set1_epi8(-128),
            _mm256_slli_epi16(_mm256_or_si256(mult, _mm256_slli_epi16(mult, 8)), 3));
        for (int i = 0; i < 4; ++i) {
          prefetch(data + i * 64);
          const __m256i w = loadi(data + i * 64 + half * 32);
          // Nibble x multiplier stays below 256: both bytes of a 16-bit product are correct.
          const __m256i a = _mm256_mullo_epi16(low_nibbles(w), mult);
          const __m256i b = _mm256_mullo_epi16(high_nibbles(w), mult);
          savei(bytes + i * 64 + half * 32, _mm256_add_epi8(a, offset));
          savei(bytes + i * 64 + half * 32 + 256, _mm256_add_epi8(b, offset));
        }
      }
    data += kInt4HeadBytes;
  }
}

void widen_int6(const uint8_t* data, int columns, uint8_t* bytes, float* scales) {
  const __m256i offset = _mm256_set1_epi8(128 - 32);
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    for (int g = 0; g < groups; ++g, data += kInt6GroupBytes, bytes += 512)
      unpack_int6(data, [&](int i, int half, __m256i a, __m256i b) {
        savei(bytes + i * 64 + half * 32, _mm256_add_epi8(a, offset));
        savei(bytes + (i + 4) * 64 + half * 32, _mm256_add_epi8(b, offset));
      });
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_ps(scales + half * 8, bf16_scales(data + half * 16));
    data += kInt6HeadBytes;
  }
}

const uint8_t* prepare(int format, const uint8_t* data, int columns, uint8_t* bytes,
                       float* scales) {
  if (format == GM_INT8) return data;
  const auto widen = format == GM_INT4 ? widen_int4 : widen_int6;
  widen(data, columns, bytes, scales);
  return bytes;
}

// One superblock of both tiles for M rows.
template <int M>
inline void panel_rows(const Panel& p, const Inputs& in, int m0, int block, float* c) {
  const int begin = block * kBlock;
  const int columns = in.columns - begin < kBlock ? in.columns - begin : kBlock;
  for (int t = 0; t < 2; ++t) {
    __m256i dot[M][2];
    GM_UNROLL for (int m = 0; m < M; ++m)
      dot[m][0] = dot[m][1] = _mm256_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block]);
    byte_rows<M>(p.tile[t] + static_cast<int64_t>(begin) * kTile, columns,
                 in.q + m0 * in.q_stride + begin, in.q_stride, dot);
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

}  // namespace GEMMULE_NAMESPACE

constinit const Kernels GEMMULE_TABLE = GEMMULE_NAMESPACE::with_rows({
    .name = "avx_vnni",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 1,
    .tile = GEMMULE_NAMESPACE::tile,
    .prepare = GEMMULE_NAMESPACE::prepare,
    .panel = GEMMULE_NAMESPACE::panel,
});

}  // namespace gemmule
