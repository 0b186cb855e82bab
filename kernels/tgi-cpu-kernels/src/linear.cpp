// Linear layers: y = x w^T (+ bias) (+ residual).
//
// A weight [n, k] is packed into units of UNIT output columns. In a unit, pairs of input features follow one
// another, and for each pair the columns: bfloat16 as [k/2][UNIT][2], float32 as [k/2][UNIT/W][2][W].
// So a unit is read once from front to back, which is what memory is fastest at.
//
// Every output is the sum over the pairs in their order, whatever the number of rows: a row's result does not
// depend on its neighbours.
#include "linear.h"

static long pairs(long k) { return (k + 1) / 2; }

// Place of weight (column c of a unit, input feature i), in numbers from the beginning of the unit.
static long place(const bf16*, long c, long i) { return (i / 2 * UNIT + c) * 2 + i % 2; }
static long place(const float*, long c, long i) { return ((i / 2 * VECTORS + c / W) * 2 + i % 2) * W + c % W; }

template <typename T> static void pack(const T* w, long n, long k, long stride, T* out) {
  share(units(n), true, [&](long u) {
    T* unit = out + u * pairs(k) * 2 * UNIT;
    memset(unit, 0, pairs(k) * 2 * UNIT * sizeof(T));
    for (long c = 0; c < std::min<long>(UNIT, n - u * UNIT); c++)
      for (long i = 0; i < k; i++) unit[place(unit, c, i)] = w[(u * UNIT + c) * stride + i];
  });
}

// Sums of M rows and one unit. Activations of pair p and row m are at x + p * step + m * 2.
template <typename T, int M> static void block(const T* x, long step, const T* unit, long k, float (*out)[UNIT]) {
  vf acc[M][VECTORS];
  for (int m = 0; m < M; m++)
    for (int v = 0; v < VECTORS; v++) acc[m][v] = vf{};
  for (long p = 0; p < pairs(k); p++, unit += 2 * UNIT) {
    for (unsigned b = 0; b < 2 * UNIT * sizeof(T); b += 64) __builtin_prefetch((const char*)unit + AHEAD + b);
    for (int m = 0; m < M; m++)
      for (int v = 0; v < VECTORS; v++) acc[m][v] = dot_pairs(acc[m][v], x + p * step + m * 2, unit + v * 2 * W);
  }
  for (int m = 0; m < M; m++)
    for (int v = 0; v < VECTORS; v++) store(out[m] + v * W, acc[m][v]);
}

template <typename T, int M = ROWS>
static void block_of(int rows, const T* x, long step, const T* unit, long k, float (*out)[UNIT]) {
  if constexpr (M > 0) {
    if (rows == M) block<T, M>(x, step, unit, k, out);
    else block_of<T, M - 1>(rows, x, step, unit, k, out);
  }
}

// Activations of one group of up to ROWS rows as [pairs][rows][2].
template <typename T> static void gather(const T* x, long rows, long k, long stride, T* out) {
  for (long p = 0; p < k / 2; p++)
    for (long m = 0; m < rows; m++) memcpy(out + (p * rows + m) * 2, x + m * stride + p * 2, 2 * sizeof(T));
  if (k % 2)
    for (long m = 0; m < rows; m++) {
      out[((k / 2) * rows + m) * 2] = x[m * stride + k - 1];
      out[((k / 2) * rows + m) * 2 + 1] = 0;
    }
}

template <typename T> struct Linear {
  const T *x, *w;
  Output<T> out;
  long m, n, k, x_stride;

  void run() const {
    const long group = group_rows(m), groups = (m + group - 1) / group;
    T* gathered = scratch<T>(m * pairs(k) * 2);
    share(groups, m * k > SMALL, [&](long g) {
      gather(x + g * group * x_stride, std::min(group, m - g * group), k, x_stride, gathered + g * group * pairs(k) * 2);
    });
    for_each_tile(m, n, m * n * k, [&](long u, long begin, long end) {
      alignas(64) float sums[ROWS][UNIT];
      for (long row = begin; row < end; row += group) {
        const long rows = std::min(group, m - row);
        block_of<T>(rows, gathered + row * pairs(k) * 2, rows * 2, w + u * pairs(k) * 2 * UNIT, k, sums);
        for (long i = 0; i < rows; i++) out.write(row + i, u * UNIT, sums[i]);
      }
    });
  }
};

template <typename T> static void linear(const LinearArguments* a) {
  Linear<T>{(const T*)a->x, (const T*)a->w, Output<T>(*a), a->m, a->n, a->k, a->x_stride}.run();
}

extern "C" {
long tgi_packed_size(long n, long k) { return units(n) * UNIT * pairs(k) * 2; }
void tgi_pack(int kind, const void* w, long n, long k, long stride, void* out) {
  if (kind == BFLOAT16) pack((const bf16*)w, n, k, stride, (bf16*)out);
  else pack((const float*)w, n, k, stride, (float*)out);
}
void tgi_linear(int kind, const LinearArguments* a) { kind == BFLOAT16 ? linear<bf16>(a) : linear<float>(a); }
}
