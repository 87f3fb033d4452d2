// AVX-512 with VNNI.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace avx512 {

#include "simd.hpp"
#include "rows_impl.hpp"
#include "vnni_impl.hpp"

// Adds the products of a superblock of both tiles and M rows to `dot`.
template <int M>
[[gnu::noinline]] void byte_rows(const uint8_t* first, const uint8_t* second, int columns,
                                 const int8_t* q, int64_t q_stride, __m512i (&dot)[M][2]) {
  __m512i sums[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m) sums[m][0] = dot[m][0], sums[m][1] = dot[m][1];
  for (int k = 0; k < columns; k += 4, first += 64, second += 64, q += 4) {
    const __m512i w[2] = {loadi(first), loadi(second)};
    GM_UNROLL for (int m = 0; m < M; ++m) {
      const __m512i x = four(q + m * q_stride);
      sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], w[0], x);
      sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], w[1], x);
    }
  }
  GM_UNROLL for (int m = 0; m < M; ++m) dot[m][0] = sums[m][0], dot[m][1] = sums[m][1];
}

template <int M>
inline void panel_rows(const Panel& p, const Inputs& in, int m0, int block, float* c) {
  const int begin = block * kBlock;
  const int columns = in.columns - begin < kBlock ? in.columns - begin : kBlock;
  const int64_t at = static_cast<int64_t>(begin) * kTile;
  __m512i dot[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m)
    dot[m][0] = dot[m][1] = _mm512_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block]);
  byte_rows<M>(p.tile[0] + at, p.tile[1] + at, columns, in.q + m0 * in.q_stride + begin,
               in.q_stride, dot);
  for (int t = 0; t < 2; ++t) {
    const __m512 w_scale = _mm512_loadu_ps(p.scale[t] + block * p.scale_step);
    for (int m = 0; m < M; ++m) {
      const __m512 s =
          _mm512_mul_ps(w_scale, _mm512_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
      float* to = c + m * 32 + t * 16;
      const __m512 before = block == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
      _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m][t]), s, before));
    }
  }
}

// A superblock of the weights is in the L1 cache for all rows.
void panel(const Panel& p, const Inputs& in, int m0, int rows, float* c) {
  for (int block = 0; block < in.blocks; ++block)
    in_parts<12, 4, 1>(rows, [&]<int M>(int m) {
      panel_rows<M>(p, in, m0 + m, block, c + m * 32);
    });
}

}  // namespace avx512

constinit const Kernels kAvx512 = avx512::with_rows({
    .name = "avx512vnni",
    // Up to here, as with eight decoding sequences and some tokens of a prompt, unpacking a tile for
    // each eight rows takes less time than unpacking panels: int4 with 64 rows 0.8 of it.
    .gemv_max_rows = 8 * kGemvRows,
    .panel_bytes = 1,
    .tile = avx512::tile,
    .prepare = avx512::prepare,
    .panel = avx512::panel,
});

}  // namespace gemmule
