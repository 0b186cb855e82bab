// Operations on the rows of activations: norms, gates, rotary positions. Each row is computed alone, in one order.
#include "kernels.h"
#include "threads.h"
#include "vec.h"

template <typename T> static void norm_row(const T* in, const T* weight, float epsilon, long size, T* out) {
  vf squares = vf{};
  float rest = 0;
  long i = 0;
  for (; i + W <= size; i += W) { const vf v = load(in + i); squares += v * v; }
  for (long j = i; j < size; j++) rest += widen(in[j]) * widen(in[j]);
  const float factor = 1.0f / sqrtf((sum(squares) + rest) / size + epsilon);
  for (i = 0; i + W <= size; i += W) store(out + i, load(in + i) * factor * load(weight + i));
  for (; i < size; i++) narrow(out + i, widen(in[i]) * factor * widen(weight[i]));
}

template <typename T>
static void rms_norm(const T* x, const T* weight, float epsilon, long rows, long size, long stride, T* out) {
  share(rows, rows * size > SMALL, [&](long r) { norm_row(x + r * stride, weight, epsilon, size, out + r * size); });
}

// Each head of x [tokens, heads, size] in place.
template <typename T>
static void head_norm(T* x, const T* weight, float epsilon, long tokens, long heads, long size, long stride) {
  share(tokens, tokens * heads * size > SMALL, [&](long t) {
    for (T* head = x + t * stride; head < x + t * stride + heads * size; head += size)
      norm_row(head, weight, epsilon, size, head);
  });
}

struct Gate { float steepness, limit, added; };
constexpr Gate GATES[] = {{1, INFINITY, 0}, {1.702f, 7, 1}};  // SILU, SWIGLU

// x / (1 + e^-(steepness x)) times y + added, where x has an upper limit, and y the same on both sides.
static inline vf gated(const Gate& gate, vf x, vf y) {  // by e^-|x| so that nothing overflows
  const vf limit = all(gate.limit);
  x = select(x > limit, limit, x);
  y = select(y > limit, limit, select(y < -limit, -limit, y));
  const vi negative = x < vf{};
  const vf e = exponential(select(negative, x, -x) * gate.steepness);
  return x * select(negative, e, all(1)) / (1.0f + e) * (y + gate.added);
}

// The gate of the first half of x [rows, 2 size], and the second.
template <typename T> static void gate_mul(const Gate& kind, const T* x, long rows, long size, T* out) {
  share(rows, rows * size > SMALL, [&](long r) {
    const T *gate = x + r * 2 * size, *up = gate + size;
    long i = 0;
    for (; i + W <= size; i += W) store(out + r * size + i, gated(kind, load(gate + i), load(up + i)));
    for (; i < size; i++) narrow(out + r * size + i, gated(kind, all(widen(gate[i])), all(widen(up[i])))[0]);
  });
}

// Rotate the first `rotated` features of every head in place, halves paired. cos, sin: [tokens, rotated / 2].
template <typename T>
static void rotary(T* x, long tokens, long heads, long size, long stride, const float* cos, const float* sin, long rotated) {
  const long half = rotated / 2;
  share(tokens, tokens * heads * size > SMALL, [&](long t) {
    for (long h = 0; h < heads; h++) {
      T *a = x + t * stride + h * size, *b = a + half;
      const float *c = cos + t * half, *s = sin + t * half;
      long i = 0;
      for (; i + W <= half; i += W) {
        const vf u = load(a + i), v = load(b + i), cosine = load(c + i), sine = load(s + i);
        store(a + i, u * cosine - v * sine);
        store(b + i, v * cosine + u * sine);
      }
      for (; i < half; i++) {
        const float u = widen(a[i]), v = widen(b[i]);
        narrow(a + i, u * c[i] - v * s[i]);
        narrow(b + i, v * c[i] + u * s[i]);
      }
    }
  });
}

extern "C" {
const char tgi_sources[] = TGI_SOURCES;
void tgi_rms_norm(int kind, const void* x, const void* weight, float epsilon, long rows, long size, long stride, void* out) {
  if (kind == BFLOAT16) rms_norm((const bf16*)x, (const bf16*)weight, epsilon, rows, size, stride, (bf16*)out);
  else rms_norm((const float*)x, (const float*)weight, epsilon, rows, size, stride, (float*)out);
}
void tgi_head_norm(int kind, void* x, const void* weight, float epsilon, long tokens, long heads, long size, long stride) {
  if (kind == BFLOAT16) head_norm((bf16*)x, (const bf16*)weight, epsilon, tokens, heads, size, stride);
  else head_norm((float*)x, (const float*)weight, epsilon, tokens, heads, size, stride);
}
void tgi_gate(int kind, long gate, const void* x, long rows, long size, void* out) {
  if (kind == BFLOAT16) gate_mul(GATES[gate], (const bf16*)x, rows, size, (bf16*)out);
  else gate_mul(GATES[gate], (const float*)x, rows, size, (float*)out);
}
void tgi_rotary(int kind, void* x, long tokens, long heads, long size, long stride, const float* cos, const float* sin,
                long rotated) {
  if (kind == BFLOAT16) rotary((bf16*)x, tokens, heads, size, stride, cos, sin, rotated);
  else rotary((float*)x, tokens, heads, size, stride, cos, sin, rotated);
}
}
