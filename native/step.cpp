// The forward pass of model/gemma.py over the tokens of a step.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <system_error>

#include "products.hpp"

namespace gemmule {
namespace {

constexpr int64_t kHeadTiles = 64;  // tiles of the head, 1024 token ids, that a thread does at once
constexpr int kHeadRows = 128;      // outputs whose logits are computed together

struct Step {
  gm_context& c;
  const gm_model& m;
  const gm_step& s;
  const Kernels& k = kernels();
  Inputs hidden, attn_out, ffn_hidden;
  float *x, *qkv, *projected, *cos, *sin;
  int32_t qkv_width;

  Step(gm_context& context, const gm_model& model, const gm_step& step)
      : c(context), m(model), s(step) {
    const int64_t tokens = s.tokens, half = m.head_dim / 2;
    hidden = c.hidden.get(tokens, m.hidden);
    attn_out = c.attn_out.get(tokens, m.heads * m.head_dim);
    ffn_hidden = c.ffn_hidden.get(tokens, m.ffn);
    qkv_width = (m.heads + 2 * m.kv_heads) * m.head_dim;
    x = c.residual.get(tokens * m.hidden);
    qkv = c.qkv.get(tokens * qkv_width);
    projected = c.projected.get(tokens * m.hidden);
    cos = c.cos.get(tokens * half);
    sin = c.sin.get(tokens * half);
    clear_padding(hidden, m.hidden);
    clear_padding(attn_out, m.heads * m.head_dim);
    clear_padding(ffn_hidden, m.ffn);
  }

  void clear_padding(const Inputs& in, int columns) {
    if (columns == in.columns) return;
    for (int t = 0; t < s.tokens; ++t)
      std::memset(row(in, t) + columns, 0, sizeof(float) * (in.columns - columns));
  }

  static float* row(const Inputs& in, int64_t t) {
    return const_cast<float*>(in.x) + t * in.x_stride;
  }

  template <class Work>
  void for_tokens(const Work& work) {
    c.pool.run(s.tokens, 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) work(static_cast<int>(t));
    });
  }

  int span_of(int token) const {
    return static_cast<int>(std::upper_bound(s.span_first, s.span_first + s.spans + 1, token) -
                            s.span_first) -
           1;
  }

  int position(int token, int span) const {
    return s.span_start[span] + token - s.span_first[span];
  }

  // Embeds the tokens and computes their rotary angles.
  void embed() {
    const int half = m.head_dim / 2;
    for_tokens([&](int t) {
      float* to = x + static_cast<int64_t>(t) * m.hidden;
      gm_row(&m.embed, s.token[t], to);
      for (int i = 0; i < m.hidden; ++i) to[i] *= m.embed_scale;
      const float at = static_cast<float>(position(t, span_of(t)));
      for (int i = 0; i < half; ++i) {
        const float angle = at * m.inv_freq[i];
        cos[static_cast<int64_t>(t) * half + i] = std::cos(angle);
        sin[static_cast<int64_t>(t) * half + i] = std::sin(angle);
      }
    });
  }

  void read_into_hidden(const float* norm, int format) {
    for_tokens([&](int t) {
      k.norm(x + static_cast<int64_t>(t) * m.hidden, norm, m.hidden, m.eps, row(hidden, t));
    });
    quantize_inputs(c, hidden, s.tokens, format);
  }

  // x += norm(projected)
  void add_projected(const float* norm) {
    for_tokens([&](int t) {
      float* from = projected + static_cast<int64_t>(t) * m.hidden;
      k.norm(from, norm, m.hidden, m.eps, from);
      k.add(x + static_cast<int64_t>(t) * m.hidden, from, m.hidden);
    });
  }

  void layer(const gm_layer& l) {
    read_into_hidden(l.norms[0], l.q.format);
    const int64_t q_width = static_cast<int64_t>(m.heads) * m.head_dim;
    const int64_t k_width = static_cast<int64_t>(m.kv_heads) * m.head_dim;
    const Product into_qkv[3] = {{&l.q, nullptr, qkv, qkv_width},
                                 {&l.k, nullptr, qkv + q_width, qkv_width},
                                 {&l.v, nullptr, qkv + q_width + k_width, qkv_width}};
    multiply(c, into_qkv, 3, hidden, s.tokens);
    rotate_and_store(l);
    attend(l);
    quantize_inputs(c, attn_out, s.tokens, l.o.format);
    const Product out{&l.o, nullptr, projected, m.hidden};
    multiply(c, &out, 1, attn_out, s.tokens);
    add_projected(l.norms[1]);

    read_into_hidden(l.norms[2], l.gate.format);
    const Product gated{&l.gate, &l.up, row(ffn_hidden, 0), ffn_hidden.x_stride};
    multiply(c, &gated, 1, hidden, s.tokens);
    quantize_inputs(c, ffn_hidden, s.tokens, l.down.format);
    const Product down{&l.down, nullptr, projected, m.hidden};
    multiply(c, &down, 1, ffn_hidden, s.tokens);
    add_projected(l.norms[3]);
  }

  const int32_t* pages(const gm_layer& l, int span) const {
    return (l.window ? s.local_pages : s.global_pages) + s.span_pages[span];
  }

  // Offset of the keys and values of a kv head in a page.
  int64_t head_offset(const gm_layer& l, int head) const {
    return (static_cast<int64_t>(l.slot) * m.kv_heads + head) * head_bytes(m.head_dim, m.cache);
  }

  void rotate_and_store(const gm_layer& l) {
    const int half = m.head_dim / 2;
    for_tokens([&](int t) {
      float* of_token = qkv + static_cast<int64_t>(t) * qkv_width;
      const int64_t angles = static_cast<int64_t>(t) * half;
      for (int h = 0; h < m.heads + m.kv_heads; ++h)
        k.rotate(of_token + static_cast<int64_t>(h) * m.head_dim, cos + angles, sin + angles, half);
      const int span = span_of(t), at = position(t, span);
      uint8_t* page = s.pool + pages(l, span)[at / GM_PAGE] * s.page_bytes;
      for (int h = 0; h < m.kv_heads; ++h) {
        const float* key = of_token + static_cast<int64_t>(m.heads + h) * m.head_dim;
        k.store(key, key + static_cast<int64_t>(m.kv_heads) * m.head_dim, m.head_dim, at % GM_PAGE,
                m.cache, page + head_offset(l, h));
      }
    });
  }

  // Work items are a span's query rows of one kv head, kRows at a time; within a token, the rows of
  // its heads follow one another.
  void attend(const gm_layer& l) {
    const int group = m.heads / m.kv_heads;
    const int64_t scratch = kRows * padded(m.head_dim, 16);
    int64_t items = 0;
    for (int span = 0; span < s.spans; ++span) items += parts(span, group);
    c.pool.run(items * m.kv_heads, 1, [&](int thread, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int head = static_cast<int>(i % m.kv_heads);
        int64_t part = i / m.kv_heads;
        int span = 0;
        while (part >= parts(span, group)) part -= parts(span++, group);
        const int rows = (s.span_first[span + 1] - s.span_first[span]) * group;
        const int first = static_cast<int>(part) * kRows;
        Attend a;
        a.rows = std::min(kRows, rows - first);
        for (int r = 0; r < a.rows; ++r) {
          const int token = s.span_first[span] + (first + r) / group;
          const int64_t h = static_cast<int64_t>(head) * group + (first + r) % group;
          a.q[r] = qkv + static_cast<int64_t>(token) * qkv_width + h * m.head_dim;
          a.out[r] = row(attn_out, token) + h * m.head_dim;
          a.position[r] = position(token, span);
        }
        a.head_dim = m.head_dim;
        a.window = l.window;
        a.scale = m.attention_scale;
        a.cap = m.attention_cap;
        a.pool = s.pool + head_offset(l, head);
        a.page_bytes = s.page_bytes;
        a.pages = pages(l, span);
        k.attend(a, m.cache, c.of_thread[thread].scratch.get(scratch));
      }
    });
  }

  int64_t parts(int span, int group) const {
    const int64_t rows = static_cast<int64_t>(s.span_first[span + 1] - s.span_first[span]) * group;
    return (rows + kRows - 1) / kRows;
  }

  void predict() {
    for (int first = 0; first < s.outputs; first += kHeadRows)
      predict_rows(first, std::min(kHeadRows, s.outputs - first));
  }

  // Computes the head in parts of the vocabulary; of each part only the requested results are kept.
  void predict_rows(int first, int rows) {
    const Inputs in = c.gemm_input.get(rows, m.hidden);
    c.pool.run(rows, 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* to = row(in, r);
        std::memset(to + m.hidden, 0, sizeof(float) * (in.columns - m.hidden));
        k.norm(x + static_cast<int64_t>(s.output_token[first + r]) * m.hidden, m.norm, m.hidden,
               m.eps, to);
      }
    });
    quantize_inputs(c, in, rows, m.embed.format);

    const int64_t tiles = padded(m.vocab, kTile) / kTile;
    const int64_t parts = (tiles + kHeadTiles - 1) / kHeadTiles;
    int top = 0;
    for (int r = 0; r < rows; ++r) top = std::max(top, s.output_top[first + r]);
    int32_t* ids = c.top_ids.get(parts * rows * top);
    float* logits = c.top_logits.get(parts * rows * top);
    double* z = c.z.get(parts * rows);
    c.pool.run(parts, 1, [&](int thread, int64_t begin, int64_t end) {
      ThreadBuffers& own = c.of_thread[thread];
      const int64_t width = kHeadTiles * kTile;
      float* y = own.scratch.get(rows * width);
      for (int64_t p = begin; p < end; ++p) {
        const int64_t tile = p * kHeadTiles, first_id = tile * kTile;
        const int64_t last = std::min(tiles, tile + kHeadTiles);
        const int count = static_cast<int>(std::min(width, m.vocab - first_id));
        multiply_part(own, m.embed, tile, last, in, rows, y, width);
        for (int r = 0; r < rows; ++r)
          collect(first + r, y + r * width, static_cast<int32_t>(first_id), count,
                  ids + (p * rows + r) * top, logits + (p * rows + r) * top, z + p * rows + r);
      }
    });
    for (int r = 0; r < rows; ++r) merge(first + r, r, rows, parts, top, ids, logits, z);
  }

  // Keeps the requested results of the logits of token ids [first_id, first_id + count).
  void collect(int output, float* y, int32_t first_id, int count, int32_t* ids, float* logits,
               double* z) {
    if (m.final_cap > 0.0f) k.cap(y, count, m.final_cap);
    if (s.output_row[output] >= 0)
      std::memcpy(s.logits + static_cast<int64_t>(s.output_row[output]) * m.vocab + first_id, y,
                  sizeof(float) * count);
    const int32_t target = s.output_target[output];
    if (target >= first_id && target < first_id + count)
      s.target_logit[output] = y[target - first_id];
    const int top = s.output_top[output];
    const uint32_t* mask = s.output_mask ? s.output_mask[output] : nullptr;
    if (top && mask) {
      collect_allowed(y, mask + first_id / 32, first_id, count, top, ids, logits);
    } else if (top == 1) {
      const int at = k.argmax(y, count);
      ids[0] = first_id + at;
      logits[0] = y[at];
    } else if (top > 1) {
      collect_top(y, first_id, count, top, ids, logits);
    }
    // Without a safe cap, the part's largest logit is subtracted before exponentiating.
    if (s.output_z[output]) {
      if (m.final_cap > 0.0f && m.final_cap <= kMaxSafeCap) {
        *z = std::log(k.sum_exp(y, count));
      } else {
        const float largest = y[k.argmax(y, count)];
        for (int i = 0; i < count; ++i) y[i] -= largest;
        *z = std::log(k.sum_exp(y, count)) + largest;
      }
    }
  }

  // The most likely tokens so far, at most `top`, in descending order; ties go to the one that came
  // first.
  struct Best {
    int top;
    int32_t* ids;
    float* logits;
    int size = 0;

    bool takes(float logit) const { return size < top || logit > logits[top - 1]; }

    void insert(int32_t id, float logit) {
      int at = size < top ? size++ : top - 1;
      for (; at > 0 && logit > logits[at - 1]; --at) {
        ids[at] = ids[at - 1];
        logits[at] = logits[at - 1];
      }
      ids[at] = id;
      logits[at] = logit;
    }

    // Missing entries get id -1.
    void finish() {
      for (; size < top; ++size) ids[size] = -1;
    }
  };

  // The `top` most likely of `count` tokens; ties go to the lower id.
  static void collect_top(const float* y, int32_t first_id, int count, int top, int32_t* ids,
                          float* logits) {
    Best best{top, ids, logits};
    for (int i = 0; i < count; ++i)
      if (best.takes(y[i])) best.insert(first_id + i, y[i]);
    best.finish();
  }

  // The same for tokens whose bit is set; the mask begins with the bit of `first_id`.
  static void collect_allowed(const float* y, const uint32_t* mask, int32_t first_id, int count,
                              int top, int32_t* ids, float* logits) {
    Best best{top, ids, logits};
    for (int first = 0; first < count; first += 32) {
      uint32_t bits = mask[first / 32];
      const int left = count - first;
      if (left < 32) bits &= (1u << left) - 1;
      if (bits == ~0u) {  // most words of a mask that forbids little
        for (int i = first; i < first + 32; ++i)
          if (best.takes(y[i])) best.insert(first_id + i, y[i]);
        continue;
      }
      for (; bits; bits &= bits - 1) {
        const int i = first + std::countr_zero(bits);
        if (best.takes(y[i])) best.insert(first_id + i, y[i]);
      }
    }
    best.finish();
  }

  // Merges the results of all parts into the step's outputs.
  void merge(int output, int r, int rows, int64_t parts, int top, const int32_t* ids,
             const float* logits, const double* z) {
    const int limit = s.output_top[output];
    Best best{limit, s.top_ids + static_cast<int64_t>(output) * s.top_stride,
              s.top_logits + static_cast<int64_t>(output) * s.top_stride};
    for (int64_t p = 0; limit && p < parts; ++p) {
      const int32_t* part_ids = ids + (p * rows + r) * top;
      const float* part = logits + (p * rows + r) * top;
      for (int i = 0; i < limit && part_ids[i] >= 0 && best.takes(part[i]); ++i)
        best.insert(part_ids[i], part[i]);
    }
    best.finish();
    if (!s.output_z[output]) return;
    double largest = z[r];
    for (int64_t p = 1; p < parts; ++p) largest = std::max(largest, z[p * rows + r]);
    double total = 0.0;
    for (int64_t p = 0; p < parts; ++p) total += std::exp(z[p * rows + r] - largest);
    s.log_z[output] = static_cast<float>(std::log(total) + largest);
  }

  void run() {
    embed();
    for (int i = 0; i < m.layers; ++i) layer(m.layer[i]);
    predict();
  }
};

float bf16(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0] | p[1] << 8) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Dequantizes a row of an int4 or int6 matrix.
void superblock_row(const gm_matrix& w, int64_t tile, int64_t r, float* out) {
  const bool six = w.format == GM_INT6;
  const int group_bytes = six ? kInt6GroupBytes : kInt4GroupBytes, offset = six ? 32 : 8;
  const uint8_t* block = static_cast<const uint8_t*>(w.data) + tile * tile_bytes(w);
  const int columns = static_cast<int>(padded(w.columns, 64));
  for (int begin = 0; begin < w.columns; begin += kBlock) {
    const int groups = std::min(kBlock, columns - begin) / kGroup;
    const uint8_t* head = block + groups * group_bytes;
    const uint8_t* scales = six ? head : head + 64;
    const float scale = bf16(scales + 2 * r);
    const int end = std::min(begin + kBlock, w.columns);
    for (int k = begin; k < end; ++k) {
      const int g = (k - begin) / kGroup, i = k % kGroup / 4;
      const uint8_t* group = block + g * group_bytes + r * 4 + k % 4;
      int u = group[i % 4 * 64] >> (i / 4 * 4) & 15;
      if (six) u += (group[256 + i / 4 * 64] >> (i % 4 * 2) & 3) * 16;
      const int nibble = g / 2 + g % 2 * 4;
      const int mult = six ? 1 : head[r * 4 + nibble / 2] >> (nibble % 2 * 4) & 15;
      out[k] = static_cast<float>((u - offset) * mult) * scale;
    }
    block = scales + 32;
  }
}

// In a fork of the process that made the context, constructs it again where it is. The old one is not
// destroyed: its threads are not here, and another thread may have been in the middle of a call, with
// the lock held and buffers half grown. Its buffers are lost to the fork, which shares them with its
// parent until one of the two writes to them.
void renew_if_forked(gm_context* context) {
  std::lock_guard<std::mutex> lock(renewing);
  if (context->pool.forked()) new (context) gm_context(context->pool.count());
}

// Runs `work` with the threads awake, one call at a time; 0, -1 if memory ran out, or -2 if the
// threads cannot be started.
template <class Work>
int32_t call(gm_context* context, const Work& work) {
  int32_t result = 0;
  try {
    renew_if_forked(context);
    std::lock_guard<std::mutex> lock(context->busy);
    calls.fetch_add(1);
    context->pool.wake();
    try {
      work();
    } catch (const std::bad_alloc&) {
      result = -1;
    }
    context->pool.rest();
    if (kernels().release_tiles) kernels().release_tiles();
  } catch (const std::bad_alloc&) {
    result = -1;
  } catch (const std::system_error&) {
    result = -2;
  }
  return result;
}

}  // namespace
}  // namespace gemmule

using namespace gemmule;

extern "C" {

#define GM_PUBLIC __attribute__((visibility("default")))

GM_PUBLIC int64_t gm_page_bytes(const gm_model* model) {
  const int64_t layers = (model->layers + 1) / 2;
  return padded(layers * model->kv_heads * head_bytes(model->head_dim, model->cache), 64);
}

GM_PUBLIC gm_context* gm_context_new(int32_t threads) {
  std::unique_ptr<gm_context> context;
  try {
    context = std::make_unique<gm_context>(threads);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  // Starts the threads, to fail here if it must.
  return call(context.get(), [] {}) == 0 ? context.release() : nullptr;
}

GM_PUBLIC void gm_context_free(gm_context* context) {
  if (!context->pool.forked()) delete context;  // else it is the parent's
}

GM_PUBLIC int32_t gm_run(gm_context* context, const gm_model* model, const gm_step* step) {
  return call(context, [&] { Step(*context, *model, *step).run(); });
}

GM_PUBLIC int32_t gm_linear(gm_context* context, const gm_matrix* matrix, const float* x, int32_t m,
                            float* y) {
  return call(context, [&] {
    const Inputs in = context->gemm_input.get(m, matrix->columns);
    for (int i = 0; i < m; ++i) {
      float* to = const_cast<float*>(in.x) + i * in.x_stride;
      std::memcpy(to, x + static_cast<int64_t>(i) * matrix->columns,
                  sizeof(float) * matrix->columns);
      std::memset(to + matrix->columns, 0, sizeof(float) * (in.columns - matrix->columns));
    }
    quantize_inputs(*context, in, m, matrix->format);
    const Product product{matrix, nullptr, y, matrix->rows};
    multiply(*context, &product, 1, in, m);
  });
}

GM_PUBLIC void gm_row(const gm_matrix* w, int32_t row, float* out) {
  const int64_t tile = row / kTile, r = row % kTile;
  const int64_t at = static_cast<int64_t>(row) * w->columns;
  if (w->format == GM_F32) {
    std::memcpy(out, static_cast<const float*>(w->data) + at, sizeof(float) * w->columns);
  } else if (w->format == GM_BF16) {
    const uint8_t* from = static_cast<const uint8_t*>(w->data) + at * 2;
    for (int k = 0; k < w->columns; ++k) out[k] = bf16(from + 2 * k);
  } else if (w->format == GM_INT8) {
    const uint8_t* from = static_cast<const uint8_t*>(w->data) + tile * tile_bytes(*w) + r * 4;
    for (int k = 0; k < w->columns; ++k)
      out[k] = static_cast<float>(from[k / 4 * 64 + k % 4] - 128) * w->scales[row];
  } else {
    superblock_row(*w, tile, r, out);
  }
}

GM_PUBLIC double gm_read_speed(gm_context* context, const void* data, int64_t bytes,
                               int32_t rounds) {
  constexpr int64_t kPart = 1 << 22;
  std::chrono::duration<double> taken{};
  const int32_t result = call(context, [&] {
    std::vector<int64_t> sums(context->of_thread.size() * 8);
    const auto began = std::chrono::steady_clock::now();
    for (int i = 0; i < rounds; ++i)
      context->pool.run(
          (bytes + kPart - 1) / kPart, 4, [&](int thread, int64_t begin, int64_t end) {
            const int64_t last = std::min(end * kPart, bytes);
            sums[thread * 8] += kernels().read(static_cast<const uint8_t*>(data) + begin * kPart,
                                               last - begin * kPart);
          });
    taken = std::chrono::steady_clock::now() - began;
    volatile int64_t seen = sums[0];  // keeps the compiler from dropping the reads
    (void)seen;
  });
  return result == 0 ? static_cast<double>(bytes) * rounds / taken.count() : result;
}

}  // extern "C"
