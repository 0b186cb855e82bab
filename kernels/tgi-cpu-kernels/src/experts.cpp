// The experts of a layer in one call: each computes the tokens that chose it, gathered, and a token adds up its own.
//
// A token's result is the sum over its experts in the order of their numbers, and does not depend on other tokens.
#include "kernels.h"
#include "threads.h"
#include "vec.h"

#include <vector>

constexpr long MANY = 8;  // experts that are shared among threads whole, instead of one after another in parts

template <typename T> struct MixedExperts {
  const ExpertsArguments& a;
  const int kind;
  std::vector<long> begins, tokens;  // of each expert, and past the last one; of each pair of expert and token
  std::vector<float> weights;        // of each pair

  explicit MixedExperts(int kind, const ExpertsArguments& a) : a(a), kind(kind), begins(a.count + 1) {
    const long all = a.tokens * a.top;
    for (long i = 0; i < all; i++)
      if (mine(i)) begins[expert(i) + 1]++;
    for (long e = 0; e < a.count; e++) begins[e + 1] += begins[e];
    tokens.resize(begins[a.count]);
    weights.resize(begins[a.count]);
    std::vector<long> next = begins;
    for (long i = 0; i < all; i++) {
      if (!mine(i)) continue;
      const long pair = next[expert(i)]++;
      tokens[pair] = i / a.top;
      weights[pair] = widen(((const T*)a.weights)[i]);
    }
  }
  long expert(long i) const { return a.chosen[i] - a.first; }
  bool mine(long i) const { return expert(i) >= 0 && expert(i) < a.count; }

  // Results of the pairs of one expert.
  void compute(long e, T* out) const {
    static thread_local std::vector<T> memory;
    const long begin = begins[e], rows = begins[e + 1] - begin, width = a.hidden + 3 * a.inner;
    if ((long)memory.size() < rows * width) memory.resize(rows * width);
    T *x = memory.data(), *gate_up = x + rows * a.hidden, *gated = gate_up + rows * 2 * a.inner;
    for (long i = 0; i < rows; i++)
      memcpy(x + i * a.hidden, (const T*)a.x + tokens[begin + i] * a.x_stride, a.hidden * sizeof(T));
    multiply(kind, a.up[e], x, rows, 2 * a.inner, a.hidden, nullptr, gate_up);
    tgi_gate(kind, a.gate, gate_up, rows, a.inner, gated);
    multiply(kind, a.down[e], gated, rows, a.hidden, a.inner, nullptr, out + begin * a.hidden);
  }

  void run() const {
    static thread_local std::vector<T> memory;
    const long pairs = begins[a.count];
    if ((long)memory.size() < pairs * a.hidden) memory.resize(pairs * a.hidden);
    T* out = memory.data();
    std::vector<long> active, order(pairs), ends(a.tokens);
    for (long e = 0; e < a.count; e++)
      if (begins[e] < begins[e + 1]) active.push_back(e);
    const auto expert = [&](long i) { compute(active[i], out); };
    if ((long)active.size() >= MANY) share(active.size(), true, expert);
    else
      for (long i = 0; i < (long)active.size(); i++) expert(i);
    std::vector<long> of_token(a.tokens * a.top);  // pairs of each token, in the order of experts
    for (long pair = 0; pair < pairs; pair++) of_token[tokens[pair] * a.top + ends[tokens[pair]]++] = pair;
    share(a.tokens, pairs * a.hidden > SMALL, [&](long t) {
      T* y = (T*)a.y + t * a.hidden;
      const long* mine = of_token.data() + t * a.top;
      long i = 0;
      for (; i + W <= a.hidden; i += W) {
        vf total = vf{};
        for (long j = 0; j < ends[t]; j++) total += load(out + mine[j] * a.hidden + i) * weights[mine[j]];
        store(y + i, total);
      }
      for (; i < a.hidden; i++) {
        float total = 0;
        for (long j = 0; j < ends[t]; j++) total += widen(out[mine[j] * a.hidden + i]) * weights[mine[j]];
        narrow(y + i, total);
      }
    });
  }
};

extern "C" void tgi_experts(int kind, const ExpertsArguments* a) {
  if (kind == BFLOAT16) MixedExperts<bf16>(kind, *a).run();
  else MixedExperts<float>(kind, *a).run();
}
