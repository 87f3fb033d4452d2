// The table of kernels that each isa_*.cpp fills in for one instruction set.
#pragma once

#include <atomic>
#include <cstdint>

#include "gemmule.h"

namespace gemmule {

constexpr int kTile = 16;         // rows of a matrix that are interleaved
constexpr int kBlock = 256;       // consecutive inputs that share a scale: a superblock
constexpr int kGroup = 32;        // consecutive inputs that share a multiplier
constexpr int kGemvRows = 8;      // rows of inputs that the `tile` kernels take at once
constexpr int kRows = 32;         // query rows of one attention call
constexpr int kInt4GroupBytes = 256;  // quants of a group of a tile, int4
constexpr int kInt4HeadBytes = 96;    // multipliers and scales of a superblock of a tile, int4
constexpr int kInt6GroupBytes = 384;  // quants of a group of a tile, int6: nibbles, then high bits
constexpr int kInt6HeadBytes = 32;    // scales of a superblock of a tile, int6

// With a soft cap up to this, exp(logit) can be summed without subtracting the maximum first:
// e^60 summed a million times is far from overflowing fp32.
constexpr float kMaxSafeCap = 60.0f;

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows of inputs to a matrix product, as floats and, if the matrix is quantized, as int8: in each
// row and superblock the largest magnitude becomes 127.
struct Inputs {
  const float* x;   // [rows, x_stride]
  int64_t x_stride;
  int8_t* q;        // [rows padded to 32, q_stride]
  int64_t q_stride;
  float* scale;         // [rows, blocks]
  int32_t* group_sums;  // [rows, groups]: -8 times the sum of q; nibbles are stored with 8 added
  int32_t* block_sums;  // [rows, blocks]: -128 times the sum of q; bytes are stored with 128 added
  int32_t columns;      // padded to 64
  int32_t blocks, groups;
};

// Two tiles of a matrix, unpacked for many rows of inputs in a layout of the instruction set's own.
struct Panel {
  const uint8_t* tile[2];
  int32_t format[2];       // of the matrix, where the layout depends on it
  const float* scale[2];   // 16 values per superblock, `scale_step` apart
  int64_t scale_step;
  // The tiles that will be read next, if any: prefetched meanwhile.
  const uint8_t* next[2];
  int64_t next_bytes;
};

// Attention of up to kRows query rows of one kv head over the pages of one sequence.
struct Attend {
  const float* q[kRows];  // head_dim values each
  float* out[kRows];
  int32_t position[kRows];
  int32_t rows;
  int32_t head_dim, window;  // window 0: all keys
  float scale, cap;
  const uint8_t* pool;       // this layer's and kv head's part of page 0
  int64_t page_bytes;
  const int32_t* pages;
};

struct Kernels {
  const char* name;
  int gemv_max_rows;    // up to this many rows of inputs, `tile` is faster than `panel`
  int panel_bytes = 0;  // at most, for each weight of a panel
  // y[m][i] = row m0 + m of the inputs times row i of a tile, for m < rows <= kGemvRows.
  void (*tile)(const gm_matrix& w, int64_t tile, const Inputs& in, int m0, int rows,
               float (*y)[kTile]);
  // Unpacks a tile of a panel: weights into `bytes`, and each superblock's scales of int4 and int6
  // into `scales`, 2 x kTile apart. Returns where the weights are, which is `data` if its layout is
  // the panel's. Null if the instruction set has no `panel`.
  const uint8_t* (*prepare)(int format, const uint8_t* data, int columns, uint8_t* bytes,
                            float* scales) = nullptr;
  // c[m][0..31] = row m0 + m times both tiles of a panel.
  void (*panel)(const Panel& p, const Inputs& in, int m0, int rows, float* c) = nullptr;
  // Releases, in the caller's thread, the tile registers that `panel` configured; null if none.
  void (*release_tiles)() = nullptr;

  // Set by `with_rows` of rows_impl.hpp.
  void (*quantize)(const Inputs& in, int row, int first_block, int last_block) = nullptr;
  void (*norm)(const float* x, const float* w, int n, float eps, float* out) = nullptr;
  // Rows of 16 values, `stride` apart: gate becomes gelu(gate) x up.
  void (*gelu_times)(float* gate, const float* up, int64_t stride, int rows) = nullptr;
  void (*add)(float* x, const float* y, int n) = nullptr;
  void (*rotate)(float* x, const float* cos, const float* sin, int half) = nullptr;
  // Stores the key and value of one position and kv head in that head's part of their page.
  void (*store)(const float* k, const float* v, int head_dim, int at, int cache,
                uint8_t* page) = nullptr;
  void (*attend)(const Attend& a, int cache, float* scratch) = nullptr;
  void (*cap)(float* x, int n, float cap) = nullptr;
  int (*argmax)(const float* x, int n) = nullptr;
  double (*sum_exp)(const float* x, int n) = nullptr;
  int64_t (*read)(const uint8_t* data, int64_t bytes) = nullptr;
};

// Counts calls from outside: a thread's tile configuration of an earlier call may be gone.
extern std::atomic<uint32_t> calls;

inline int64_t head_bytes(int head_dim, int cache) {
  const int64_t values = padded(head_dim, 16) * GM_PAGE * 2;
  if (cache == GM_CACHE_INT8) return values + 2 * GM_PAGE * 4;
  return values * (cache == GM_CACHE_F16 ? 2 : 4);
}

inline int64_t tile_bytes(const gm_matrix& m) {
  const int64_t columns = padded(m.columns, 64);
  if (m.format == GM_INT8) return columns * kTile;
  const int64_t blocks = padded(columns, kBlock) / kBlock;
  if (m.format == GM_INT6) return columns / kGroup * kInt6GroupBytes + blocks * kInt6HeadBytes;
  return columns / kGroup * kInt4GroupBytes + blocks * kInt4HeadBytes;
}

extern const Kernels kPortable;
#ifdef GEMMULE_X86
extern const Kernels kAvx2, kAvxVnni, kAvxVnniEvex, kAvx512, kAmx;
#endif
#ifdef GEMMULE_ARM
extern const Kernels kDotprod, kI8mm;
#endif

}  // namespace gemmule
