// The softmax over a vocabulary. Each row is computed alone, in one order.
#include "kernels.h"
#include "vec.h"

#include <omp.h>

constexpr long SMALL = 1 << 15;  // numbers below which a second thread is not worth waking

// The softmax of a row of scores: log-probability = (score - top) - log_total.
struct Softmax {
  float top = -INFINITY, log_total = 0;
  long best = 0;  // index of the greatest score, the first of equals

  template <typename T> Softmax(const T* x, long size) {
    const long whole = size - size % W;
    vf tops = all(-INFINITY);
    vi places = vi{}, wrong = vi{};
    for (long i = 0; i < whole; i += W) {
      const vf v = load(x + i);
      const vi above = v > tops;
      tops = select(above, v, tops);
      places = (above & (vi{} + (int32_t)i)) | (~above & places);
      wrong |= v != v;
    }
    bool number = true;
    best = size;
    for (int lane = 0; lane < W && whole; lane++) {
      const long place = places[lane] + lane;
      if (tops[lane] > top || (tops[lane] == top && place < best)) { top = tops[lane]; best = place; }
      number &= !wrong[lane];
    }
    for (long i = whole; i < size; i++) {
      const float v = widen(x[i]);
      if (v > top || best == size) { top = v; best = i; }
      number &= v == v;
    }
    vf totals = vf{};
    for (long i = 0; i < whole; i += W) totals += exponential(load(x + i) - top);
    float total = sum(totals);
    for (long i = whole; i < size; i++) total += exponential(widen(x[i]) - top);
    log_total = number && std::isfinite(top) ? std::log(total) : NAN;
  }
};

template <typename T> static void greedy(const T* x, long rows, long size, long stride, int64_t* best, float* logprobs) {
#pragma omp parallel for if (rows > 1 && rows * size > SMALL)
  for (long r = 0; r < rows; r++) {
    const Softmax softmax(x + r * stride, size);
    best[r] = softmax.best;
    logprobs[r] = 0.0f - softmax.log_total;
  }
}

static void log_softmax(const float* x, long rows, long size, long stride, float* out) {
#pragma omp parallel for if (rows > 1 && rows * size > SMALL)
  for (long r = 0; r < rows; r++) {
    const Softmax softmax(x + r * stride, size);
    const float* in = x + r * stride;
    long i = 0;
    for (; i + W <= size; i += W) store(out + r * size + i, load(in + i) - softmax.top - softmax.log_total);
    for (; i < size; i++) out[r * size + i] = in[i] - softmax.top - softmax.log_total;
  }
}

extern "C" {
void tgi_greedy(int kind, const void* x, long rows, long size, long stride, int64_t* best, float* logprobs) {
  if (kind == BFLOAT16) greedy((const bf16*)x, rows, size, stride, best, logprobs);
  else greedy((const float*)x, rows, size, stride, best, logprobs);
}
void tgi_log_softmax(const float* x, long rows, long size, long stride, float* out) {
  log_softmax(x, rows, size, stride, out);
}
}
