// Vectors of sixteen floats on any instruction set: GCC and Clang split them as needed. Included
// only by isa_*.cpp, inside the namespace of one instruction set.

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef int32_t i16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t b16 __attribute__((vector_size(16)));
typedef int8_t b16u __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint16_t h16u __attribute__((vector_size(32), aligned(2), may_alias));

// Before a loop over an array of registers: GCC unrolls others too late to keep the array in them.
#ifdef __clang__
#define GM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define GM_UNROLL _Pragma("GCC unroll 16")
#endif

// Calls each.operator()<n>(first row) for parts of `rows` rows: as many of the first size as there are,
// then of the smaller ones.
template <int kSize, int... kSmaller, class Each>
inline void in_parts(int rows, const Each& each, int first = 0) {
  for (; rows - first >= kSize; first += kSize) each.template operator()<kSize>(first);
  if constexpr (sizeof...(kSmaller) > 0) in_parts<kSmaller...>(rows, each, first);
}

constexpr int kPrefetchBytes = 2048;  // how far ahead weights are prefetched

inline void prefetch(const uint8_t* p) { __builtin_prefetch(p + kPrefetchBytes); }

inline v16 load(const float* p) { return *reinterpret_cast<const v16u*>(p); }
inline void save(float* p, v16 x) { *reinterpret_cast<v16u*>(p) = x; }
inline v16 splat(float x) { return v16{} + x; }

inline v16 fma(v16 a, v16 b, v16 c) {
#if defined(__AVX512F__)
  return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  union Halves {
    v16 all;
    __m256 half[2];
  } x{a}, y{b}, z{c};
  z.half[0] = _mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]);
  z.half[1] = _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1]);
  return z.all;
#elif defined(__aarch64__)
  union Quarters {
    v16 all;
    float32x4_t part[4];
  } x{a}, y{b}, z{c};
  for (int i = 0; i < 4; ++i) z.part[i] = vfmaq_f32(z.part[i], x.part[i], y.part[i]);
  return z.all;
#else
  return a * b + c;
#endif
}

// Adds in a fixed order, so that the sum does not depend on the compiler.
inline float sum(v16 x) {
  float t[16];
  save(t, x);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) t[i] += t[i + step];
  return t[0];
}

// Lane i is sum(x[i]), bit for bit, in far fewer steps than sixteen sums.
inline v16 sums(const v16 (&x)[16]) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define GEMMULE_SUMS 1
#endif
#endif
#ifdef GEMMULE_SUMS
  v16 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19,
                                   20, 21, 22, 23) +
           __builtin_shufflevector(x[2 * i], x[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25,
                                   26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; ++i)
    b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18,
                                   19, 24, 25, 26, 27) +
           __builtin_shufflevector(a[2 * i], a[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                                   23, 28, 29, 30, 31);
  for (int i = 0; i < 2; ++i)
    c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20,
                                   21, 24, 25, 28, 29) +
           __builtin_shufflevector(b[2 * i], b[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22,
                                   23, 26, 27, 30, 31);
  return __builtin_shufflevector(c[0], c[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                 30) +
         __builtin_shufflevector(c[0], c[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29,
                                 31);
#else
  v16 result;
  for (int i = 0; i < 16; ++i) result[i] = sum(x[i]);
  return result;
#endif
}

inline int32_t sum(i16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) total += x[i];
  return total;
#endif
}

inline v16 select(i16 mask, v16 yes, v16 no) {
  return (v16)((mask & (i16)yes) | (~mask & (i16)no));
}
inline v16 maximum(v16 a, v16 b) { return select(a > b, a, b); }
inline v16 minimum(v16 a, v16 b) { return select(a < b, a, b); }
inline v16 magnitude(v16 x) { return (v16)((i16)x & 0x7fffffff); }

inline float largest(v16 x) {
  float t[16];
  save(t, x);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) t[i] = t[i] > t[i + step] ? t[i] : t[i + step];
  return t[0];
}

// The nearest integer, ties to even, for |x| < 2^22.
inline i16 nearest(v16 x) {
  const v16 shifted = x + 12582912.0f;
  return (i16)shifted - 0x4b400000;
}

// e^x within 2 units in the last place; x is clamped to [-87, 88].
inline v16 exponential(v16 x) {
  x = minimum(maximum(x, splat(-87.0f)), splat(88.0f));
  const v16 shifted = fma(x, splat(1.44269504f), splat(12582912.0f));
  const v16 n = shifted - 12582912.0f;
  v16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  v16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const i16 power = ((i16)shifted - 0x4b400000 + 127) << 23;
  return p * (v16)power;
}

// cap * tanh(x / cap). Near zero tanh uses its series: 1 - 2 / (e^2t + 1) would lose digits.
inline v16 soft_cap(v16 x, float cap, float inverse) {
  const v16 t = x * inverse;
  const v16 e = exponential(t * 2.0f);
  const v16 far = 1.0f - 2.0f / (e + 1.0f);
  const v16 s = t * t;
  v16 p = fma(s, splat(-17.0f / 315.0f), splat(2.0f / 15.0f));
  p = fma(p, s, splat(-1.0f / 3.0f));
  const v16 near = fma(p * s, t, t);
  return select(s < 0.01f, near, far) * cap;
}

inline v16 from_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (v16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  union Halves {
    v16 all;
    __m256 half[2];
  } z;
  z.half[0] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  z.half[1] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
  return z.all;
#elif defined(__aarch64__)
  union Quarters {
    v16 all;
    float32x4_t part[4];
  } z;
  for (int i = 0; i < 4; ++i)
    z.part[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return z.all;
#else
  const i16 h = __builtin_convertvector(*reinterpret_cast<const h16u*>(p), i16);
  // A multiplication shifts the exponent, which also converts subnormal halves correctly.
  const v16 x = (v16)((h & 0x7fff) << 13) * 0x1p112f;
  return (v16)((i16)x | ((h & 0x8000) << 16));
#endif
}

inline uint16_t to_half(float f) {
  f = f > 65504.0f ? 65504.0f : f < -65504.0f ? -65504.0f : f;
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(f, 0));
#else
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits < 0x38800000) {  // below the smallest normal half: steps of 2^-24
    float m;
    std::memcpy(&m, &bits, 4);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(m * 0x1p24f)));
  }
  bits += 0xfff + (bits >> 13 & 1);  // to nearest, ties to even
  return static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13));
#endif
}

// The compilers convert such vectors element by element.
inline v16 from_bytes(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (v16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
  union Halves {
    v16 all;
    __m256 half[2];
  } z;
  for (int i = 0; i < 2; ++i) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i));
    z.half[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  return z.all;
#else
  return __builtin_convertvector(
      __builtin_convertvector(*reinterpret_cast<const b16u*>(p), i16), v16);
#endif
}

inline v16 from_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
  const i16 wide = __builtin_convertvector(*reinterpret_cast<const h16u*>(p), i16);
  return (v16)(wide << 16);
#endif
}
