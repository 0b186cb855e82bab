// Vectors of floats as wide as the instruction set, and the few operations on them that the kernels need.
//
// GCC's vector extensions make one source serve every processor; intrinsics appear only where the processor has
// an instruction that the compiler does not find by itself (dot products of bfloat16).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef uint16_t bf16;  // bfloat16: the upper half of a float

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef int8_t vq __attribute__((vector_size(W)));
typedef uint8_t vuq __attribute__((vector_size(W)));

inline vf all(float x) { return vf{} + x; }
inline vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
inline vf load(const bf16* p) {
  vh v; memcpy(&v, p, sizeof v);
#if defined(__AVX512F__)
  return (vf)((vu)_mm512_maskz_cvtepu16_epi32(-1, (__m256i)v) << 16);  // GCC 12 converts by halves, and warns
#else
  return (vf)(__builtin_convertvector(v, vu) << 16);
#endif
}
inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
inline void store(bf16* p, vf v) {  // rounds to the nearest, ties to even; a NaN stays one
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &h, sizeof h);
#else
  vu bits = (vu)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  vi number = v == v;
  vh h = __builtin_convertvector((rounded & (vu)number) | (~(vu)number & 0x7fc0u), vh);
  memcpy(p, &h, sizeof h);
#endif
}
inline float widen(float x) { return x; }
inline float widen(bf16 x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
inline void narrow(float* p, float x) { *p = x; }
inline void narrow(bf16* p, float x) {
  uint32_t u; memcpy(&u, &x, 4);
  *p = x == x ? (u + 0x7fffu + ((u >> 16) & 1u)) >> 16 : 0x7fc0;
}
inline vf select(vi mask, vf a, vf b) { return mask ? a : b; }
inline vf maximum(vf a, vf b) { return a > b ? a : b; }
inline float sum(vf v) {  // in one fixed order
  float total = 0;
  for (int i = 0; i < W; i++) total += v[i];
  return total;
}
inline float largest(vf v) { float m = v[0]; for (int i = 1; i < W; i++) m = std::max(m, v[i]); return m; }

// e^x for x <= 0, to 2 ulp; 0 below -87. x = n ln 2 + r, |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf.
inline vf exponential(vf x) {
  vi finite = x > all(-87.0f);
  x = select(finite, x, all(-87.0f));
  vf n = x * 1.44269504f;
  n = __builtin_convertvector(__builtin_convertvector(n - 0.5f, vi), vf);  // x <= 0: truncation rounds to nearest
  vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vf p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  return select(finite, p * (vf)power, vf{});
}
inline float exponential(float x) { return exponential(all(x))[0]; }

// tanh(x) = (1 - e^-2|x|) / (1 + e^-2|x|), with the sign of x.
inline vf hyperbolic_tangent(vf x) {
  vi negative = x < vf{};
  vf e = exponential(select(negative, x, -x) * 2.0f), t = (1.0f - e) / (1.0f + e);
  return select(negative, -t, t);
}

inline vi nearest(vf x) {  // the nearest integers, ties to even
#if defined(__AVX512F__)
  return (vi)_mm512_maskz_cvtps_epi32(-1, (__m512)x);  // GCC 12 warns of the plain one
#elif defined(__AVX__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (vi)_mm_cvtps_epi32((__m128)x);
#else
  vi n;
  for (int i = 0; i < W; i++) n[i] = (int32_t)lrintf(x[i]);
  return n;
#endif
}

// acc + a[0] b[.][0] + a[1] b[.][1]: b has W pairs of numbers, a is one pair that meets them all.
inline vf dot_pairs(vf acc, const bf16* a, const bf16* b) {
#if defined(__AVX512BF16__)
  int32_t pair; memcpy(&pair, a, 4);
  return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_loadu_si512(b), (__m512bh)_mm512_set1_epi32(pair));
#else
  vu v; memcpy(&v, b, sizeof v);
  acc += (vf)(v << 16) * widen(a[0]);
  return acc + (vf)(v & 0xffff0000u) * widen(a[1]);
#endif
}
inline vf dot_pairs(vf acc, const float* a, const float* b) {  // in pairs of vectors: W first numbers, W second ones
  acc += load(b) * a[0];
  return acc + load(b + W) * a[1];
}

// Bytes of a table of 16, which is repeated in the whole vector, by their places in it, which are below 16.
inline vu look_up(vu table, vu places) {
#if defined(__AVX512BW__)
  return (vu)_mm512_shuffle_epi8((__m512i)table, (__m512i)places);
#elif defined(__AVX2__)
  return (vu)_mm256_shuffle_epi8((__m256i)table, (__m256i)places);
#elif defined(__aarch64__)
  return (vu)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)places);
#else
  typedef uint8_t vb __attribute__((vector_size(W * 4)));
  vb numbers = {};
  for (int i = 0; i < 16; i++) numbers |= (vb)((vb)places == (uint8_t)i) & ((vb)table)[i];
  return (vu)numbers;
#endif
}

// Sums of products of W quads of unsigned bytes with one quad of signed bytes, exact.
inline vi dot_quads(vi acc, vu unsigned_quads, int32_t signed_quad) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)unsigned_quads, _mm512_set1_epi32(signed_quad));
#elif defined(__AVXVNNI__)
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)unsigned_quads, _mm256_set1_epi32(signed_quad));
#elif defined(__SSE2__)  // in pairs of 16 bits: the even bytes, then the odd ones
  typedef int16_t vs __attribute__((vector_size(W * 4)));
  const vi quad = vi{} + signed_quad;
  const vs even = (vs)(unsigned_quads & 0x00ff00ffu), odd = (vs)(unsigned_quads >> 8 & 0x00ff00ffu);
  const vs even_factor = ((vs)quad << 8) >> 8, odd_factor = (vs)quad >> 8;
#if defined(__AVX512F__)
  return acc + (vi)_mm512_madd_epi16((__m512i)even, (__m512i)even_factor) +
         (vi)_mm512_madd_epi16((__m512i)odd, (__m512i)odd_factor);
#elif defined(__AVX2__)
  return acc + (vi)_mm256_madd_epi16((__m256i)even, (__m256i)even_factor) +
         (vi)_mm256_madd_epi16((__m256i)odd, (__m256i)odd_factor);
#else
  return acc + (vi)_mm_madd_epi16((__m128i)even, (__m128i)even_factor) +
         (vi)_mm_madd_epi16((__m128i)odd, (__m128i)odd_factor);
#endif
#else
  for (int i = 0; i < 4; i++) acc += (vi)(unsigned_quads >> 8 * i & 0xffu) * (int8_t)(signed_quad >> 8 * i);
  return acc;
#endif
}
