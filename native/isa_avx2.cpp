// AVX2 without VNNI: products of bytes go through 16 bits, two rows of eight at a time.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace avx2 {

#include "simd.hpp"
#include "rows_impl.hpp"

inline __m256i loadi(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m256i four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}

// A group of eight rows for M tokens: sums of 32 products of nibbles and bytes stay within
// 8 x 2 x 15 x 127 < 2^15.
template <int M>
inline void group(const uint8_t* data, const int8_t* q, int64_t q_stride, __m256i* out) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i sums[M];
  for (int m = 0; m < M; ++m) sums[m] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    prefetch(data + i * 64);
    const __m256i w = loadi(data + i * 64);
    const __m256i a = _mm256_and_si256(w, low);
    const __m256i b = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
    for (int m = 0; m < M; ++m) {
      const int8_t* x = q + m * q_stride + 4 * i;
      sums[m] = _mm256_add_epi16(sums[m], _mm256_maddubs_epi16(a, four(x)));
      sums[m] = _mm256_add_epi16(sums[m], _mm256_maddubs_epi16(b, four(x + 16)));
    }
  }
  for (int m = 0; m < M; ++m) out[m] = _mm256_madd_epi16(sums[m], ones);
}

template <int M>
inline void tile_int4(const uint8_t* data, const Inputs& in, int m0, float (*y)[kTile]) {
  __m256 acc[M][2];
  for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int first = block * (kBlock / kGroup);
    const int groups = in.groups - first < 8 ? in.groups - first : 8;
    const uint8_t* mults = data + groups * kInt4GroupBytes;
    const int8_t* q = in.q + m0 * in.q_stride + block * kBlock;
    const int32_t* sums = in.group_sums + m0 * in.groups + first;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i mult = loadi(mults + half * 32);
      const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(
          _mm256_cvtepu16_epi32(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(mults + 64 + half * 16))),
          16));
      __m256i dot[M];
      for (int m = 0; m < M; ++m) dot[m] = _mm256_setzero_si256();
      for (int g = 0; g < groups; g += 2) {
        const uint8_t* d = data + g * kInt4GroupBytes + half * 32;
        const __m256i factor = _mm256_and_si256(mult, _mm256_set1_epi32(0x000f000f));
        mult = _mm256_srli_epi32(mult, 4);
        __m256i even[M], odd[M];
        group<M>(d, q + g * kGroup, in.q_stride, even);
        group<M>(d + kInt4GroupBytes, q + (g + 1) * kGroup, in.q_stride, odd);
        for (int m = 0; m < M; ++m) {
          const int32_t* s = sums + m * in.groups + g;
          even[m] = _mm256_add_epi32(even[m], _mm256_set1_epi32(s[0]));
          odd[m] = _mm256_add_epi32(odd[m], _mm256_set1_epi32(s[1]));
          // Both sums fit into 16 bits: 32 x 8 x 127 < 2^15.
          const __m256i pair = _mm256_blend_epi16(even[m], _mm256_slli_epi32(odd[m], 16), 0xaa);
          dot[m] = _mm256_add_epi32(dot[m], _mm256_madd_epi16(pair, factor));
        }
      }
      for (int m = 0; m < M; ++m) {
        const __m256 s =
            _mm256_mul_ps(scale, _mm256_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
        acc[m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[m]), s, acc[m][half]);
      }
    }
    data = mults + kInt4HeadBytes;
  }
  for (int m = 0; m < M; ++m) {
    _mm256_storeu_ps(y[m], acc[m][0]);
    _mm256_storeu_ps(y[m] + 8, acc[m][1]);
  }
}

void rows_int4(const uint8_t* data, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  for (int m = 0; m < rows;) {
    const int n = rows - m >= 4 ? 4 : rows - m >= 2 ? 2 : 1;
    if (n == 4) tile_int4<4>(data, in, m0 + m, y + m);
    if (n == 2) tile_int4<2>(data, in, m0 + m, y + m);
    if (n == 1) tile_int4<1>(data, in, m0 + m, y + m);
    m += n;
  }
}

void tile_int6(const uint8_t* data, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(48);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 acc[kGemvRows][2];
  for (int m = 0; m < rows; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    const uint8_t* head = data + groups * kInt6GroupBytes;
    for (int half = 0; half < 2; ++half) {
      const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(
          _mm256_cvtepu16_epi32(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(head + half * 16))),
          16));
      for (int m = 0; m < rows; ++m) {
        const int8_t* q = in.q + (m0 + m) * in.q_stride + block * kBlock;
        const int32_t sum = in.block_sums[(m0 + m) * in.blocks + block] / 4;
        __m256i dot = _mm256_set1_epi32(sum);
        for (int g = 0; g < groups; ++g, q += kGroup) {
          const uint8_t* d = data + g * kInt6GroupBytes + half * 32;
          const __m256i h[2] = {loadi(d + 256), loadi(d + 320)};
          for (int i = 0; i < 4; ++i) {
            const __m256i w = loadi(d + i * 64);
            const __m256i nibbles[2] = {_mm256_and_si256(w, low),
                                        _mm256_and_si256(_mm256_srli_epi16(w, 4), low)};
            for (int j = 0; j < 2; ++j) {
              const __m256i bits = i < 2 ? _mm256_sll_epi16(h[j], _mm_cvtsi32_si128(4 - 2 * i))
                                         : _mm256_srl_epi16(h[j], _mm_cvtsi32_si128(2 * i - 4));
              const __m256i u = _mm256_or_si256(nibbles[j], _mm256_and_si256(bits, high));
              // Two products stay within 2 x 63 x 127 < 2^15.
              const __m256i p = _mm256_maddubs_epi16(u, four(q + 4 * i + 16 * j));
              dot = _mm256_add_epi32(dot, _mm256_madd_epi16(p, ones));
            }
          }
        }
        const __m256 s =
            _mm256_mul_ps(scale, _mm256_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
        acc[m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), s, acc[m][half]);
      }
    }
    data = head + kInt6HeadBytes;
  }
  for (int m = 0; m < rows; ++m) {
    _mm256_storeu_ps(y[m], acc[m][0]);
    _mm256_storeu_ps(y[m] + 8, acc[m][1]);
  }
}

// |a| x (w with the sign of a): two products stay within 2 x 127 x 127 < 2^15.
void tile_int8(const uint8_t* data, const float* scales, const Inputs& in, int m0, int rows,
               float (*y)[kTile]) {
  const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
  for (int half = 0; half < 2; ++half) {
    const __m256 scale = _mm256_loadu_ps(scales + half * 8);
    for (int m = 0; m < rows; ++m) {
      const int8_t* q = in.q + (m0 + m) * in.q_stride;
      const uint8_t* d = data + half * 32;
      __m256 acc = _mm256_setzero_ps();
      for (int block = 0; block < in.blocks; ++block) {
        const int begin = block * kBlock;
        const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
        __m256i dot = _mm256_setzero_si256();
        for (int k = begin; k < end; k += 4, d += 64) {
          prefetch(d);
          const __m256i a = four(q + k);
          const __m256i w = _mm256_xor_si256(loadi(d), flip);
          const __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(w, a));
          dot = _mm256_add_epi32(dot, _mm256_madd_epi16(p, ones));
        }
        const __m256 s =
            _mm256_mul_ps(scale, _mm256_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), s, acc);
      }
      _mm256_storeu_ps(y[m] + half * 8, acc);
    }
  }
}

void tile(const gm_matrix& w, int64_t at, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + at * tile_bytes(w);
  switch (w.format) {
    case GM_F32: return dense<false>(w, at, in, m0, rows, y);
    case GM_BF16: return dense<true>(w, at, in, m0, rows, y);
    case GM_INT4: return rows_int4(data, in, m0, rows, y);
    case GM_INT6: return tile_int6(data, in, m0, rows, y);
    default: return tile_int8(data, w.scales + at * kTile, in, m0, rows, y);
  }
}

}  // namespace avx2

const Kernels kAvx2 = {
    .name = "avx2",
    .gemv_max_rows = kGemvRows,
    .tile = avx2::tile,
    .prepare = nullptr,
    .panel = nullptr,
    .quantize = avx2::quantize,
    .norm = avx2::norm,
    .gelu_times = avx2::gelu_times,
    .add = avx2::add,
    .rotate = avx2::rotate,
    .store = avx2::store,
    .attend = avx2::attend,
    .cap = avx2::cap,
    .argmax = avx2::argmax,
    .sum_exp = avx2::sum_exp,
    .read = avx2::read,
    .release_tiles = nullptr,
};

}  // namespace gemmule
