// What differs from one instruction set to another: the table that isa_*.cpp each fill in.
#pragma once

#include <atomic>
#include <cstdint>

#include "gemmule.h"

namespace gemmule {

constexpr int kTile = 16;         // rows of a matrix that are interleaved
constexpr int kBlock = 256;       // successive inputs that share a scale: a superblock
constexpr int kGroup = 32;        // successive inputs that share a multiplier
constexpr int kFew = 8;           // rows that the `tile` kernels take at once
constexpr int kRows = 32;         // query rows that attend together
constexpr int kQuantBytes = 256;  // of a group of a tile, int4
constexpr int kBlockHead = 96;    // multipliers and scales of a superblock of a tile, int4
constexpr int kSixBytes = 384;    // of a group of a tile, int6: nibbles, then the two high bits
constexpr int kSixHead = 32;      // scales of a superblock of a tile, int6

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows of inputs to a matrix product, as floats and, where the matrix is quantized, as int8: per
// row and superblock the largest magnitude is 127 steps.
struct Inputs {
  const float* x;   // [rows, x_stride]
  int64_t x_stride;
  int8_t* q;        // [rows padded to 32, q_stride]
  int64_t q_stride;
  float* scale;         // [rows, blocks]: what a step is worth
  int32_t* group_sums;  // [rows, groups]: -8 times the sum; nibbles are stored with 8 added
  int32_t* block_sums;  // [rows, blocks]: -128 times the sum; bytes are stored with 128 added
  int32_t columns;      // padded to 64
  int32_t blocks, groups;
};

// Two tiles of a matrix made ready for many rows of inputs.
struct Panel {
  const uint8_t* tile[2];  // [columns / 4][16][4], value + 128
  const float* scale[2];   // 16 values every `scale_step`, one step a superblock
  int64_t scale_step;
  // The tiles that will be read next, if any: asked for from memory meanwhile.
  const uint8_t* ahead[2];
  int64_t ahead_bytes;
};

struct Attend {
  const float* q[kRows];  // head_dim values each
  float* out[kRows];
  int32_t position[kRows];
  int32_t rows;
  int32_t head_dim, window;  // 0: all keys
  float scale, cap;
  const uint8_t* pool;       // of this layer and kv head in page 0
  int64_t page_bytes;
  const int32_t* pages;
};

struct Kernels {
  const char* name;
  int few;  // up to so many rows `tile` is the faster
  // y[m][i] = row m0 + m of the inputs times row i of a tile, for m < rows <= kFew.
  void (*tile)(const gm_matrix& w, int64_t tile, const Inputs& in, int m0, int rows,
               float (*y)[kTile]);
  // Null where `tile` is all there is.
  void (*prepare)(const gm_matrix& a, int64_t tile_a, const gm_matrix& b, int64_t tile_b,
                  uint8_t* bytes, float* scales, Panel* out);
  // c[m][0..31] = row m0 + m times both tiles of a panel.
  void (*panel)(const Panel& p, const Inputs& in, int m0, int rows, float* c);
  void (*quantize)(const Inputs& in, int row, int first_block, int last_block);
  void (*norm)(const float* x, const float* w, int n, float eps, float* out);
  // Rows of 16, `stride` apart: gate becomes gelu(gate) x up.
  void (*gelu_times)(float* gate, const float* up, int64_t stride, int rows);
  void (*add)(float* x, const float* y, int n);
  void (*rotate)(float* x, const float* cos, const float* sin, int half);
  // Keys and values of one position and kv head into their page (at `page`, of that head).
  void (*store)(const float* k, const float* v, int head_dim, int at, int cache, uint8_t* page);
  void (*attend)(const Attend& a, int cache, float* scratch);
  void (*cap)(float* x, int n, float cap);
  int (*argmax)(const float* x, int n);
  double (*sum_exp)(const float* x, int n);
  int64_t (*read)(const uint8_t* data, int64_t bytes);
  // Puts back, in the caller's thread, what `panel` set up; null where that is nothing.
  void (*leave)();
};

// Counts calls from outside: what a thread set up for an earlier one may be gone.
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
  if (m.format == GM_INT6) return columns / kGroup * kSixBytes + blocks * kSixHead;
  return columns / kGroup * kQuantBytes + blocks * kBlockHead;
}

extern const Kernels kPortable;
#ifdef GEMMULE_X86
extern const Kernels kAvx2, kAvx512, kAmx;
#endif

}  // namespace gemmule
