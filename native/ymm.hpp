// Halves of a tile, eight rows each, in registers of 256 bits. Included by isa_avx2.cpp and
// isa_avx_vnni.cpp, inside their namespaces.

// Keeps sums in the order of the source: GCC would compute all products first, and spill them.
inline void in_order(__m256i& sum) { asm("" : "+x"(sum)); }

inline __m256i loadi(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline void savei(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

inline __m256i four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}

inline __m256 bf16_scales(const uint8_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline __m256i low_nibbles(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i w) { return low_nibbles(_mm256_srli_epi16(w, 4)); }

inline __m256 scales_of(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 scales_of(const uint8_t* p) { return bf16_scales(p); }

// A superblock's sums of M tokens with sixteen rows: acc += dot x (weights' scale x inputs' scale).
// Scale is float, or uint8_t for bf16.
template <int M, class Scale>
inline void add_scaled(const __m256i (&dot)[M][2], const Scale* scales, const Inputs& in, int m0,
                       int block, __m256 (&acc)[M][2]) {
  const int step = sizeof(Scale) == 1 ? 16 : 8;
  GM_UNROLL for (int half = 0; half < 2; ++half) {
    const __m256 w_scale = scales_of(scales + half * step);
    GM_UNROLL for (int m = 0; m < M; ++m)
      acc[m][half] = _mm256_fmadd_ps(
          _mm256_cvtepi32_ps(dot[m][half]),
          _mm256_mul_ps(w_scale, _mm256_set1_ps(in.scale[(m0 + m) * in.blocks + block])),
          acc[m][half]);
  }
}

template <int M>
inline void save_rows(const __m256 (&acc)[M][2], float (*y)[kTile]) {
  GM_UNROLL for (int m = 0; m < M; ++m) {
    _mm256_storeu_ps(y[m], acc[m][0]);
    _mm256_storeu_ps(y[m] + 8, acc[m][1]);
  }
}

// The same for a panel's results, whose rows of sixteen are 32 apart.
template <int M>
inline void add_to_panel(const __m256i (&dot)[M][2], const float* scales, const Inputs& in, int m0,
                         int block, float* c) {
  __m256 acc[M][2];
  GM_UNROLL for (int m = 0; m < M; ++m)
    GM_UNROLL for (int half = 0; half < 2; ++half)
      acc[m][half] = block == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(c + m * 32 + half * 8);
  add_scaled<M>(dot, scales, in, m0, block, acc);
  GM_UNROLL for (int m = 0; m < M; ++m)
    GM_UNROLL for (int half = 0; half < 2; ++half)
      _mm256_storeu_ps(c + m * 32 + half * 8, acc[m][half]);
}

// Six bits from the nibbles of quad i and of quad i + 4 of a group and the two planes above them.
template <int I>
inline void six_bits(__m256i w, __m256i h0, __m256i h1, __m256i* a, __m256i* b) {
  const __m256i high = _mm256_set1_epi8(48);
  if constexpr (I == 0) h0 = _mm256_slli_epi16(h0, 4), h1 = _mm256_slli_epi16(h1, 4);
  if constexpr (I == 1) h0 = _mm256_slli_epi16(h0, 2), h1 = _mm256_slli_epi16(h1, 2);
  if constexpr (I == 3) h0 = _mm256_srli_epi16(h0, 2), h1 = _mm256_srli_epi16(h1, 2);
  *a = _mm256_or_si256(low_nibbles(w), _mm256_and_si256(h0, high));
  *b = _mm256_or_si256(high_nibbles(w), _mm256_and_si256(h1, high));
}

// Calls each(i, half, six bits of quad i, of quad i + 4) for eight rows and all quads of a group of
// int6.
template <class Each>
inline void unpack_int6(const uint8_t* data, const Each& each) {
  GM_UNROLL for (int half = 0; half < 2; ++half) {
    const uint8_t* d = data + half * 32;
    const __m256i h0 = loadi(d + 256), h1 = loadi(d + 320);
    __m256i a, b;
    six_bits<0>(loadi(d), h0, h1, &a, &b);
    each(0, half, a, b);
    six_bits<1>(loadi(d + 64), h0, h1, &a, &b);
    each(1, half, a, b);
    six_bits<2>(loadi(d + 128), h0, h1, &a, &b);
    each(2, half, a, b);
    six_bits<3>(loadi(d + 192), h0, h1, &a, &b);
    each(3, half, a, b);
  }
}

// The multipliers of a pair of groups as 16-bit numbers: of both, side by side, in each row.
inline __m256i pair_of_mults(__m256i mults, int pair) {
  return _mm256_and_si256(_mm256_srl_epi32(mults, _mm_cvtsi32_si128(4 * pair)),
                          _mm256_set1_epi32(0x000f000f));
}
// Of the first or the second alone, twice in each row.
inline __m256i even_mult(__m256i pair) {
  return _mm256_blend_epi16(pair, _mm256_slli_epi32(pair, 16), 0xaa);
}
inline __m256i odd_mult(__m256i pair) {
  return _mm256_blend_epi16(_mm256_srli_epi32(pair, 16), pair, 0xaa);
}
