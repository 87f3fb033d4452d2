#include "products.hpp"

#include <algorithm>
#include <cstring>

namespace gemmule {
namespace {

constexpr int kChunk = 128;                // rows of inputs whose sums stay in the L1 cache
constexpr int64_t kInputs = 640 * 1024;    // bytes of inputs that stay in the L2 cache
constexpr int64_t kGrain = 64 * 1024;      // bytes of weights that a thread takes at once,
constexpr int64_t kPanels = 8;             // or panels; each prefetches the next one's weights

bool is_quantized(int format) { return format != GM_F32 && format != GM_BF16; }

// Whether it pays to unpack a matrix into panels for this number of rows.
bool uses_panels(const Kernels& k, const gm_matrix& w, int rows) {
  return rows > k.gemv_max_rows && k.panel && is_quantized(w.format);
}

int64_t tiles_of(const gm_matrix& w) { return padded(w.rows, kTile) / kTile; }

int64_t bytes_of_tile(const gm_matrix& w) {
  if (is_quantized(w.format)) return tile_bytes(w);
  return static_cast<int64_t>(kTile) * w.columns * (w.format == GM_BF16 ? 2 : 4);
}

void copy_out(const gm_matrix& w, int64_t tile, const float* from, int64_t from_stride, int rows,
         float* y, int64_t y_stride) {
  const int64_t at = tile * kTile;
  const int64_t count = w.rows - at < kTile ? w.rows - at : kTile;
  for (int m = 0; m < rows; ++m)
    std::memcpy(y + m * y_stride + at, from + m * from_stride, count * sizeof(float));
}

void gemv_rows(const Kernels& k, const Product& p, int64_t tile, const Inputs& in, int rows) {
  alignas(64) float y[kGemvRows][kTile], up[kGemvRows][kTile];
  for (int m = 0; m < rows; m += kGemvRows) {
    const int n = rows - m < kGemvRows ? rows - m : kGemvRows;
    k.tile(*p.w, tile, in, m, n, y);
    if (p.up) {
      k.tile(*p.up, tile, in, m, n, up);
      k.gelu_times(y[0], up[0], kTile, n);
    }
    copy_out(*p.w, tile, y[0], kTile, n, p.y + m * p.y_stride, p.y_stride);
  }
}

// A panel is one tile of each of two matrices, or two tiles of one. `last` ends the tiles of this
// thread.
void gemm_rows(const Kernels& k, ThreadBuffers& own, const Product& p, int64_t tile, int64_t last,
               const Inputs& in, int row0, int rows) {
  const int64_t second = p.up || tile + 1 >= tiles_of(*p.w) ? tile : tile + 1;
  const gm_matrix* const of[2] = {p.w, p.up ? p.up : p.w};
  const int64_t at[2] = {tile, second};
  const int64_t tile_of_panel = static_cast<int64_t>(kTile) * in.columns * k.panel_bytes;
  uint8_t* bytes = own.bytes.get(2 * tile_of_panel);
  float* scales = own.scales.get(2 * kTile * in.blocks);
  Panel panel{};
  for (int i = 0; i < 2; ++i) {
    const gm_matrix& w = *of[i];
    const uint8_t* data = static_cast<const uint8_t*>(w.data) + at[i] * tile_bytes(w);
    const bool per_row = w.format == GM_INT8;  // its scales, not per superblock
    panel.format[i] = w.format;
    panel.tile[i] = k.prepare(w.format, data, in.columns, bytes + i * tile_of_panel,
                              scales + i * kTile);
    panel.scale[i] = per_row ? w.scales + at[i] * kTile : scales + i * kTile;
    panel.scale_step = per_row ? 0 : 2 * kTile;
  }
  for (int i = 0; i < 2 && second + 1 < last; ++i) {
    const gm_matrix& w = *of[i];
    const int64_t then = p.up ? tile + 1 : second + 1 + i;
    if (then >= last) break;
    panel.next[i] = static_cast<const uint8_t*>(w.data) + then * bytes_of_tile(w);
    panel.next_bytes = bytes_of_tile(w);
  }
  float* c = own.sums.get(kChunk * 2 * kTile);
  for (int m = 0; m < rows; m += kChunk) {
    const int n = rows - m < kChunk ? rows - m : kChunk;
    k.panel(panel, in, row0 + m, n, c);
    float* y = p.y + m * p.y_stride;
    if (p.up) k.gelu_times(c, c + kTile, 2 * kTile, n);
    copy_out(*p.w, tile, c, 32, n, y, p.y_stride);
    if (second != tile) copy_out(*p.w, second, c + kTile, 32, n, y, p.y_stride);
    panel.next_bytes = 0;
  }
}

}  // namespace

void quantize_inputs(gm_context& c, const Inputs& in, int rows, int format) {
  if (!is_quantized(format)) return;
  const Kernels& k = kernels();
  c.pool.run(static_cast<int64_t>(rows) * in.blocks, 8, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int row = static_cast<int>(i / in.blocks), first = static_cast<int>(i % in.blocks);
      const int64_t to = end - i < in.blocks - first ? end - i : in.blocks - first;
      k.quantize(in, row, first, first + static_cast<int>(to));
      i += to;
    }
  });
}

void multiply(gm_context& c, const Product* products, int count, const Inputs& in, int rows) {
  const Kernels& k = kernels();
  const Product& first = products[0];
  const bool panels = uses_panels(k, *first.w, rows);
  int64_t starts[4] = {};
  for (int i = 0; i < count; ++i) {
    const int64_t tiles = tiles_of(*products[i].w);
    starts[i + 1] = starts[i] + (panels && !products[i].up ? (tiles + 1) / 2 : tiles);
  }
  const int64_t bytes = bytes_of_tile(*first.w) * (first.up ? 2 : 1);
  const int64_t fair = starts[count] / (4 * c.pool.count());
  const int64_t grain = std::max<int64_t>(1, std::min(panels ? kPanels : kGrain / bytes, fair));
  // All weights are read once for each part of the rows, which stays in the cache.
  const int64_t part = panels ? std::max<int64_t>(kChunk, kInputs / in.q_stride / 64 * 64) : rows;
  for (int64_t row0 = 0; row0 < rows; row0 += part) {
    const int n = static_cast<int>(std::min(part, rows - row0));
    c.pool.run(starts[count], grain, [&](int thread, int64_t begin, int64_t end) {
      int which = 0;
      for (int64_t i = begin; i < end; ++i) {
        while (i >= starts[which + 1]) ++which;
        Product p = products[which];
        if (!panels) {
          gemv_rows(k, p, i - starts[which], in, rows);
          continue;
        }
        const int64_t tiles = p.up ? 1 : 2;
        p.y += row0 * p.y_stride;
        gemm_rows(k, c.of_thread[thread], p, (i - starts[which]) * tiles,
                  std::min(tiles_of(*p.w), (end - starts[which]) * tiles), in,
                  static_cast<int>(row0), n);
      }
    });
  }
}

void multiply_part(ThreadBuffers& own, const gm_matrix& w, int64_t first_tile, int64_t last_tile,
                   const Inputs& in, int rows, float* y, int64_t y_stride) {
  const Kernels& k = kernels();
  const Product p{&w, nullptr, y - first_tile * kTile, y_stride};
  const bool panels = uses_panels(k, w, rows);
  for (int64_t t = first_tile; t < last_tile; t += panels ? 2 : 1)
    if (panels)
      gemm_rows(k, own, p, t, last_tile, in, 0, rows);
    else
      gemv_rows(k, p, t, in, rows);
}

}  // namespace gemmule
