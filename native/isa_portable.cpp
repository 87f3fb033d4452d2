// Plain C++ for any processor: what the other instruction sets are compared with.
#ifdef __aarch64__
#include <arm_neon.h>  // its multiply-add, which every such processor has
#endif

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace portable {

#include "simd.hpp"
#include "rows_impl.hpp"

void tile_int4(const uint8_t* data, const Inputs& in, int m, float* y) {
  const int8_t* q = in.q + m * in.q_stride;
  float acc[kTile] = {};
  for (int block = 0; block < in.blocks; ++block) {
    const int first = block * (kBlock / kGroup);
    const int groups = in.groups - first < 8 ? in.groups - first : 8;
    const uint8_t* mults = data + groups * kInt4GroupBytes;
    const uint8_t* scales = mults + 64;
    int32_t dot[kTile] = {};
    for (int g = 0; g < groups; ++g, q += kGroup) {
      int32_t part[kTile];
      for (int r = 0; r < kTile; ++r) part[r] = in.group_sums[m * in.groups + first + g];
      for (int i = 0; i < 4; ++i)
        for (int r = 0; r < kTile; ++r)
          for (int c = 0; c < 4; ++c) {
            const int byte = data[g * kInt4GroupBytes + i * 64 + r * 4 + c];
            part[r] += (byte & 15) * q[4 * i + c] + (byte >> 4) * q[4 * i + 16 + c];
          }
      const int nibble = g / 2 + (g % 2) * 4;
      for (int r = 0; r < kTile; ++r)
        dot[r] += part[r] * (mults[r * 4 + nibble / 2] >> (nibble % 2 * 4) & 15);
    }
    for (int r = 0; r < kTile; ++r) {
      const uint32_t bits = (scales[2 * r] | scales[2 * r + 1] << 8) << 16;
      float scale;
      std::memcpy(&scale, &bits, 4);
      acc[r] = std::fma(static_cast<float>(dot[r]), scale * in.scale[m * in.blocks + block], acc[r]);
    }
    data = scales + 32;
  }
  std::memcpy(y, acc, sizeof acc);
}

void tile_int6(const uint8_t* data, const Inputs& in, int m, float* y) {
  const int8_t* q = in.q + m * in.q_stride;
  float acc[kTile] = {};
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    int32_t dot[kTile];
    for (int r = 0; r < kTile; ++r) dot[r] = in.block_sums[m * in.blocks + block] / 4;
    for (int g = 0; g < groups; ++g, q += kGroup, data += kInt6GroupBytes)
      for (int k = 0; k < kGroup; ++k)
        for (int r = 0; r < kTile; ++r) {
          const int i = k / 4, at = r * 4 + k % 4;
          const int low = data[i % 4 * 64 + at] >> (i / 4 * 4) & 15;
          const int high = data[256 + i / 4 * 64 + at] >> (i % 4 * 2) & 3;
          dot[r] += (low + 16 * high) * q[k];
        }
    for (int r = 0; r < kTile; ++r) {
      const uint32_t bits = (data[2 * r] | data[2 * r + 1] << 8) << 16;
      float scale;
      std::memcpy(&scale, &bits, 4);
      acc[r] = std::fma(static_cast<float>(dot[r]), scale * in.scale[m * in.blocks + block], acc[r]);
    }
    data += kInt6HeadBytes;
  }
  std::memcpy(y, acc, sizeof acc);
}

void tile_int8(const uint8_t* data, const float* scales, const Inputs& in, int m, float* y) {
  const int8_t* q = in.q + m * in.q_stride;
  float acc[kTile] = {};
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    int32_t dot[kTile];
    for (int r = 0; r < kTile; ++r) dot[r] = in.block_sums[m * in.blocks + block];
    for (int k = begin; k < end; k += 4, data += 64)
      for (int r = 0; r < kTile; ++r)
        for (int c = 0; c < 4; ++c) dot[r] += data[r * 4 + c] * q[k + c];
    for (int r = 0; r < kTile; ++r)
      acc[r] =
          std::fma(static_cast<float>(dot[r]), scales[r] * in.scale[m * in.blocks + block], acc[r]);
  }
  std::memcpy(y, acc, sizeof acc);
}

void tile(const gm_matrix& w, int64_t at, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + at * tile_bytes(w);
  if (w.format == GM_F32) return dense<false>(w, at, in, m0, rows, y);
  if (w.format == GM_BF16) return dense<true>(w, at, in, m0, rows, y);
  for (int m = 0; m < rows; ++m)
    if (w.format == GM_INT4)
      tile_int4(data, in, m0 + m, y[m]);
    else if (w.format == GM_INT6)
      tile_int6(data, in, m0 + m, y[m]);
    else
      tile_int8(data, w.scales + at * kTile, in, m0 + m, y[m]);
}

}  // namespace portable

constinit const Kernels kPortable = portable::with_rows({
    .name = "portable",
    .gemv_max_rows = kGemvRows,
    .tile = portable::tile,
});

}  // namespace gemmule
