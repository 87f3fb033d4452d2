// AVX-512 with VNNI: each of sixteen lanes, one per row of the tile, adds up four byte products.
// Included by isa_avx512.cpp and isa_amx.cpp, inside their namespaces.

// Panels hold, for each quad of columns, four bytes of value + 128 of each of sixteen rows, as int8
// does.

inline __m512i loadi(const void* p) { return _mm512_loadu_si512(p); }

inline __m512i four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm512_set1_epi32(bits);
}

inline __m512 bf16_scales(const uint8_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Two groups for M rows: dot += even's sum x its multiplier + odd's sum x its multiplier.
template <int M>
inline void group_pair(const uint8_t* data, const int8_t* q, int64_t q_stride, const int32_t* sums,
                       int64_t sums_stride, __m512i factor, __m512i* dot) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512i part[2][M];
  for (int g = 0; g < 2; ++g) {
    for (int m = 0; m < M; ++m) part[g][m] = _mm512_set1_epi32(sums[m * sums_stride + g]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint8_t* p = data + g * kInt4GroupBytes + i * 64;
      prefetch(p);
      const __m512i w = loadi(p);
      const __m512i a = _mm512_and_si512(w, low);
      const __m512i b = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
      for (int m = 0; m < M; ++m) {
        const int8_t* x = q + m * q_stride + g * kGroup + 4 * i;
        part[g][m] = _mm512_dpbusd_epi32(part[g][m], a, four(x));
        part[g][m] = _mm512_dpbusd_epi32(part[g][m], b, four(x + 16));
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    // Both sums fit into 16 bits: 32 x 8 x 127 < 2^15.
    const __m512i pair =
        _mm512_mask_blend_epi16(0xaaaaaaaa, part[0][m], _mm512_slli_epi32(part[1][m], 16));
    dot[m] = _mm512_dpwssd_epi32(dot[m], pair, factor);
  }
}

template <int M>
inline void tile_int4(const uint8_t* data, const Inputs& in, int m0, float (*y)[kTile]) {
  const __m512i nibbles = _mm512_set1_epi32(0x000f000f);
  const int8_t* q = in.q + m0 * in.q_stride;
  const int32_t* sums = in.group_sums + m0 * in.groups;
  const float* scale = in.scale + m0 * in.blocks;
  __m512 acc[M];
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    __m512i mults = loadi(head);
    const __m512 w_scale = bf16_scales(head + 64);
    __m512i dot[M];
    for (int m = 0; m < M; ++m) dot[m] = _mm512_setzero_si512();
    for (int g = 0; g < groups; g += 2) {
      const __m512i factor = _mm512_and_si512(mults, nibbles);
      // More than four rows are handled in two parts: the second finds the weights in the cache.
      constexpr int P = M > 4 ? 4 : M;
      for (int m = 0; m < M; m += P)
        group_pair<P>(data, q + m * in.q_stride, in.q_stride, sums + m * in.groups, in.groups,
                      factor, dot + m);
      mults = _mm512_srli_epi32(mults, 4);
      data += 2 * kInt4GroupBytes;
      q += 2 * kGroup;
      sums += 2;
    }
    for (int m = 0; m < M; ++m)
      acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m]),
                               _mm512_mul_ps(w_scale, _mm512_set1_ps(scale[m * in.blocks + block])),
                               acc[m]);
    data += kInt4HeadBytes;
  }
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(y[m], acc[m]);
}

// Six bits from the nibbles of quad i and of quad i + 4 of a group and the two planes above them.
template <int I>
inline void six_bits(__m512i w, __m512i h0, __m512i h1, __m512i* a, __m512i* b) {
  const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(48);
  if constexpr (I == 0) h0 = _mm512_slli_epi16(h0, 4), h1 = _mm512_slli_epi16(h1, 4);
  if constexpr (I == 1) h0 = _mm512_slli_epi16(h0, 2), h1 = _mm512_slli_epi16(h1, 2);
  if constexpr (I == 3) h0 = _mm512_srli_epi16(h0, 2), h1 = _mm512_srli_epi16(h1, 2);
  // (w & low) | (h & high)
  *a = _mm512_ternarylogic_epi32(_mm512_and_si512(w, low), h0, high, 0xf8);
  *b = _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_srli_epi16(w, 4), low), h1, high, 0xf8);
}

template <int M, int I>
inline void quad_int6(const uint8_t* data, __m512i h0, __m512i h1, const int8_t* q,
                      int64_t q_stride, __m512i (*dot)[2]) {
  prefetch(data + I * 64);
  __m512i a, b;
  six_bits<I>(loadi(data + I * 64), h0, h1, &a, &b);
  for (int m = 0; m < M; ++m) {
    dot[m][0] = _mm512_dpbusd_epi32(dot[m][0], a, four(q + m * q_stride + 4 * I));
    dot[m][1] = _mm512_dpbusd_epi32(dot[m][1], b, four(q + m * q_stride + 4 * I + 16));
  }
}

template <int M>
inline void tile_int6(const uint8_t* data, const Inputs& in, int m0, float (*y)[kTile]) {
  const int8_t* q = in.q + m0 * in.q_stride;
  __m512 acc[M];
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int left = in.groups - block * 8;
    const int groups = left < 8 ? left : 8;
    __m512i dot[M][2];
    for (int m = 0; m < M; ++m) {
      // -128 times the sum, and 32 was added to the weights.
      dot[m][0] = _mm512_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block] / 4);
      dot[m][1] = _mm512_setzero_si512();
    }
    for (int g = 0; g < groups; ++g, q += kGroup, data += kInt6GroupBytes) {
      const __m512i h0 = loadi(data + 256), h1 = loadi(data + 320);
      prefetch(data + 256);
      prefetch(data + 320);
      quad_int6<M, 0>(data, h0, h1, q, in.q_stride, dot);
      quad_int6<M, 1>(data, h0, h1, q, in.q_stride, dot);
      quad_int6<M, 2>(data, h0, h1, q, in.q_stride, dot);
      quad_int6<M, 3>(data, h0, h1, q, in.q_stride, dot);
    }
    const __m512 w_scale = bf16_scales(data);
    for (int m = 0; m < M; ++m) {
      const __m512i total = _mm512_add_epi32(dot[m][0], dot[m][1]);
      const __m512 s =
          _mm512_mul_ps(w_scale, _mm512_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
      acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), s, acc[m]);
    }
    data += kInt6HeadBytes;
  }
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(y[m], acc[m]);
}

template <int M>
inline void tile_int8(const uint8_t* data, const float* scales, const Inputs& in, int m0,
                      float (*y)[kTile]) {
  constexpr int C = M >= 4 ? 1 : 4;  // independent chains of sums
  const __m512 w_scale = _mm512_loadu_ps(scales);
  const int8_t* q = in.q + m0 * in.q_stride;
  __m512 acc[M];
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  for (int block = 0; block < in.blocks; ++block) {
    const int begin = block * kBlock;
    const int end = begin + kBlock < in.columns ? begin + kBlock : in.columns;
    __m512i dot[M][C];
    for (int m = 0; m < M; ++m) {
      dot[m][0] = _mm512_set1_epi32(in.block_sums[(m0 + m) * in.blocks + block]);
      for (int c = 1; c < C; ++c) dot[m][c] = _mm512_setzero_si512();
    }
    for (int k = begin; k < end; k += 16, data += 256)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        prefetch(data + i * 64);
        const __m512i w = loadi(data + i * 64);
        for (int m = 0; m < M; ++m)
          dot[m][i % C] =
              _mm512_dpbusd_epi32(dot[m][i % C], w, four(q + m * in.q_stride + k + 4 * i));
      }
    for (int m = 0; m < M; ++m) {
      for (int c = 1; c < C; ++c) dot[m][0] = _mm512_add_epi32(dot[m][0], dot[m][c]);
      const __m512 s =
          _mm512_mul_ps(w_scale, _mm512_set1_ps(in.scale[(m0 + m) * in.blocks + block]));
      acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m][0]), s, acc[m]);
    }
  }
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(y[m], acc[m]);
}

template <int M>
inline void tile_rows(int format, const uint8_t* data, const float* scales, const Inputs& in,
                      int m0, float (*y)[kTile]) {
  if (format == GM_INT4) return tile_int4<M>(data, in, m0, y);
  if (format == GM_INT6) return tile_int6<M>(data, in, m0, y);
  tile_int8<M>(data, scales, in, m0, y);
}

void tile(const gm_matrix& w, int64_t at, const Inputs& in, int m0, int rows, float (*y)[kTile]) {
  if (w.format == GM_F32) return dense<false>(w, at, in, m0, rows, y);
  if (w.format == GM_BF16) return dense<true>(w, at, in, m0, rows, y);
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + at * tile_bytes(w);
  const float* scales = w.scales + at * kTile;
  in_parts<8, 4, 3, 2, 1>(rows, [&]<int M>(int m) {
    tile_rows<M>(w.format, data, scales, in, m0 + m, y + m);
  });
}

// int4 as bytes of multiplier x value + 128, in the layout of int8.
inline void widen_int4(const uint8_t* data, int columns, uint8_t* bytes, float* scales) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    const uint8_t* head = data + groups * kInt4GroupBytes;
    const __m512i mults = loadi(head);
    _mm512_storeu_ps(scales, bf16_scales(head + 64));
    for (int g = 0; g < groups; ++g, data += kInt4GroupBytes, bytes += 512) {
      const int shift = (g / 2 + g % 2 * 4) * 4;
      const __m512i one = _mm512_and_si512(
          _mm512_srl_epi32(mults, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(15));
      const __m512i mult = _mm512_or_si512(one, _mm512_slli_epi32(one, 16));
      // 128 - 8 x multiplier in each byte.
      const __m512i offset = _mm512_sub_epi8(
          _mm512_set1_epi8(-128),
          _mm512_slli_epi16(_mm512_or_si512(mult, _mm512_slli_epi16(mult, 8)), 3));
      for (int i = 0; i < 4; ++i) {
        prefetch(data + i * 64);
        const __m512i w = loadi(data + i * 64);
        // Nibble x multiplier stays below 256: both bytes of a 16-bit product are correct.
        const __m512i a = _mm512_mullo_epi16(_mm512_and_si512(w, low), mult);
        const __m512i b =
            _mm512_mullo_epi16(_mm512_and_si512(_mm512_srli_epi16(w, 4), low), mult);
        _mm512_storeu_si512(bytes + i * 64, _mm512_add_epi8(a, offset));
        _mm512_storeu_si512(bytes + i * 64 + 256, _mm512_add_epi8(b, offset));
      }
    }
    data += kInt4HeadBytes;
  }
}

template <int I>
inline void widen_quad(const uint8_t* data, __m512i h0, __m512i h1, uint8_t* bytes) {
  prefetch(data + I * 64);
  __m512i a, b;
  six_bits<I>(loadi(data + I * 64), h0, h1, &a, &b);
  const __m512i offset = _mm512_set1_epi8(128 - 32);
  _mm512_storeu_si512(bytes + I * 64, _mm512_add_epi8(a, offset));
  _mm512_storeu_si512(bytes + I * 64 + 256, _mm512_add_epi8(b, offset));
}

// int6 as bytes of value + 128.
inline void widen_int6(const uint8_t* data, int columns, uint8_t* bytes, float* scales) {
  for (int k = 0; k < columns; k += kBlock, scales += 2 * kTile) {
    const int groups = (columns - k < kBlock ? columns - k : kBlock) / kGroup;
    for (int g = 0; g < groups; ++g, data += kInt6GroupBytes, bytes += 512) {
      const __m512i h0 = loadi(data + 256), h1 = loadi(data + 320);
      prefetch(data + 256);
      prefetch(data + 320);
      widen_quad<0>(data, h0, h1, bytes);
      widen_quad<1>(data, h0, h1, bytes);
      widen_quad<2>(data, h0, h1, bytes);
      widen_quad<3>(data, h0, h1, bytes);
    }
    _mm512_storeu_ps(scales, bf16_scales(data));
    data += kInt6HeadBytes;
  }
}

const uint8_t* prepare(int format, const uint8_t* data, int columns, uint8_t* bytes,
                       float* scales) {
  if (format == GM_INT8) return data;
  const auto widen = format == GM_INT4 ? widen_int4 : widen_int6;
  widen(data, columns, bytes, scales);
  return bytes;
}
