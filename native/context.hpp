// State that lives across calls: threads, and buffers that grow as needed.
#pragma once

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.hpp"
#include "threads.hpp"

namespace gemmule {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // At least `count` elements, aligned to 64 bytes; growing discards the content.
  T* get(int64_t count) {
    const int64_t bytes = padded(count * static_cast<int64_t>(sizeof(T)) + 64, 64);
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = 0;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Rows of inputs, and buffers for their int8 form.
struct InputBuffer {
  Buffer<float> x, scale;
  Buffer<int8_t> q;
  Buffer<int32_t> group_sums, block_sums;

  Inputs get(int64_t rows, int32_t columns) {
    Inputs in{};
    in.columns = static_cast<int32_t>(padded(columns, 64));
    in.blocks = static_cast<int32_t>(padded(in.columns, kBlock) / kBlock);
    in.groups = in.columns / kGroup;
    in.x_stride = in.columns;
    // Rows that lie a multiple of 4 KiB apart would compete for the same cache sets.
    in.q_stride = in.columns + 64;
    in.x = x.get(rows * in.x_stride);
    in.q = q.get(padded(rows, 32) * in.q_stride);
    in.scale = scale.get(rows * in.blocks);
    in.group_sums = group_sums.get(rows * in.groups);
    in.block_sums = block_sums.get(rows * in.blocks);
    return in;
  }
};

struct ThreadBuffers {
  Buffer<uint8_t> bytes;
  Buffer<float> scales, sums, scratch;
};

}  // namespace gemmule

struct gm_context {
  explicit gm_context(int threads) : pool(threads), of_thread(threads) {}

  std::mutex busy;  // held by a call
  gemmule::Threads pool;
  std::vector<gemmule::ThreadBuffers> of_thread;
  gemmule::InputBuffer hidden, attn_out, ffn_hidden, gemm_input;
  gemmule::Buffer<float> residual, qkv, projected, cos, sin, head, top_logits, picked;
  gemmule::Buffer<double> z;
  gemmule::Buffer<int32_t> top_ids;
};
