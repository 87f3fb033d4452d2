// Products of inputs with matrices, distributed over threads.
#pragma once

#include "context.hpp"

namespace gemmule {

const Kernels& kernels();

// One of several matrices that share their inputs, and the place of its outputs. With `up`, the
// output is gelu(matrix) x up.
struct Product {
  const gm_matrix* w;
  const gm_matrix* up;
  float* y;
  int64_t y_stride;
};

// Quantizes rows [0, rows) if `format` needs it.
void quantize_inputs(gm_context& c, const Inputs& in, int rows, int format);

void multiply(gm_context& c, const Product* products, int count, const Inputs& in, int rows);

// Tiles [first_tile, last_tile) of one matrix times all inputs, in the calling thread; y[m, 0] is
// the first row of `first_tile`.
void multiply_part(ThreadBuffers& own, const gm_matrix& w, int64_t first_tile, int64_t last_tile,
                   const Inputs& in, int rows, float* y, int64_t y_stride);

}  // namespace gemmule
