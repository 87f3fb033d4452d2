// Kernels that are written once for all instruction sets: norms, attention, plain float products.
// Included by isa_*.cpp, inside the namespace of one instruction set.

inline void quantize(const Inputs& in, int row, int first, int last) {
  const float* x = in.x + row * in.x_stride;
  int8_t* q = in.q + row * in.q_stride;
  for (int block = first; block < last; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    v16 tops = splat(0.0f);
    for (int i = begin; i < end; i += 16) tops = maximum(tops, magnitude(load(x + i)));
    const float top = largest(tops);
    // Numbers so small that their inverse overflows are taken as zeros.
    const float inverse = top > 4e-37f ? 127.0f / top : 0.0f;
    in.scale[row * in.blocks + block] = top / 127.0f;
    int32_t block_sum = 0;
    for (int group = begin; group < end; group += kGroup) {
      i16 sums = i16{};
      for (int i = group; i < group + kGroup; i += 16) {
        const i16 n = nearest(load(x + i) * inverse);
        sums += n;
        *reinterpret_cast<b16u*>(q + i) = __builtin_convertvector(n, b16);
      }
      const int32_t total = sum(sums);
      in.group_sums[row * in.groups + group / kGroup] = -8 * total;
      block_sum += total;
    }
    in.block_sums[row * in.blocks + block] = -128 * block_sum;
  }
}

inline void norm(const float* x, const float* w, int n, float eps, float* out) {
  v16 squares = splat(0.0f);
  int i = 0;
  for (; i + 16 <= n; i += 16) squares = fma(load(x + i), load(x + i), squares);
  float total = sum(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float r = 1.0f / std::sqrt(total / static_cast<float>(n) + eps);
  for (i = 0; i + 16 <= n; i += 16) save(out + i, load(x + i) * r * (load(w + i) + 1.0f));
  for (; i < n; ++i) out[i] = x[i] * r * (w[i] + 1.0f);
}

inline v16 gelu(v16 x) {
  const v16 inner = fma(x * x * 0.044715f, x, x) * 1.5957691216f;  // 2 sqrt(2 / pi)
  return x / (exponential(-inner) + 1.0f);
}

// Rows of 16, `stride` apart: gate becomes gelu(gate) x up.
inline void gelu_times(float* gate, const float* up, int64_t stride, int rows) {
  for (int m = 0; m < rows; ++m, gate += stride, up += stride)
    save(gate, gelu(load(gate)) * load(up));
}

inline void add(float* x, const float* y, int n) {
  for (int i = 0; i < n; ++i) x[i] += y[i];
}

inline void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

inline void cap(float* x, int n, float cap) {
  const float inverse = 1.0f / cap;
  int i = 0;
  for (; i + 16 <= n; i += 16) save(x + i, soft_cap(load(x + i), cap, inverse));
  float rest[16] = {};
  if (i < n) {
    std::memcpy(rest, x + i, (n - i) * 4);
    save(rest, soft_cap(load(rest), cap, inverse));
    std::memcpy(x + i, rest, (n - i) * 4);
  }
}

inline int argmax(const float* x, int n) {
  float top = x[0];
  int at = 0;
  int i = 0;
  v16 best = splat(-INFINITY);
  for (; i + 16 <= n; i += 16) best = maximum(best, load(x + i));
  top = i ? largest(best) : x[0];
  for (int j = i; j < n; ++j) top = x[j] > top ? x[j] : top;
  while (at < n - 1 && x[at] != top) ++at;
  return at;
}

// Logits lie within the cap, or the caller has taken the largest off: no exponential overflows.
inline double sum_exp(const float* x, int n) {
  double total = 0.0;
  int i = 0;
  while (i + 16 <= n) {
    v16 part = splat(0.0f);
    for (int k = 0; k < 16 && i + 16 <= n; ++k, i += 16) part += exponential(load(x + i));
    total += sum(part);
  }
  if (i < n) {
    float rest[16];
    save(rest, splat(-INFINITY));
    std::memcpy(rest, x + i, (n - i) * 4);
    save(rest, exponential(load(rest)));
    for (int j = 0; j < n - i; ++j) total += rest[j];
  }
  return total;
}

inline int64_t read(const uint8_t* data, int64_t bytes) {
  typedef uint32_t u16 __attribute__((vector_size(64)));  // whose sums may wrap around
  typedef uint32_t u16u __attribute__((vector_size(64), aligned(4), may_alias));
  u16 sums[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256)
    for (int j = 0; j < 4; ++j) sums[j] += *reinterpret_cast<const u16u*>(data + i + 64 * j);
  const u16 all = sums[0] + sums[1] + sums[2] + sums[3];
  int64_t total = 0;
  for (int i = 0; i < 16; ++i) total += all[i];
  return total;
}

template <class Value, class Convert>
inline void store_as(const float* k, const float* v, int head_dim, int at, uint8_t* page,
                     const Convert& convert) {
  const int wide = static_cast<int>(padded(head_dim, 16));
  Value* keys = reinterpret_cast<Value*>(page) + at / 16 * wide * 16 + at % 16;
  Value* values = reinterpret_cast<Value*>(page) + wide * GM_PAGE + at * wide;
  for (int d = 0; d < head_dim; ++d) keys[d * 16] = convert(k[d]);
  for (int d = 0; d < head_dim; ++d) values[d] = convert(v[d]);
  for (int d = head_dim; d < wide; ++d) values[d] = 0;
}

// A page of one kv head: keys [2][head_dim][16 positions], then values [32 positions][head_dim].
// INT8 has one float a position for keys and one for values after them. head_dim is padded to 16.
inline void store(const float* k, const float* v, int head_dim, int at, int cache, uint8_t* page) {
  if (cache == GM_CACHE_F32)
    return store_as<float>(k, v, head_dim, at, page, [](float x) { return x; });
  if (cache == GM_CACHE_F16)
    return store_as<uint16_t>(k, v, head_dim, at, page, [](float x) { return to_half(x); });
  const int wide = static_cast<int>(padded(head_dim, 16));
  const int group = at / 16, lane = at % 16;
  int8_t* keys = reinterpret_cast<int8_t*>(page) + group * wide * 16 + lane;
  int8_t* values = reinterpret_cast<int8_t*>(page) + wide * GM_PAGE + at * wide;
  float* scales = reinterpret_cast<float*>(page + 2 * wide * GM_PAGE);
  float k_top = 0.0f, v_top = 0.0f;
  for (int d = 0; d < head_dim; ++d) {
    k_top = std::fmax(k_top, std::fabs(k[d]));
    v_top = std::fmax(v_top, std::fabs(v[d]));
  }
  const float k_inverse = k_top > 0.0f ? 127.0f / k_top : 0.0f;
  const float v_inverse = v_top > 0.0f ? 127.0f / v_top : 0.0f;
  for (int d = 0; d < head_dim; ++d) keys[d * 16] = static_cast<int8_t>(std::lrint(k[d] * k_inverse));
  for (int d = 0; d < head_dim; ++d) values[d] = static_cast<int8_t>(std::lrint(v[d] * v_inverse));
  for (int d = head_dim; d < wide; ++d) values[d] = 0;
  scales[at] = k_top / 127.0f;
  scales[GM_PAGE + at] = v_top / 127.0f;
}

// How many rows and columns are held at once, so that sums stay in registers.
#if defined(__AVX512F__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

template <int kCache>
inline v16 cached(const uint8_t* base, int64_t at) {
  if constexpr (kCache == GM_CACHE_F16)
    return from_half(reinterpret_cast<const uint16_t*>(base) + at);
  else if constexpr (kCache == GM_CACHE_F32)
    return load(reinterpret_cast<const float*>(base) + at);
  else
    return from_bytes(reinterpret_cast<const int8_t*>(base) + at);
}

// Bytes of a page's keys, and of its values.
template <int kCache>
inline int64_t half_bytes(int wide) {
  const int64_t each = kCache == GM_CACHE_INT8 ? 1 : kCache == GM_CACHE_F16 ? 2 : 4;
  return each * wide * GM_PAGE;
}

// The part of `bytes` bytes that comes `step` steps into `steps`.
inline void fetch(const uint8_t* from, int64_t bytes, int step, int steps) {
  if (!from) return;
  const int64_t end = bytes * (step + 1) / steps;
  for (int64_t at = (bytes * step / steps + 63) / 64 * 64; at < end; at += 64)
    __builtin_prefetch(from + at);
}

constexpr int kSteps = 16;  // between two of which the next part is asked for

// Scores of R rows against the 32 keys of a page, before scale and cap. Pages lie far from one
// another, so each half is asked for while the one before is worked on.
template <int kCache, int R>
inline void page_scores(const float* const* q, int head_dim, int wide, const uint8_t* page,
                        float (*s)[GM_PAGE]) {
  const int64_t bytes = half_bytes<kCache>(wide);
  v16 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = splat(0.0f);
  for (int d = 0; d < head_dim; ++d) {
    if (d % kSteps == 0) fetch(page + bytes, bytes, d / kSteps, (head_dim + kSteps - 1) / kSteps);
    const v16 k0 = cached<kCache>(page, d * 16);
    const v16 k1 = cached<kCache>(page, (wide + d) * 16);
    for (int r = 0; r < R; ++r) {
      const v16 x = splat(q[r][d]);
      acc[r][0] = fma(x, k0, acc[r][0]);
      acc[r][1] = fma(x, k1, acc[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    save(s[r], acc[r][0]);
    save(s[r] + 16, acc[r][1]);
  }
}

// o[r] += the first `count` values of a page, weighted by p[r].
template <int kCache, int R>
inline void page_values(const float (*p)[GM_PAGE], int count, int wide, const uint8_t* page,
                        const uint8_t* next, float* o) {
  const int64_t bytes = half_bytes<kCache>(wide);
  const int parts = wide / 16;
  constexpr int C = kManyRegisters ? (R >= 8 ? 2 : R >= 4 ? 4 : 8) : (R >= 2 ? 2 : 4);
  const int64_t values = static_cast<int64_t>(wide) * GM_PAGE;
  int d = 0;
  for (; d + 16 * C <= wide; d += 16 * C) {
    v16 acc[R][C];
    int step = d / 16 * 4;  // four steps for each 16 columns, spread over the keys
    const int each = GM_PAGE / (4 * C);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) acc[r][c] = load(o + r * wide + d + 16 * c);
    for (int key = 0; key < count; ++key) {
      if (key % each == 0) fetch(next, bytes, step++, 4 * parts);
      v16 v[C];
      for (int c = 0; c < C; ++c) v[c] = cached<kCache>(page, values + key * wide + d + 16 * c);
      for (int r = 0; r < R; ++r) {
        const v16 x = splat(p[r][key]);
        for (int c = 0; c < C; ++c) acc[r][c] = fma(x, v[c], acc[r][c]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) save(o + r * wide + d + 16 * c, acc[r][c]);
  }
  for (; d < wide; d += 16)
    for (int r = 0; r < R; ++r) {
      v16 acc = load(o + r * wide + d);
      for (int key = 0; key < count; ++key)
        acc = fma(splat(p[r][key]), cached<kCache>(page, values + key * wide + d), acc);
      save(o + r * wide + d, acc);
    }
}

// One page for R rows. Weights are exp(score), or exp(score - subtract) if `subtract`, each row's
// largest score, is given, for scores without a safe cap. `o` and `total` accumulate the page's
// part. With `o` null, only `row_max`, each row's largest score so far, is updated.
template <int kCache, int R>
inline void attend_page(const Attend& a, int r0, int page_index, const uint8_t* page,
                        const uint8_t* next, const float* subtract, float* row_max, float* o,
                        v16* total) {
  const int wide = static_cast<int>(padded(a.head_dim, 16));
  alignas(64) float s[R][GM_PAGE];
  page_scores<kCache, R>(a.q + r0, a.head_dim, wide, page, s);
  const float* scales = reinterpret_cast<const float*>(page + 2 * wide * GM_PAGE);
  const i16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const float inverse = a.cap > 0.0f ? 1.0f / a.cap : 0.0f;
  int count = 0;
  for (int r = 0; r < R; ++r) {
    const int position = a.position[r0 + r];
    const int last = position - page_index * GM_PAGE;
    count = last + 1 > count ? last + 1 : count;
    const int first = a.window ? last - a.window + 1 : -1;
    for (int half = 0; half < 2; ++half) {
      const i16 at = lane + half * 16;
      v16 x = load(s[r] + 16 * half);
      if constexpr (kCache == GM_CACHE_INT8) x = x * load(scales + 16 * half);
      x = x * a.scale;
      if (a.cap > 0.0f) x = soft_cap(x, a.cap, inverse);
      const i16 seen = (at <= last) & (at >= first);
      if (!o) {
        row_max[r] = std::fmax(row_max[r], largest(select(seen, x, splat(-INFINITY))));
        continue;
      }
      if (subtract) x = x - subtract[r];
      const v16 p = select(seen, exponential(x), splat(0.0f));
      total[r] += p;
      if constexpr (kCache == GM_CACHE_INT8)
        save(s[r] + 16 * half, select(seen, p * load(scales + GM_PAGE + 16 * half), splat(0.0f)));
      else
        save(s[r] + 16 * half, p);
    }
  }
  if (o) page_values<kCache, R>(s, count < GM_PAGE ? count : GM_PAGE, wide, page, next, o);
}

template <int kCache>
inline void attend_rows(const Attend& a, int r0, int rows, int page_index, int last,
                        const float* subtract, float* row_max, float* o, v16* total) {
  const uint8_t* page = a.pool + a.pages[page_index] * a.page_bytes;
  const uint8_t* next =
      page_index < last ? a.pool + a.pages[page_index + 1] * a.page_bytes : nullptr;
  const int wide = static_cast<int>(padded(a.head_dim, 16));
  while (rows > 0) {
    int n = rows >= 2 ? 2 : 1;
    if (kManyRegisters && rows >= 4) n = rows >= 8 ? 8 : 4;
    const float* m = subtract ? subtract + r0 : nullptr;
    float* f = row_max ? row_max + r0 : nullptr;
    float* out = o ? o + r0 * wide : nullptr;
    v16* t = total + r0;
    if constexpr (kManyRegisters) {
      if (n == 8) attend_page<kCache, 8>(a, r0, page_index, page, next, m, f, out, t);
      if (n == 4) attend_page<kCache, 4>(a, r0, page_index, page, next, m, f, out, t);
    }
    if (n == 2) attend_page<kCache, 2>(a, r0, page_index, page, next, m, f, out, t);
    if (n == 1) attend_page<kCache, 1>(a, r0, page_index, page, next, m, f, out, t);
    r0 += n;
    rows -= n;
    next = nullptr;  // asked for already
  }
}

template <int kCache>
inline void attend_in(const Attend& a, float* o) {
  const int wide = static_cast<int>(padded(a.head_dim, 16));
  std::memset(o, 0, sizeof(float) * a.rows * wide);
  v16 total[kRows];
  float row_max[kRows];
  int first = a.position[0], last = 0;
  for (int r = 0; r < a.rows; ++r) {
    total[r] = splat(0.0f);
    row_max[r] = -INFINITY;
    const int from = a.window ? a.position[r] - a.window + 1 : 0;
    first = from < first ? from : first;
    last = a.position[r] > last ? a.position[r] : last;
  }
  first = first < 0 ? 0 : first;
  const bool bounded = a.cap > 0.0f && a.cap <= kMaxSafeCap;
  if (!bounded)
    for (int page = first / GM_PAGE; page <= last / GM_PAGE; ++page)
      attend_rows<kCache>(a, 0, a.rows, page, last / GM_PAGE, nullptr, row_max, nullptr, total);
  for (int page = first / GM_PAGE; page <= last / GM_PAGE; ++page)
    attend_rows<kCache>(a, 0, a.rows, page, last / GM_PAGE, bounded ? nullptr : row_max, nullptr, o,
                        total);
  for (int r = 0; r < a.rows; ++r) {
    const float inverse = 1.0f / sum(total[r]);
    for (int d = 0; d < a.head_dim; ++d) a.out[r][d] = o[r * wide + d] * inverse;
  }
}

inline void attend(const Attend& a, int cache, float* scratch) {
  if (cache == GM_CACHE_INT8) return attend_in<GM_CACHE_INT8>(a, scratch);
  if (cache == GM_CACHE_F16) return attend_in<GM_CACHE_F16>(a, scratch);
  attend_in<GM_CACHE_F32>(a, scratch);
}

// Float matrices lie row after row. Each product is summed in sixteen lanes and then across them,
// in the same order for any number of rows.
template <bool kHalf>
inline v16 weights(const void* w, int64_t at) {
  if constexpr (kHalf)
    return from_bf16(static_cast<const uint16_t*>(w) + at);
  else
    return load(static_cast<const float*>(w) + at);
}

template <bool kHalf>
inline float weight(const void* w, int64_t at) {
  if constexpr (!kHalf) return static_cast<const float*>(w)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(w)[at]) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <bool kHalf, int M, int N>
inline void dense_block(const gm_matrix& w, int64_t row, const Inputs& in, int m0,
                        float (*y)[kTile], int n0) {
  const int columns = w.columns;
  const int even = columns / 16 * 16;
  v16 acc[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) acc[m][n] = splat(0.0f);
  for (int k = 0; k < even; k += 16) {
    v16 b[N];
    for (int n = 0; n < N; ++n) b[n] = weights<kHalf>(w.data, (row + n) * columns + k);
    for (int m = 0; m < M; ++m) {
      const v16 a = load(in.x + (m0 + m) * in.x_stride + k);
      for (int n = 0; n < N; ++n) acc[m][n] = fma(a, b[n], acc[m][n]);
    }
  }
  float totals[M * N];
  if constexpr (M * N == 16) {
    v16 flat[16];
    for (int i = 0; i < 16; ++i) flat[i] = acc[i / N][i % N];
    save(totals, sums(flat));
  } else {
    for (int i = 0; i < M * N; ++i) totals[i] = sum(acc[i / N][i % N]);
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float total = totals[m * N + n];
      for (int k = even; k < columns; ++k)
        total += in.x[(m0 + m) * in.x_stride + k] * weight<kHalf>(w.data, (row + n) * columns + k);
      y[m][n0 + n] = total;
    }
}

template <bool kHalf>
inline void dense(const gm_matrix& w, int64_t tile, const Inputs& in, int m0, int rows,
                  float (*y)[kTile]) {
  const int64_t row = tile * kTile;
  const int count = w.rows - row < kTile ? static_cast<int>(w.rows - row) : kTile;
  for (int m = 0; m < rows;) {
    const int M = rows - m >= 4 ? 4 : 1;
    for (int n = 0; n < count;) {
      const int N = count - n >= 4 ? 4 : 1;
      if (M == 4 && N == 4) dense_block<kHalf, 4, 4>(w, row + n, in, m0 + m, y + m, n);
      if (M == 4 && N == 1) dense_block<kHalf, 4, 1>(w, row + n, in, m0 + m, y + m, n);
      if (M == 1 && N == 4) dense_block<kHalf, 1, 4>(w, row + n, in, m0 + m, y + m, n);
      if (M == 1 && N == 1) dense_block<kHalf, 1, 1>(w, row + n, in, m0 + m, y + m, n);
      n += N;
    }
    m += M;
  }
}

// The table of an instruction set's products, with the kernels above.
constexpr Kernels with_rows(Kernels table) {
  table.quantize = quantize;
  table.norm = norm;
  table.gelu_times = gelu_times;
  table.add = add;
  table.rotate = rotate;
  table.store = store;
  table.attend = attend;
  table.cap = cap;
  table.argmax = argmax;
  table.sum_exp = sum_exp;
  table.read = read;
  return table;
}
