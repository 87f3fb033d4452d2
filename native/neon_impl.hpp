// NEON with dot products of bytes. A tile's sixteen rows are four vectors of four 32-bit sums. All
// values fit into signed bytes, so no sum needs an offset but those of nibbles and of six bits.
// Included by isa_dotprod.cpp and isa_i8mm.cpp, inside their namespaces; the second one's panels use
// products of 2 x 8 by 8 x 2 bytes.

struct Sums {
  int32x4_t of[4];  // rows 0 to 3, 4 to 7, 8 to 11, 12 to 15
};

inline Sums all(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}

inline int8x16_t low_nibbles(uint8x16_t w) {
  return vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15)));
}
inline int8x16_t high_nibbles(uint8x16_t w) { return vreinterpretq_s8_u8(vshrq_n_u8(w, 4)); }

// Bytes of value + 128 as values.
inline int8x16_t centered(uint8x16_t w) {
  return vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128)));
}

inline float32x4_t bf16_scales(const uint8_t* p) {
  const uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(p));
  return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}
inline float32x4_t scales_of(const uint8_t* p, int part) { return bf16_scales(p + 8 * part); }
inline float32x4_t scales_of(const float* p, int part) { return vld1q_f32(p + 4 * part); }

// sums + w x the four bytes at quad kQuad of x, for all sixteen rows.
template <int kQuad>
inline void add_quad(Sums& sums, const int8x16_t (&w)[4], int8x16_t x) {
  GM_UNROLL for (int v = 0; v < 4; ++v) sums.of[v] = vdotq_laneq_s32(sums.of[v], w[v], x, kQuad);
}

// acc += dot x (weights' scale x inputs' scale); Scale is float, or uint8_t for bf16.
template <int M, class Scale>
inline void add_scaled(const Sums (&dot)[M], const Scale* scales, const Inputs& in, int m0,
                       int block, float32x4_t (&acc)[M][4]) {
  GM_UNROLL for (int v = 0; v < 4; ++v) {
    const float32x4_t w_scale = scales_of(scales, v);
    GM_UNROLL for (int m = 0; m < M; ++m)
      acc[m][v] = vfmaq_f32(acc[m][v], vcvtq_f32_s32(dot[m].of[v]),
                            vmulq_n_f32(w_scale, in.scale[(m0 + m) * in.blocks + block]));
  }
}

// One line of packed nibbles: quad I of a group and quad I + 4.
template <int M, int I>
inline void line_int4(const uint8_t* data, const int8x16_t (&x)[M][2], Sums (&part)[M]) {
  prefetch(data + I * 64);
  uint8x16_t both[4];
  int8x16_t w[4];
  GM_UNROLL for (int v = 0; v < 4; ++v) both[v] = vld1q_u8(data + I * 64 + 16 * v);
  GM_UNROLL for (int v = 0; v < 4; ++v) w[v] = low_nibbles(both[v]);
  GM_UNROLL for (int m = 0; m < M; ++m) add_quad<I>(part[m], w, x[m][0]);
  GM_UNROLL for (int v = 0; v < 4; ++v) w[v] = high_nibbles(both[v]);
  GM_UNROLL for (int m = 0; m < M; ++m) add_quad<I>(part[m], w, x[m][1]);
}

// The multipliers of group g of a superblock, one for each row.
inline uint32x4_t mults_of(const uint8_t* head, int v, int g) {
  const int32x4_t shift = vdupq_n_s32(-(g / 2 + g % 2 * 4) * 4);
  const uint32x4_t nibbles = vreinterpretq_u32_u8(vld1q_u8(head + 16 * v));
  return vandq_u32(vshlq_u32(nibbles, shift), vdupq_n_u32(15));
}

// The 32 inputs of a group: quads 0 to 3 and 4 to 7.
template <int M>
inline void inputs_of(const int8_t* q, int64_t q_stride, int8x16_t (&x)[M][2]) {
  GM_UNROLL for (int m = 0; m < M; ++m) {
    x[m][0] = vld1q_s8(q + m * q_stride);
    x[m][1] = vld1q_s8(q + m * q_stride + 16);
  }
}

template <int M>
inline void tile_int4(const uint8_t* data, const Inputs& in, int m0, float32x4_t (&acc)[M][4]) {
  const int8_t* q = in.q + m0 * in.q_stride;
  const int32_t* group_sums = in.group_sums + m0 * in.groups;
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    Sums dot[M];
    GM_UNROLL for (int m = 0; m < M; ++m) dot[m] = all(0);
    for (int g = 0; g < groups; ++g, q += kGroup, data += kInt4GroupBytes) {
      int8x16_t x[M][2];
      inputs_of(q, in.q_stride, x);
      Sums part[M];
      GM_UNROLL for (int m = 0; m < M; ++m)
        part[m] = all(group_sums[m * in.groups + block * 8 + g]);
      line_int4<M, 0>(data, x, part);
      line_int4<M, 1>(data, x, part);
      line_int4<M, 2>(data, x, part);
      line_int4<M, 3>(data, x, part);
      GM_UNROLL for (int v = 0; v < 4; ++v) {
        const int32x4_t mult = vreinterpretq_s32_u32(mults_of(head, v, g));
        GM_UNROLL for (int m = 0; m < M; ++m)
          dot[m].of[v] = vmlaq_s32(dot[m].of[v], part[m].of[v], mult);
      }
    }
    add_scaled<M>(dot, head + 64, in, m0, block, acc);
    data = head + kInt4HeadBytes;
  }
}

// Six bits of quad I of a group and of quad I + 4.
template <int I>
inline void six_bits(const uint8_t* data, int v, int8x16_t& a, int8x16_t& b) {
  const uint8x16_t w = vld1q_u8(data + I * 64 + 16 * v);
  const uint8x16_t two = vdupq_n_u8(3);
  uint8x16_t h0 = vld1q_u8(data + 256 + 16 * v), h1 = vld1q_u8(data + 320 + 16 * v);
  if constexpr (I > 0) h0 = vshrq_n_u8(h0, 2 * I), h1 = vshrq_n_u8(h1, 2 * I);
  a = vorrq_s8(low_nibbles(w), vreinterpretq_s8_u8(vshlq_n_u8(vandq_u8(h0, two), 4)));
  b = vorrq_s8(high_nibbles(w), vreinterpretq_s8_u8(vshlq_n_u8(vandq_u8(h1, two), 4)));
}

template <int M, int I>
inline void line_int6(const uint8_t* data, const int8x16_t (&x)[M][2], Sums (&dot)[M]) {
  prefetch(data + I * 64);
  int8x16_t a[4], b[4];
  GM_UNROLL for (int v = 0; v < 4; ++v) six_bits<I>(data, v, a[v], b[v]);
  GM_UNROLL for (int m = 0; m < M; ++m) {
    add_quad<I>(dot[m], a, x[m][0]);
    add_quad<I>(dot[m], b, x[m][1]);
  }
}

template <int M>
inline void tile_int6(const uint8_t* data, const Inputs& in, int m0, float32x4_t (&acc)[M][4]) {
  const int8_t* q = in.q + m0 * in.q_stride;
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    Sums dot[M];
    GM_UNROLL for (int m = 0; m < M; ++m)  // -128 times the sum, and 32 was added to the weights
      dot[m] = all(in.block_sums[(m0 + m) * in.blocks + block] / 4);
    for (int g = 0; g < groups; ++g, q += kGroup, data += kInt6GroupBytes) {
      int8x16_t x[M][2];
      inputs_of(q, in.q_stride, x);
      line_int6<M, 0>(data, x, dot);
      line_int6<M, 1>(data, x, dot);
      line_int6<M, 2>(data, x, dot);
      line_int6<M, 3>(data, x, dot);
    }
    add_scaled<M>(dot, data, in, m0, block, acc);
    data += kInt6HeadBytes;
  }
}

// A quad of int8.
template <int M, int I>
inline void line_int8(const uint8_t* data, const int8x16_t (&x)[M], Sums (&dot)[M]) {
  prefetch(data + I * 64);
  int8x16_t w[4];
  GM_UNROLL for (int v = 0; v < 4; ++v) w[v] = centered(vld1q_u8(data + I * 64 + 16 * v));
  GM_UNROLL for (int m = 0; m < M; ++m) add_quad<I>(dot[m], w, x[m]);
}

template <int M>
inline void tile_int8(const uint8_t* data, const float* scales, const Inputs& in, int m0,
                      float32x4_t (&acc)[M][4]) {
  const int8_t* q = in.q + m0 * in.q_stride;
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    Sums dot[M];
    GM_UNROLL for (int m = 0; m < M; ++m) dot[m] = all(0);
    for (int k = begin; k < end; k += 16, data += 256) {
      int8x16_t x[M];
      GM_UNROLL for (int m = 0; m < M; ++m) x[m] = vld1q_s8(q + m * in.q_stride + k);
      line_int8<M, 0>(data, x, dot);
      line_int8<M, 1>(data, x, dot);
      line_int8<M, 2>(data, x, dot);
      line_int8<M, 3>(data, x, dot);
    }
    add_scaled<M>(dot, scales, in, m0, block, acc);
  }
}

template <int M>
inline void tile_rows(int format, const uint8_t* data, const float* scales, const Inputs& in,
                      int m0, float (*y)[kTile]) {
  float32x4_t acc[M][4];
  GM_UNROLL for (int m = 0; m < M; ++m)
    GM_UNROLL for (int v = 0; v < 4; ++v) acc[m][v] = vdupq_n_f32(0.0f);
  if (format == GM_INT4)
    tile_int4<M>(data, in, m0, acc);
  else if (format == GM_INT6)
    tile_int6<M>(data, in, m0, acc);
  else
    tile_int8<M>(data, scales, in, m0, acc);
  GM_UNROLL for (int m = 0; m < M; ++m)
    GM_UNROLL for (int v = 0; v < 4; ++v) vst1q_f32(y[m] + 4 * v, acc[m][v]);
}

void tile(const gm_matrix& w, int64_t at, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  if (w.format == GM_F32) return dense<false>(w, at, in, m0, rows, y);
  if (w.format == GM_BF16) return dense<true>(w, at, in, m0, rows, y);
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + at * tile_bytes(w);
  const float* scales = w.scales + at * kTile;
  in_parts<4, 2, 1>(rows, [&]<int M>(int m) {
    tile_rows<M>(w.format, data, scales, in, m0 + m, y + m);
  });
}

// Panels hold signed values. For dot products: of each quad of columns, four of each of sixteen rows.
// For products of matrices: of each eight columns, eight of each row.
constexpr int kPanelRows = 4;  // rows of inputs at once; those after the last one are not stored

// The values of quads k and k + 1 of four rows.
inline void save_quads(int8x16_t first, int8x16_t second, int v, int8_t* to) {
#ifdef __ARM_FEATURE_MATMUL_INT8
  const int32x4_t a = vreinterpretq_s32_s8(first), b = vreinterpretq_s32_s8(second);
  vst1q_s8(to + 32 * v, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
  vst1q_s8(to + 32 * v + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
#else
  vst1q_s8(to + 16 * v, first);
  vst1q_s8(to + 16 * v + 64, second);
#endif
}

// int4 as multiplier x value.
void widen_int4(const uint8_t* data, int columns, int8_t* to, float* scales) {
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    for (int v = 0; v < 4; ++v) vst1q_f32(scales + 4 * v, bf16_scales(head + 64 + 8 * v));
    for (int g = 0; g < groups; ++g, data += kInt4GroupBytes, to += kGroup * kTile)
      for (int v = 0; v < 4; ++v) {
        const int8x16_t mult = vreinterpretq_s8_u32(
            vmulq_u32(mults_of(head, v, g), vdupq_n_u32(0x01010101)));
        const int8x16_t eight = vdupq_n_s8(8);
        for (int i = 0; i < 4; i += 2) {
          prefetch(data + i * 64);
          const uint8x16_t w0 = vld1q_u8(data + i * 64 + 16 * v);
          const uint8x16_t w1 = vld1q_u8(data + i * 64 + 64 + 16 * v);
          save_quads(vmulq_s8(vsubq_s8(low_nibbles(w0), eight), mult),
                     vmulq_s8(vsubq_s8(low_nibbles(w1), eight), mult), v, to + i * 64);
          save_quads(vmulq_s8(vsubq_s8(high_nibbles(w0), eight), mult),
                     vmulq_s8(vsubq_s8(high_nibbles(w1), eight), mult), v, to + i * 64 + 256);
        }
      }
    data += kInt4HeadBytes;
  }
}

template <int I>
inline void widen_lines(const uint8_t* data, int v, int8_t* to) {
  const int8x16_t offset = vdupq_n_s8(32);
  int8x16_t a[2], b[2];
  six_bits<I>(data, v, a[0], b[0]);
  six_bits<I + 1>(data, v, a[1], b[1]);
  save_quads(vsubq_s8(a[0], offset), vsubq_s8(a[1], offset), v, to + I * 64);
  save_quads(vsubq_s8(b[0], offset), vsubq_s8(b[1], offset), v, to + I * 64 + 256);
}

void widen_int6(const uint8_t* data, int columns, int8_t* to, float* scales) {
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    for (int g = 0; g < groups; ++g, data += kInt6GroupBytes, to += kGroup * kTile)
      for (int v = 0; v < 4; ++v) {
        widen_lines<0>(data, v, to);
        widen_lines<2>(data, v, to);
      }
    for (int v = 0; v < 4; ++v) vst1q_f32(scales + 4 * v, bf16_scales(data + 8 * v));
    data += kInt6HeadBytes;
  }
}

void widen_int8(const uint8_t* data, int columns, int8_t* to) {
  for (int k = 0; k < columns; k += 8, data += 128, to += 128) {
    prefetch(data);
    for (int v = 0; v < 4; ++v)
      save_quads(centered(vld1q_u8(data + 16 * v)), centered(vld1q_u8(data + 64 + 16 * v)), v, to);
  }
}

const uint8_t* prepare(int format, const uint8_t* data, int columns, uint8_t* bytes,
                       float* scales) {
  int8_t* to = reinterpret_cast<int8_t*>(bytes);
  if (format == GM_INT4)
    widen_int4(data, columns, to, scales);
  else if (format == GM_INT6)
    widen_int6(data, columns, to, scales);
  else
    widen_int8(data, columns, to);
  return bytes;
}

#ifdef __ARM_FEATURE_MATMUL_INT8
// Sums of a superblock of sixteen rows and four rows of inputs.
[[gnu::noinline]] void panel_sums(const int8_t* w, int columns, const int8_t* q, int64_t q_stride,
                                  Sums (&dot)[kPanelRows]) {
  int32x4_t sums[2][8];  // two rows of inputs x two rows of the tile each
  GM_UNROLL for (int p = 0; p < 2; ++p)
    GM_UNROLL for (int r = 0; r < 8; ++r) sums[p][r] = vdupq_n_s32(0);
  for (int k = 0; k < columns; k += 8, w += 128, q += 8) {
    int8x16_t x[2];
    GM_UNROLL for (int p = 0; p < 2; ++p)
      x[p] = vcombine_s8(vld1_s8(q + 2 * p * q_stride), vld1_s8(q + (2 * p + 1) * q_stride));
    GM_UNROLL for (int r = 0; r < 8; ++r) {
      const int8x16_t pair = vld1q_s8(w + 16 * r);
      GM_UNROLL for (int p = 0; p < 2; ++p) sums[p][r] = vmmlaq_s32(sums[p][r], x[p], pair);
    }
  }
  GM_UNROLL for (int p = 0; p < 2; ++p)
    GM_UNROLL for (int v = 0; v < 4; ++v) {
      const int64x2_t a = vreinterpretq_s64_s32(sums[p][2 * v]);
      const int64x2_t b = vreinterpretq_s64_s32(sums[p][2 * v + 1]);
      dot[2 * p].of[v] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
      dot[2 * p + 1].of[v] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
    }
}
#else
// One quad of a panel, times quad I of the inputs.
template <int I>
inline void panel_quad(const int8_t* w, const int8x16_t (&x)[kPanelRows],
                       Sums (&sums)[kPanelRows]) {
  int8x16_t quad[4];
  GM_UNROLL for (int v = 0; v < 4; ++v) quad[v] = vld1q_s8(w + I * 64 + 16 * v);
  GM_UNROLL for (int m = 0; m < kPanelRows; ++m) add_quad<I>(sums[m], quad, x[m]);
}

// Sums of a superblock of sixteen rows and four rows of inputs.
[[gnu::noinline]] void panel_sums(const int8_t* w, int columns, const int8_t* q, int64_t q_stride,
                                  Sums (&dot)[kPanelRows]) {
  Sums sums[kPanelRows];
  GM_UNROLL for (int m = 0; m < kPanelRows; ++m) sums[m] = all(0);
  for (int k = 0; k < columns; k += 16, w += 256, q += 16) {
    int8x16_t x[kPanelRows];
    GM_UNROLL for (int m = 0; m < kPanelRows; ++m) x[m] = vld1q_s8(q + m * q_stride);
    panel_quad<0>(w, x, sums);
    panel_quad<1>(w, x, sums);
    panel_quad<2>(w, x, sums);
    panel_quad<3>(w, x, sums);
  }
  GM_UNROLL for (int m = 0; m < kPanelRows; ++m) dot[m] = sums[m];
}
#endif

// A superblock of the weights is in the L1 cache for all rows.
void panel(const Panel& p, const Inputs& in, int m0, int rows, float* c) {
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int columns = in.columns - begin < kBlock ? in.columns - begin : kBlock;
    for (int first = 0; first < rows; first += kPanelRows)
      for (int t = 0; t < 2; ++t) {
        Sums dot[kPanelRows];
        panel_sums(reinterpret_cast<const int8_t*>(p.tile[t]) + begin * kTile, columns,
                   in.q + (m0 + first) * in.q_stride + begin, in.q_stride, dot);
        for (int m = first; m < rows && m < first + kPanelRows; ++m)
          for (int v = 0; v < 4; ++v) {
            float* to = c + m * 2 * kTile + t * kTile + 4 * v;
            const float32x4_t w_scale = vld1q_f32(p.scale[t] + block * p.scale_step + 4 * v);
            const float32x4_t before = block == 0 ? vdupq_n_f32(0.0f) : vld1q_f32(to);
            vst1q_f32(to, vfmaq_f32(before, vcvtq_f32_s32(dot[m - first].of[v]),
                                    vmulq_n_f32(w_scale, in.scale[(m0 + m) * in.blocks + block])));
          }
      }
  }
}
