// The softmax over a vocabulary. Each row is computed alone, in one order.
#include "kernels.h"
#include "threads.h"
#include "vec.h"

#include <functional>
#include <vector>

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
  share(rows, rows * size > SMALL, [&](long r) {
    const Softmax softmax(x + r * stride, size);
    best[r] = softmax.best;
    logprobs[r] = 0.0f - softmax.log_total;
  });
}

static void log_softmax(const float* x, long rows, long size, long stride, float* out) {
  share(rows, rows * size > SMALL, [&](long r) {
    const Softmax softmax(x + r * stride, size);
    const float* in = x + r * stride;
    long i = 0;
    for (; i + W <= size; i += W) store(out + r * size + i, load(in + i) - softmax.top - softmax.log_total);
    for (; i < size; i++) out[r * size + i] = in[i] - softmax.top - softmax.log_total;
  });
}

// Probabilities in units of 2^-30, as integers, so that sums are exact.
constexpr float UNITS = 1 << 30;
static inline vi units(vf logprobs) { return nearest(exponential(logprobs) * UNITS); }

static inline bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
  bool found = false;
  for (int i = 0; i < W; i++) found |= mask[i] != 0;
  return found;
#endif
}

// The bits of 32-bit integers, mixed.
static inline vu mixed(vu x) {
  for (int i = 0; i < 2; i++) x = (x >> 16 ^ x) * 0x45d9f3bu;
  return x >> 16 ^ x;
}

constexpr float LONGEST = 22.2f;  // the greatest -log(e) of a draw

// Index of the greatest x - log(e), where e = -log(1 - u) is exponentially distributed, and u uniform: a hash of
// the index and the key. As e > u, only numbers with u < exp(x - the greatest so far) need a logarithm.
static long draw(const float* logprobs, long size, uint32_t key) {
  float best = -INFINITY;
  long index = 0;
  alignas(64) float rest[W];
  vu indices;
  for (int j = 0; j < W; j++) indices[j] = j;
  for (long i = 0; i < size; i += W, indices += W) {
    const float* x = logprobs + i;
    if (i + W > size) {
      for (int j = 0; j < W; j++) rest[j] = i + j < size ? logprobs[i + j] : -INFINITY;
      x = rest;
    }
    const vf ahead = load(x) - best;
    if (!any(ahead > -LONGEST)) continue;
    const vu bits = mixed(mixed(indices) ^ key) & 0x7fffffffu;
    const vf uniform = (__builtin_convertvector((vi)bits, vf) + 0.5f) * 0x1p-31f;
    const vi may_win = uniform < exponential(select(ahead < 0.0f, ahead, vf{})) * 1.0001f;
    if (!any(may_win)) continue;
    for (int j = 0; j < W; j++) {
      if (!may_win[j]) continue;
      const float score = x[j] - std::log(-std::log1p(-std::min(uniform[j], 1 - 0x1p-24f)));
      if (score > best) best = score, index = i + j;
    }
  }
  return index;
}

// Least score that stays of a row: of its best k (0: all), and of these the fewest that have the share p.
static float top_cut(const float* x, long size, long k, float p) {
  const Softmax softmax(x, size);
  float cut = -INFINITY;
  std::vector<float> best;  // a heap whose least number is in front
  if (k > 0 && k < size) {
    for (long i = 0; i < size; i++) {
      if ((long)best.size() == k) {
        if (i % W == 0 && i + W <= size && !any(load(x + i) > all(best.front()))) {
          i += W - 1;
          continue;
        }
        if (!(x[i] > best.front())) continue;
        std::pop_heap(best.begin(), best.end(), std::greater<float>());
        best.back() = x[i];
      } else {
        best.push_back(x[i]);
      }
      std::push_heap(best.begin(), best.end(), std::greater<float>());
    }
    cut = best.front();
  }
  if (!(p < 1)) return cut;
  vf totals = vf{};
  float total = 0;
  long i = 0;
  for (; i + W <= size; i += W) {
    const vf v = load(x + i);
    totals += select(v < all(cut), vf{}, exponential(v - softmax.top));
  }
  for (; i < size; i++) total += x[i] < cut ? 0 : exponential(x[i] - softmax.top);
  const float log_total = std::log(total + sum(totals));
  const int64_t goal = std::max<int64_t>(1, (int64_t)(p * UNITS));
  for (float depth : {3.0f, 6.0f, 9.0f, 12.0f, 24.0f}) {  // 24: what is below has no unit
    const float floor = std::max(cut, softmax.top - depth);
    best.clear();
    for (long j = 0; j < size; j++) {
      if (j % W == 0 && j + W <= size && !any(load(x + j) >= all(floor))) j += W - 1;
      else if (x[j] >= floor) best.push_back(x[j]);
    }
    std::sort(best.begin(), best.end(), std::greater<float>());
    int64_t reached = 0;
    for (size_t n = 0; n < best.size(); n++) {
      if (reached >= goal && n) return best[n - 1];
      reached += units(all(best[n] - softmax.top - log_total))[0];
    }
    if (reached >= goal) return best.back();
  }
  return cut;
}

extern "C" {
void tgi_draw(const float* logprobs, long rows, long size, long stride, const int32_t* keys, int64_t* out) {
  share(rows, rows * size > SMALL, [&](long r) { out[r] = draw(logprobs + r * stride, size, keys[r]); });
}
void tgi_top_cut(const float* x, long rows, long size, long stride, const int32_t* top_k, const float* top_p, float* cut) {
  share(rows, rows * size > SMALL, [&](long r) {
    cut[r] = top_cut(x + r * stride, size, top_k ? top_k[r] : 0, top_p ? top_p[r] : 1);
  });
}
void tgi_greedy(int kind, const void* x, long rows, long size, long stride, int64_t* best, float* logprobs) {
  if (kind == BFLOAT16) greedy((const bf16*)x, rows, size, stride, best, logprobs);
  else greedy((const float*)x, rows, size, stride, best, logprobs);
}
void tgi_log_softmax(const float* x, long rows, long size, long stride, float* out) {
  log_softmax(x, rows, size, stride, out);
}
}
