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

// Both tiles for M rows: the sums stay in registers for a superblock.
template <int M>
inline void panel_rows(const Panel& p, const Inputs& in, int m0, float* c) {
  for (int m = 0; m < M; ++m)
    for (int t = 0; t < 2; ++t) _mm512_storeu_ps(c + m * 32 + t * 16, _mm512_setzero_ps());
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    const int8_t* q = in.q + m0 * in.q_stride;
    __m512i dot[M][2];
    for (int m = 0; m < M; ++m)
      dot[m][0] = dot[m][1] = _mm512_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block]);
    for (int k = begin; k < end; k += 4) {
      const __m512i a = loadi(p.tile[0] + static_cast<int64_t>(k) * kTile);
      const __m512i b = loadi(p.tile[1] + static_cast<int64_t>(k) * kTile);
      for (int m = 0; m < M; ++m) {
        const __m512i x = four(q + m * in.q_stride + k);
        dot[m][0] = _mm512_dpbusd_epi32(dot[m][0], a, x);
        dot[m][1] = _mm512_dpbusd_epi32(dot[m][1], b, x);
      }
    }
    for (int t = 0; t < 2; ++t) {
      const __m512 w_scale = _mm512_loadu_ps(p.scale[t] + block * p.scale_step);
      for (int m = 0; m < M; ++m) {
        const __m512 s =
            _mm512_mul_ps(w_scale, _mm512_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
        float* to = c + m * 32 + t * 16;
        _mm512_storeu_ps(
            to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m][t]), s, _mm512_loadu_ps(to)));
      }
    }
  }
}

void panel(const Panel& p, const Inputs& in, int m0, int rows, float* c) {
  while (rows > 0) {
    const int n = rows >= 12 ? 12 : rows >= 4 ? 4 : 1;
    if (n == 12) panel_rows<12>(p, in, m0, c);
    if (n == 4) panel_rows<4>(p, in, m0, c);
    if (n == 1) panel_rows<1>(p, in, m0, c);
    m0 += n;
    c += n * 32;
    rows -= n;
  }
}

}  // namespace avx512

const Kernels kAvx512 = {
    .name = "avx512vnni",
    // With eight decoding sequences and some tokens of a prompt, unpacking all weights into panels
    // takes longer than unpacking a tile for each eight rows: 0.74 against 0.45 s for 64 rows of a 2B.
    .gemv_max_rows = 8 * kGemvRows,
    .panel_bytes = 1,
    .tile = avx512::tile,
    .prepare = avx512::prepare,
    .panel = avx512::panel,
    .quantize = avx512::quantize,
    .norm = avx512::norm,
    .gelu_times = avx512::gelu_times,
    .add = avx512::add,
    .rotate = avx512::rotate,
    .store = avx512::store,
    .attend = avx512::attend,
    .cap = avx512::cap,
    .argmax = avx512::argmax,
    .sum_exp = avx512::sum_exp,
    .read = avx512::read,
    .release_tiles = nullptr,
};

}  // namespace gemmule
