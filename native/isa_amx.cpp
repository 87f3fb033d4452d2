// AVX-512 with VNNI for a few rows of inputs, AMX tiles for many.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace amx {

#include "simd.hpp"
#include "rows_impl.hpp"
#include "vnni_impl.hpp"

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Once per thread and call: it takes a microsecond. Not the intrinsic: GCC 12 believes that it only
// reads 8 bytes, and drops the stores to the others.
inline void configure() {
  static const TileConfig config;
  static thread_local uint32_t configured = 0;
  const uint32_t call = calls.load(std::memory_order_relaxed);
  if (configured == call) return;
  configured = call;
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

void release_tiles() { _tile_release(); }

// c[m][0..31] += the int32 tiles, scaled; `rows` of the 16.
inline void scale_tiles(const int32_t (*left)[16], const int32_t (*right)[16], __m512 s0, __m512 s1,
                        const Inputs& in, int m0, int rows, int block, float* c) {
  for (int m = 0; m < rows; ++m) {
    const int64_t at = static_cast<int64_t>(m0 + m) * in.blocks + block;
    const __m512i offset = _mm512_set1_epi32(in.block_sums[at]);
    const __m512 x = _mm512_set1_ps(in.scale[at]);
    const __m512 a = _mm512_cvtepi32_ps(_mm512_add_epi32(loadi(left[m]), offset));
    const __m512 b = _mm512_cvtepi32_ps(_mm512_add_epi32(loadi(right[m]), offset));
    _mm512_storeu_ps(c, _mm512_fmadd_ps(a, _mm512_mul_ps(s0, x), _mm512_loadu_ps(c)));
    _mm512_storeu_ps(c + 16, _mm512_fmadd_ps(b, _mm512_mul_ps(s1, x), _mm512_loadu_ps(c + 16)));
    c += 32;
  }
}

void panel(const Panel& p, const Inputs& in, int m0, int rows, float* c) {
  configure();
  alignas(64) int32_t dot[4][16][16];
  std::memset(c, 0, sizeof(float) * rows * 32);
  int64_t ahead = 0;
  const int64_t parts = static_cast<int64_t>(in.blocks) * ((rows + 31) / 32);
  // Prefetches no more at a time than memory delivers meanwhile.
  const int64_t each = std::min<int64_t>(padded(p.next_bytes / parts + 1, 64), 512);
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    const __m512 s0 = _mm512_loadu_ps(p.scale[0] + block * p.scale_step);
    const __m512 s1 = _mm512_loadu_ps(p.scale[1] + block * p.scale_step);
    for (int m = 0; m < rows; m += 32) {
      const int8_t* q = in.q + (m0 + m) * in.q_stride;
      const int left = rows - m;
      for (int64_t i = 0; i < each && ahead < p.next_bytes; i += 64, ahead += 64) {
        if (p.next[0]) _mm_prefetch(reinterpret_cast<const char*>(p.next[0] + ahead), _MM_HINT_T1);
        if (p.next[1]) _mm_prefetch(reinterpret_cast<const char*>(p.next[1] + ahead), _MM_HINT_T1);
      }
      _tile_zero(0);
      _tile_zero(1);
      if (left > 16) {
        _tile_zero(2);
        _tile_zero(3);
        for (int k = begin; k < end; k += 64) {
          _tile_loadd(6, p.tile[0] + static_cast<int64_t>(k) * kTile, 64);
          _tile_loadd(4, q + k, in.q_stride);
          _tile_loadd(7, p.tile[1] + static_cast<int64_t>(k) * kTile, 64);
          _tile_dpbsud(0, 4, 6);
          _tile_loadd(5, q + 16 * in.q_stride + k, in.q_stride);
          _tile_dpbsud(1, 4, 7);
          _tile_dpbsud(2, 5, 6);
          _tile_dpbsud(3, 5, 7);
        }
        _tile_stored(0, dot[0], 64);
        _tile_stored(1, dot[1], 64);
        _tile_stored(2, dot[2], 64);
        _tile_stored(3, dot[3], 64);
        scale_tiles(dot[0], dot[1], s0, s1, in, m0 + m, 16, block, c + m * 32);
        scale_tiles(dot[2], dot[3], s0, s1, in, m0 + m + 16, left < 32 ? left - 16 : 16, block,
                    c + (m + 16) * 32);
      } else {
        for (int k = begin; k < end; k += 64) {
          _tile_loadd(6, p.tile[0] + static_cast<int64_t>(k) * kTile, 64);
          _tile_loadd(4, q + k, in.q_stride);
          _tile_loadd(7, p.tile[1] + static_cast<int64_t>(k) * kTile, 64);
          _tile_dpbsud(0, 4, 6);
          _tile_dpbsud(1, 4, 7);
        }
        _tile_stored(0, dot[0], 64);
        _tile_stored(1, dot[1], 64);
        scale_tiles(dot[0], dot[1], s0, s1, in, m0 + m, left, block, c + m * 32);
      }
    }
  }
}

}  // namespace amx

constinit const Kernels kAmx = amx::with_rows({
    .name = "amx",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 1,
    .tile = amx::tile,
    .prepare = amx::prepare,
    .panel = amx::panel,
    .release_tiles = amx::release_tiles,
});

}  // namespace gemmule
