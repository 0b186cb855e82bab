// Paged attention for rows of any length: decode rows, chunks of prompts, and both in one call.
//
// The cache of a layer is divided into blocks of BLOCK tokens. Within a block and key/value head, keys are stored as
// [size/2][BLOCK][2], so that the scores of BLOCK tokens are computed side by side, and values as [BLOCK/2][size][2]:
// a pair of tokens is added at once. Weights are rounded to the type of the values first.
//
// A query sees tokens in chunks of CHUNK, at multiples of CHUNK from position 0. For each chunk it gets a maximum, a
// sum and a weighted value; the chunks are then merged in their order. So a query's result depends on its context
// alone: not on other rows, on the length of its row, or on how the work is divided over threads.
#include "kernels.h"
#include "threads.h"
#include "vec.h"

#include <vector>

constexpr int BLOCK = 16;
constexpr int CHUNK = 256;
constexpr int TILE = W == 16 ? 12 : 4;  // most queries that read a key together
constexpr int FEW = 4;  // queries that wait for memory, so that what they read next is fetched
constexpr long MAX_SIZE = 256;
constexpr long PARTIAL = 2;  // numbers before the weighted value: maximum and sum

// Place of feature i of a token's key in its block; float32 has W tokens side by side.
static inline long key_place(const bf16*, long token, long i) { return (i / 2 * BLOCK + token) * 2 + i % 2; }
static inline long key_place(const float*, long token, long i) {
  return ((i / 2 * (BLOCK / W) + token / W) * 2 + i % 2) * W + token % W;
}

static inline long value_place(const bf16*, long token, long i, long size) { return (token / 2 * size + i) * 2 + token % 2; }
static inline long value_place(const float*, long token, long i, long size) {
  return ((token / 2 * (size / W) + i / W) * 2 + token % 2) * W + i % W;
}

// How many of `left` queries are computed together: there is a program for each of these numbers.
static inline long tile(long left) { return left >= TILE ? TILE : left >= 8 ? 8 : std::min(4L, left); }

// Blocks, or vectors of features, that are computed side by side for N queries: as many sums as there are registers.
constexpr int side(int n) { return W == 16 && n <= 4 ? 4 : 2; }

template <typename T>
static void store_kv(const T* key, const T* value, long tokens, long kv_heads, long size, long key_stride,
                     long value_stride, const int32_t* slots, T* keys, T* values) {
  share(tokens, tokens * kv_heads * size > SMALL, [&](long t) {
    for (long h = 0; h < kv_heads; h++) {
      const long block = (slots[t] / BLOCK * kv_heads + h) * BLOCK * size, token = slots[t] % BLOCK;
      for (long i = 0; i < size; i++) {
        keys[block + key_place(keys, token, i)] = key[t * key_stride + h * size + i];
        values[block + value_place(values, token, i, size)] = value[t * value_stride + h * size + i];
      }
    }
  });
}

template <typename T> struct Attention {
  const AttentionArguments& a;

  long first(long row, long token) const { return first_of(a.starts[row] + token); }
  long first_of(long position) const {  // position of the first token that a query token sees
    if (a.window < 0) return position - position % -a.window;
    return a.window ? std::max(0L, position + 1 - a.window) : 0;
  }
  long block(long row, long position, long kv_head) const {
    const long base = a.bases ? a.bases[row] : 0;
    return (a.tables[row * a.width + (position - base) / BLOCK] * a.kv_heads + kv_head) * BLOCK * a.size;
  }

  // Scores of N queries, at q, with the tokens of B blocks, into scores[n][offset...]. Several blocks at once give
  // the processor sums that do not wait for one another.
  template <int N, int B>
  void scores_of(const T* const* q, const T* const* keys, float (*scores)[CHUNK], long offset) const {
    for (int part = 0; part < BLOCK / W; part++) {
      vf acc[B][N];
      for (int b = 0; b < B; b++)
        for (int n = 0; n < N; n++) acc[b][n] = vf{};
      for (long p = 0; p < a.size / 2; p++)
        for (int b = 0; b < B; b++)
          for (int n = 0; n < N; n++)
            acc[b][n] = dot_pairs(acc[b][n], q[n] + p * 2, keys[b] + (p * BLOCK + part * W) * 2);
      for (int b = 0; b < B; b++)
        for (int n = 0; n < N; n++) store(scores[n] + offset + b * BLOCK + part * W, acc[b][n]);
    }
  }

  // Weighted sums of N queries over the values of `blocks` blocks, V vectors of features from `i` on.
  template <int N, int V>
  void add_values(const T* const* values, long blocks, long i, const T (*weights)[CHUNK], long offset, float* const* out) const {
    vf acc[N][V];
    for (int n = 0; n < N; n++)
      for (int v = 0; v < V; v++) acc[n][v] = vf{};
    for (long b = 0; b < blocks; b++) {
      const T* value = values[b] + i * 2;
      for (int t = 0; t < BLOCK; t += 2, value += a.size * 2)
        for (int n = 0; n < N; n++)
          for (int v = 0; v < V; v++)
            acc[n][v] = dot_pairs(acc[n][v], weights[n] + offset + b * BLOCK + t, value + v * 2 * W);
    }
    for (int n = 0; n < N; n++)
      for (int v = 0; v < V; v++) store(out[n] + PARTIAL + i + v * W, acc[n][v]);
  }

  // Fetch a block from memory. The one before it is elsewhere, so that the processor does not guess it.
  void fetch(const T* block) const {
    for (long i = 0; i < BLOCK * a.size; i += 64 / sizeof(T)) __builtin_prefetch(block + i);
  }

  // One chunk for N queries of one key/value head; out[n] has maximum, sum, weighted value.
  template <int N>
  void chunk(long row, long kv_head, long from, const T* const* q, const long* position, const long* head,
             float* const* out) const {
    alignas(64) float scores[N][CHUNK];
    alignas(64) T weights[N][CHUNK];
    constexpr int SIDE = side(N);
    long begin = from + CHUNK, last = 0;
    for (int n = 0; n < N; n++) {
      begin = std::min(begin, std::max(from, first(row, position[n] - a.starts[row])));
      last = std::max(last, position[n]);
    }
    begin -= begin % BLOCK;
    const long end = std::min(from + CHUNK, last - last % BLOCK + BLOCK), blocks = (end - begin) / BLOCK;
    const T *keys[CHUNK / BLOCK], *values[CHUNK / BLOCK];
    for (long b = 0; b < blocks; b++) {
      const long place = block(row, begin + b * BLOCK, kv_head);
      keys[b] = (const T*)a.keys + place;
      values[b] = (const T*)a.values + place;
    }
    long b = 0;
    for (; b + SIDE <= blocks; b += SIDE) {
      for (long i = b; N <= FEW && i < b + SIDE; i++) {
        if (i + SIDE < blocks) fetch(keys[i + SIDE]);
        fetch(values[i]);
      }
      scores_of<N, SIDE>(q, keys + b, scores, begin - from + b * BLOCK);
    }
    for (; b < blocks; b++) {
      if (N <= FEW) fetch(values[b]);
      scores_of<N, 1>(q, keys + b, scores, begin - from + b * BLOCK);
    }
    for (int n = 0; n < N; n++) weigh(scores[n], weights[n], from, begin, end, position[n], head[n], out[n]);
    long i = 0;
    for (; i + SIDE * W <= a.size; i += SIDE * W) add_values<N, SIDE>(values, blocks, i, weights, begin - from, out);
    for (; i < a.size; i += W) add_values<N, 1>(values, blocks, i, weights, begin - from, out);
  }

  // Weights of the tokens from scores: e^(score - maximum), 0 for tokens that the query does not see.
  void weigh(float* scores, T* weights, long from, long begin, long end, long position, long head, float* out) const {
    const long visible = std::max(begin, first_of(position));
    const float slope = a.slopes ? a.slopes[head] : 0;
    const bool changed = a.slopes || a.softcap > 0;
    vf top = all(-INFINITY), total = vf{};
    float count[W];
    for (int i = 0; i < W; i++) count[i] = i;
    const vf lanes = load(count);
    for (long at = begin; at < end; at += W) {
      vf s = load(scores + at - from) * a.scale;
      if (changed || at < visible || at + W > position + 1) {
        const vf distance = lanes + (float)(at - position);
        if (a.softcap > 0) s = hyperbolic_tangent(s / a.softcap) * a.softcap;
        s += distance * slope;
        const vi hidden = (distance > vf{}) | (distance < all((float)(visible - position)));
        s = select(hidden, all(-INFINITY), s);
      }
      store(scores + at - from, s);
      top = maximum(s, top);
    }
    const float most = largest(top);
    for (long at = begin; at < end; at += W) {
      store(weights + at - from, most == -INFINITY ? vf{} : exponential(load(scores + at - from) - most));
      total += load(weights + at - from);
    }
    out[0] = most;
    out[1] = sum(total);
  }

  // Merge the next chunk into what has been merged so far.
  void merge(float* into, const float* next) const {
    if (next[0] == -INFINITY) return;
    const float most = std::max(into[0], next[0]);
    const float mine = into[0] == -INFINITY ? 0 : exponential(into[0] - most), its = exponential(next[0] - most);
    into[0] = most;
    into[1] = into[1] * mine + next[1] * its;
    for (long i = 0; i < a.size; i += W)
      store(into + PARTIAL + i, load(into + PARTIAL + i) * mine + load(next + PARTIAL + i) * its);
  }

  void write(const float* merged, long head, T* out) const {
    const float nothing = a.sinks ? expf(a.sinks[head] - merged[0]) : 0;
    const float inverse = 1.0f / (merged[1] + nothing);
    for (long i = 0; i < a.size; i += W) store(out + i, load(merged + PARTIAL + i) * inverse);
  }

  // All chunks of up to TILE queries of a row, merged into out; or one chunk, if `only` is not negative.
  void queries(long row, long kv_head, long begin, long count, long only, float* out) const {
    const long readers = a.heads / a.kv_heads;
    const T* q[TILE];
    long position[TILE], head[TILE];
    alignas(64) float fresh[TILE][PARTIAL + 14 + MAX_SIZE];
    float *next[TILE], *into[TILE];
    long from = a.starts[row] + CHUNK, to = 0;
    for (long n = 0; n < count; n++) {
      const long token = (begin + n) / readers;
      head[n] = kv_head * readers + (begin + n) % readers;
      position[n] = a.starts[row] + token;
      q[n] = (const T*)a.query + (a.offsets[row] + token) * a.query_stride + head[n] * a.size;
      next[n] = fresh[n];
      into[n] = out + n * (PARTIAL + a.size);
      from = std::min(from, first(row, token));
      to = std::max(to, position[n]);
    }
    from -= from % CHUNK;
    if (only >= 0) {
      chunk_of(count, row, kv_head, only * CHUNK, q, position, head, into);
      return;
    }
    for (long at = from; at <= to; at += CHUNK) {
      if (at == from) {
        chunk_of(count, row, kv_head, at, q, position, head, into);
        continue;
      }
      chunk_of(count, row, kv_head, at, q, position, head, next);
      for (long n = 0; n < count; n++) merge(into[n], next[n]);
    }
  }
  void chunk_of(long count, long row, long kv_head, long from, const T* const* q, const long* position,
                const long* head, float* const* out) const {
    switch (count) {
      case 1: return chunk<1>(row, kv_head, from, q, position, head, out);
      case 2: return chunk<2>(row, kv_head, from, q, position, head, out);
      case 3: return chunk<3>(row, kv_head, from, q, position, head, out);
      case 4: return chunk<4>(row, kv_head, from, q, position, head, out);
    }
    if constexpr (TILE > 4) {
      if (count == 8) return chunk<8>(row, kv_head, from, q, position, head, out);
      return chunk<TILE>(row, kv_head, from, q, position, head, out);
    }
  }

  struct Item { int32_t row, kv_head, begin, count, chunk; };

  // Rows of few queries are divided by chunk too, so that one long context keeps all threads busy.
  bool divided(long row) const { return a.lengths[row] == 1 && a.starts[row] - first(row, 0) >= CHUNK; }
  long chunks(long row) const { return a.starts[row] / CHUNK - first(row, 0) / CHUNK + 1; }

  void run() const {
    const long readers = a.heads / a.kv_heads, width = PARTIAL + a.size;
    std::vector<Item> items;
    std::vector<long> slots(a.rows, -1);  // where the partial results of a divided row begin
    long used = 0, work = 0;
    for (long row = 0; row < a.rows; row++) {
      work += a.lengths[row] * (a.starts[row] + a.lengths[row]) * a.heads * a.size;
      const long queries = a.lengths[row] * readers;
      if (divided(row)) { slots[row] = used; used += chunks(row) * a.heads; }
      for (long c = 0; c < (divided(row) ? chunks(row) : 1); c++)
        for (long h = 0; h < a.kv_heads; h++)
          for (long b = 0; b < queries; b += tile(queries - b))
            items.push_back({(int32_t)row, (int32_t)h, (int32_t)b, (int32_t)tile(queries - b),
                             divided(row) ? (int32_t)c : -1});
    }
    float* partials = scratch<float>(used * width);
    const long last = (long)items.size() - 1;
    share(items.size(), work > 1 << 17, [&](long i) {
      alignas(64) float merged[TILE * (PARTIAL + MAX_SIZE)];
      const Item& it = items[last - i];  // the longest contexts of a prompt first
      if (it.chunk >= 0) {
        const long place = slots[it.row] + it.chunk * a.heads + it.kv_head * readers + it.begin;
        queries(it.row, it.kv_head, it.begin, it.count, first(it.row, 0) / CHUNK + it.chunk, partials + place * width);
        return;
      }
      queries(it.row, it.kv_head, it.begin, it.count, -1, merged);
      for (long n = 0; n < it.count; n++) write(merged + n * width, it.kv_head * readers + (it.begin + n) % readers, result(it, n));
    });
    share(used ? a.rows * a.heads : 0, used * a.size > SMALL, [&](long i) {
      const long row = i / a.heads, head = i % a.heads;
      if (slots[row] < 0) return;
      float* into = partials + (slots[row] + head) * width;
      for (long c = 1; c < chunks(row); c++) merge(into, into + c * a.heads * width);
      write(into, head, (T*)a.out + (a.offsets[row] * a.heads + head) * a.size);
    });
  }
  T* result(const Item& it, long n) const {
    const long readers = a.heads / a.kv_heads, query = it.begin + n;
    const long token = a.offsets[it.row] + query / readers, head = it.kv_head * readers + query % readers;
    return (T*)a.out + (token * a.heads + head) * a.size;
  }
};

extern "C" {
void tgi_store_kv(int kind, const void* key, const void* value, long tokens, long kv_heads, long size, long key_stride,
                  long value_stride, const int32_t* slots, void* keys, void* values) {
  if (kind == BFLOAT16)
    store_kv((const bf16*)key, (const bf16*)value, tokens, kv_heads, size, key_stride, value_stride, slots,
             (bf16*)keys, (bf16*)values);
  else
    store_kv((const float*)key, (const float*)value, tokens, kv_heads, size, key_stride, value_stride, slots,
             (float*)keys, (float*)values);
}
void tgi_attention(int kind, const AttentionArguments* a) {
  if (kind == BFLOAT16) Attention<bf16>{*a}.run();
  else Attention<float>{*a}.run();
}
}
