// Products of inputs with matrices, shared out among threads.
#pragma once

#include "context.hpp"

namespace gemmule {

const Kernels& kernels();

// One matrix of several with the same inputs, and where its outputs go. With `up`, the output is
// gelu(matrix) x up.
struct Product {
  const gm_matrix* w;
  const gm_matrix* up;
  float* y;
  int64_t y_stride;
};

// Quantizes rows [0, rows) where `format` asks for it.
void quantize_inputs(gm_context& c, const Inputs& in, int rows, int format);

void multiply(gm_context& c, const Product* products, int count, const Inputs& in, int rows);

// Rows [first, last) of one matrix, for all inputs; y[m, 0] is row `first`. By one thread.
void multiply_part(ThreadBuffers& own, const gm_matrix& w, int64_t first_tile, int64_t last_tile,
                   const Inputs& in, int rows, float* y, int64_t y_stride);

}  // namespace gemmule
