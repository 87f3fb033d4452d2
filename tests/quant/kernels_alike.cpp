// Compares the results of all instruction sets here with the portable ones', bit for bit, without
// Python: for processors that are emulated. Prints the names of the sets and a hash of the products.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gemmule.h"

namespace {

// Whether the portable kernels have a fused multiply-add as the others do, so that floats agree too.
#ifdef __aarch64__
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

std::mt19937 generator;
int failures = 0;

uint32_t bits() { return generator(); }
float normal() {
  float total = 0;
  for (int i = 0; i < 4; ++i) total += static_cast<float>(bits() % 65536) / 65536.0f - 0.5f;
  return total;
}
int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

uint16_t bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>(u >> 16);
}

// A matrix of random content, or of one byte everywhere.
struct Matrix {
  gm_matrix c;
  std::vector<uint8_t> data;
  std::vector<float> scales;

  Matrix(int format, int rows, int columns, int fill = -1) {
    const int64_t tiles = padded(rows, 16) / 16, wide = padded(columns, 64);
    const int64_t blocks = padded(wide, 256) / 256, groups = wide / 32;
    if (format == GM_F32) {
      data.resize(4ll * rows * columns);
      for (int i = 0; i < rows * columns; ++i) put(4ll * i, normal());
    } else if (format == GM_BF16) {
      data.resize(2ll * rows * columns);
      for (int i = 0; i < rows * columns; ++i) put(2ll * i, bf16(normal()));
    } else if (format == GM_INT8) {
      data.resize(tiles * 16 * wide);
      for (auto& b : data) b = static_cast<uint8_t>(fill < 0 ? 1 + bits() % 255 : fill);
      scales.resize(tiles * 16);
      for (auto& s : scales) s = std::fabs(normal()) * 0.01f;
    } else {
      const int64_t group = format == GM_INT4 ? 256 : 384, head = format == GM_INT4 ? 96 : 32;
      const int64_t bytes = groups * group + blocks * head;
      data.resize(tiles * bytes);
      for (auto& b : data) b = static_cast<uint8_t>(fill < 0 ? bits() : fill);
      for (int64_t t = 0; t < tiles; ++t) {
        int64_t at = t * bytes;
        for (int64_t b = 0; b < blocks; ++b) {
          at += (groups - b * 8 < 8 ? groups - b * 8 : 8) * group + head - 32;
          for (int r = 0; r < 16; ++r, at += 2) put(at, bf16(std::fabs(normal()) * 0.01f));
        }
      }
    }
    c = {data.data(), scales.empty() ? nullptr : scales.data(), format, rows, columns, 0};
  }

  template <class T>
  void put(int64_t at, T value) {
    std::memcpy(data.data() + at, &value, sizeof value);
  }
};

uint64_t hash = 14695981039346656037ull;
void mix(const std::vector<float>& values) {
  for (float x : values) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    hash = (hash ^ u) * 1099511628211ull;
  }
}

// Runs `work` on the portable kernels and on all others here, and compares what it returns.
template <class Work>
std::vector<float> everywhere(const std::vector<std::string>& sets, const std::string& what,
                              const Work& work) {
  gm_set_isa("portable");
  const std::vector<float> expected = work();
  for (const auto& name : sets) {
    gm_set_isa(name.c_str());
    const std::vector<float> y = work();
    if (std::memcmp(y.data(), expected.data(), y.size() * 4)) {
      std::printf("%s differs: %s\n", name.c_str(), what.c_str());
      ++failures;
    }
  }
  return expected;
}

void products(const std::vector<std::string>& sets, gm_context* context) {
  const int shapes[][2] = {{48, 256}, {37, 300}, {1, 1}, {100, 64}, {33, 1000}, {16, 2304}};
  for (int format : {GM_INT4, GM_INT6, GM_INT8, GM_F32, GM_BF16})
    for (const auto& [rows, columns] : shapes) {
      if (format < GM_INT4 && !kFused) continue;
      generator.seed(columns);  // the same cases on all processors
      const Matrix w(format, rows, columns);
      for (int tokens : {1, 2, 3, 5, 8, 9, 17, 39}) {
        std::vector<float> x(tokens * columns);
        for (auto& v : x) v = normal() * (bits() % 500 ? 1.0f : 30.0f);
        if (tokens > 2) std::fill_n(x.begin() + columns, columns, 0.0f);
        const auto y = everywhere(sets, "product " + std::to_string(format) + " " +
                                            std::to_string(rows) + "x" + std::to_string(columns) +
                                            " " + std::to_string(tokens),
                                  [&, rows = rows] {
                                    std::vector<float> out(tokens * rows);
                                    gm_linear(context, &w.c, x.data(), tokens, out.data());
                                    return out;
                                  });
        if (format >= GM_INT4) mix(y);
      }
    }
  // Sums as large as they get: all weights and inputs at their limits.
  for (int format : {GM_INT4, GM_INT6, GM_INT8})
    for (int fill : {0, 1, 255}) {
      if (format == GM_INT8 && fill == 0) continue;
      generator.seed(fill);
      const Matrix w(format, 16, 9216, fill);
      for (float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(9 * 9216, sign);
        mix(everywhere(sets, "limits " + std::to_string(format), [&] {
          std::vector<float> out(9 * 16);
          gm_linear(context, &w.c, x.data(), 9, out.data());
          return out;
        }));
      }
    }
}

// A model of two layers, local and global; two sequences whose tokens come in two steps.
void steps(const std::vector<std::string>& sets, gm_context* context, int format, int cache,
           float cap) {
  constexpr int kHidden = 128, kFfn = 320, kHeads = 4, kKv = 2, kHead = 24, kVocab = 300;
  std::vector<Matrix> w;
  const auto matrix = [&](int rows, int columns) { return w.emplace_back(format, rows, columns).c; };
  std::vector<std::vector<float>> floats;
  const auto vector = [&](int n, float scale) {
    auto& v = floats.emplace_back(n);
    for (auto& x : v) x = normal() * scale;
    return static_cast<const float*>(v.data());
  };
  gm_layer layers[2] = {};
  for (int i = 0; i < 2; ++i) {
    gm_layer& l = layers[i];
    l.q = matrix(kHeads * kHead, kHidden);
    l.k = matrix(kKv * kHead, kHidden);
    l.v = matrix(kKv * kHead, kHidden);
    l.o = matrix(kHidden, kHeads * kHead);
    l.gate = matrix(kFfn, kHidden);
    l.up = matrix(kFfn, kHidden);
    l.down = matrix(kHidden, kFfn);
    for (auto& norm : l.norms) norm = vector(kHidden, 0.2f);
    l.window = i == 0 ? 40 : 0;
    l.slot = 0;
  }
  gm_model m{};
  m.layers = 2, m.hidden = kHidden, m.ffn = kFfn, m.heads = kHeads, m.kv_heads = kKv;
  m.head_dim = kHead, m.vocab = kVocab, m.cache = cache, m.eps = 1e-6f, m.attention_scale = 0.2f;
  m.attention_cap = cap, m.final_cap = cap / 2, m.embed_scale = 11.0f;
  m.embed = matrix(kVocab, kHidden);
  m.norm = vector(kHidden, 0.2f);
  m.inv_freq = vector(kHead / 2, 1.0f);
  m.layer = layers;
  const int64_t page = gm_page_bytes(&m);
  everywhere(sets, "step of " + std::to_string(format) + ", cache " + std::to_string(cache), [&] {
    std::vector<uint8_t> memory(16 * page + 64);
    auto* pool = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) &
                                            ~static_cast<uintptr_t>(63));
    const int32_t global_pages[] = {0, 1, 2, 6, 7}, local_pages[] = {3, 4, 5, 8, 9};
    const int64_t span_pages[] = {0, 3};
    std::vector<float> results;
    for (int part = 0; part < 2; ++part) {
      const int first = part ? 1 : 70, second = part ? 3 : 33;
      const int32_t span_first[] = {0, first, first + second}, span_start[] = {part * 70, part * 33};
      std::vector<int32_t> token(first + second);
      for (size_t i = 0; i < token.size(); ++i) token[i] = static_cast<int32_t>((i * 37 + 5) % kVocab);
      const int32_t output_token[] = {first - 1, first + second - 1}, top[] = {4, 4};
      const int32_t target[] = {7, 9}, z[] = {1, 1}, row[] = {0, 1};
      int32_t ids[8];
      float top_logits[8], target_logit[2], log_z[2];
      std::vector<float> logits(2 * kVocab);
      gm_step s{};
      s.tokens = first + second, s.spans = 2, s.outputs = 2;
      s.token = token.data(), s.span_first = span_first, s.span_start = span_start;
      s.span_pages = span_pages, s.global_pages = global_pages, s.local_pages = local_pages;
      s.pool = pool, s.page_bytes = page;
      s.output_token = output_token, s.output_top = top, s.output_target = target, s.output_z = z;
      s.output_row = row, s.top_stride = 4, s.top_ids = ids, s.top_logits = top_logits;
      s.target_logit = target_logit, s.log_z = log_z, s.logits = logits.data();
      if (gm_run(context, &m, &s) != 0) ++failures;
      results.insert(results.end(), logits.begin(), logits.end());
      results.insert(results.end(), top_logits, top_logits + 8);
      results.insert(results.end(), log_z, log_z + 2);
      for (int32_t id : ids) results.push_back(static_cast<float>(id));
    }
    for (float x : results)
      if (!std::isfinite(x)) {
        std::printf("a result is not finite\n");
        ++failures;
        break;
      }
    return results;
  });
}

}  // namespace

int main() {
  std::vector<std::string> sets;
  for (const char* name : {"avx2", "avx_vnni", "avx512vnni", "amx", "dotprod", "i8mm"})
    if (gm_set_isa(name) == 0) sets.push_back(name);
  std::printf("sets:");
  for (const auto& name : sets) std::printf(" %s", name.c_str());
  gm_context* context = gm_context_new(2);
  products(sets, context);
  for (int cache : {GM_CACHE_F16, GM_CACHE_INT8, GM_CACHE_F32})
    for (float cap : {50.0f, 0.0f})
      if (kFused) steps(sets, context, cap > 0 ? GM_INT4 : GM_INT8, cache, cap);
  gm_context_free(context);
  std::printf("\nhash: %016llx\nfailures: %d\n", static_cast<unsigned long long>(hash), failures);
  return failures != 0;
}
