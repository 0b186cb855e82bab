// Linear layers: y = x w^T (+ bias) (+ residual), and what LoRA adapters add to them.
//
// A weight [n, k] is packed into units of UNIT output columns. In a unit, pairs of input features follow one
// another, and for each pair the columns: bfloat16 as [k/2][UNIT][2], float32 as [k/2][UNIT/W][2][W].
// So a unit is read once from front to back, which is what memory is fastest at.
//
// Every output is the sum over the pairs in their order, whatever the number of rows: a row's result does not
// depend on its neighbours. With AMX, bfloat16 is always multiplied by tiles, 16 pairs at once.
#include "linear.h"

#include <vector>

template <typename T> constexpr long STEP = TILED<T> ? 32 : 2;  // input features that are multiplied at once
template <typename T> static long padded(long k) { return (k + STEP<T> - 1) / STEP<T> * STEP<T>; }

// Place of weight (column c of a unit, input feature i), in numbers from the beginning of the unit.
static long place(const bf16*, long c, long i) { return (i / 2 * UNIT + c) * 2 + i % 2; }
static long place(const float*, long c, long i) { return ((i / 2 * VECTORS + c / W) * 2 + i % 2) * W + c % W; }

// Write features 2p and 2p + 1 of a column.
static void put(bf16* unit, long c, long p, const bf16* pair) { memcpy(unit + (p * UNIT + c) * 2, pair, 4); }
static void put(float* unit, long c, long p, const float* pair) {
  float* first = unit + place(unit, c, 2 * p);
  first[0] = pair[0], first[W] = pair[1];
}

// A block of features of a unit is put together in the first-level cache, and then written from front to back.
template <typename T> static void pack(const T* w, long n, long k, long stride, T* out) {
  constexpr long BLOCK = 32;  // features: in bfloat16, a line of the cache for each column
  share(units(n), n * k > SMALL, [&](long u) {
    const T* rows = w + u * UNIT * stride;
    const long columns = std::min<long>(UNIT, n - u * UNIT), size = padded<T>(k);
    alignas(64) T block[BLOCK * UNIT] = {};
    for (long begin = 0; begin < size; begin += BLOCK) {
      const long given = std::min(BLOCK, k - begin);
      for (long c = 0; c < columns; c++) {
        T row[BLOCK] = {};
        memcpy(row, rows + c * stride + begin, given * sizeof(T));
        for (long p = 0; p < BLOCK / 2; p++) put(block, c, p, row + 2 * p);
      }
      memcpy(out + (u * size + begin) * UNIT, block, std::min(BLOCK, size - begin) * UNIT * sizeof(T));
    }
  });
}

// Rows of the weight [n, k] itself, by their indices; zeros for those that it lacks.
template <typename T> static void rows(const T* w, long n, long k, const int64_t* indices, long count, T* out) {
  share(count, count * k > SMALL, [&](long r) {
    const long row = indices[r];
    if (row < 0 || row >= n) {
      memset(out + r * k, 0, k * sizeof(T));
      return;
    }
    const T* unit = w + row / UNIT * padded<T>(k) * UNIT;
    for (long i = 0; i < k; i++) out[r * k + i] = unit[place(unit, row % UNIT, i)];
  });
}

// Sums of M rows and one unit. Activations of pair p and row m are at x + p * step + m * 2.
template <typename T, int M>
static void block(const T* x, long step, const T* unit, long k, Fetch fetch, float (*out)[UNIT]) {
  constexpr long BYTES = 2 * UNIT * sizeof(T);
  const long advance = BYTES / fetch.share;
  vf acc[M][VECTORS];
  for (int m = 0; m < M; m++)
    for (int v = 0; v < VECTORS; v++) acc[m][v] = vf{};
  for (long p = 0; p < padded<T>(k) / 2; p++, unit += 2 * UNIT, fetch.from += advance) {
    for (long b = 0; b < BYTES; b += 64) __builtin_prefetch(fetch.from + b);
    for (int m = 0; m < M; m++)
      for (int v = 0; v < VECTORS; v++) acc[m][v] = dot_pairs(acc[m][v], x + p * step + m * 2, unit + v * 2 * W);
  }
  for (int m = 0; m < M; m++)
    for (int v = 0; v < VECTORS; v++) store(out[m] + v * W, acc[m][v]);
}

template <typename T, int M = ROWS>
static void block_of(int rows, const T* x, long step, const T* unit, long k, Fetch fetch, float (*out)[UNIT]) {
  if constexpr (M > 0) {
    if (rows == M) block<T, M>(x, step, unit, k, fetch, out);
    else block_of<T, M - 1>(rows, x, step, unit, k, fetch, out);
  }
}

// Sums of a group of rows, gathered, and one unit.
template <typename T> static void multiply_unit(long rows, const T* x, const T* unit, long k, Fetch fetch, float (*out)[UNIT]) {
  if constexpr (TILED<T>) multiply_tiles(x, rows, unit, padded<T>(k) / STEP<T>, fetch, out);
  else block_of<T>((int)rows, x, rows * 2, unit, k, fetch, out);
}

// Activations of one group of rows, of which row(m) is the place of the m-th, as [steps][rows][STEP].
template <typename T, typename Row> static void gather(const Row& row, long rows, long k, T* out) {
  const long rest = k % STEP<T>;
  for (long i = 0; i + STEP<T> <= k; i += STEP<T>)
    for (long m = 0; m < rows; m++, out += STEP<T>) memcpy(out, row(m) + i, STEP<T> * sizeof(T));
  for (long m = 0; rest && m < rows; m++, out += STEP<T>) {
    memcpy(out, row(m) + k - rest, rest * sizeof(T));
    memset(out + rest, 0, (STEP<T> - rest) * sizeof(T));
  }
}

template <typename T> struct Linear {
  const T *x, *w;
  Output<T> out;
  long m, n, k, x_stride;

  void run() const {
    const long group = group_rows(m, TILED<T>), groups = (m + group - 1) / group, size = padded<T>(k);
    T* gathered = scratch<T>(m * size);
    share(groups, m * k > SMALL, [&](long g) {
      const T* first = x + g * group * x_stride;
      gather([&](long i) { return first + i * x_stride; }, std::min(group, m - g * group), k, gathered + g * group * size);
    });
    for_each_tile(m, n, group, m * n * k, [&](long u, long begin, long end) {
      alignas(64) float sums[MOST_ROWS][UNIT];
      const T* unit = w + u * size * UNIT;
      const long bytes = size * UNIT * sizeof(T), passes = (end - begin + group - 1) / group;
      for (long row = begin, pass = 0; row < end; row += group, pass++) {
        const long rows = std::min(group, m - row);
        multiply_unit(rows, gathered + row * size, unit, k, Fetch(unit, bytes, pass, passes), sums);
        for (long i = 0; i < rows; i++) out.write(row + i, u * UNIT, sums[i]);
      }
    });
  }
};

template <typename T> static void linear(const LinearArguments* a) {
  Linear<T>{(const T*)a->x, (const T*)a->w, Output<T>(*a), a->m, a->n, a->k, a->x_stride}.run();
}

// y += up (down x) for the tokens that have an adapter. What is between the matrices is rounded as y is.
template <typename T> struct Lora {
  static constexpr long SHARES = 16;  // parts of a group's outputs that threads share

  struct Group {  // tokens with the same adapter that are computed together
    const LoraAdapter* adapter;
    const int32_t* tokens;
    long rows, place;  // place: of its activations in memory, and of what is between the matrices after them, in rows
  };

  const LoraArguments& a;
  std::vector<Group> groups;
  T* memory;

  void run() {
    long place = 0, down = 0, up = 0;
    for (long i = 0; i < a.rows->count; i++) {
      const LoraSegment& s = a.rows->segments[i];
      const LoraAdapter& adapter = a.adapters[s.slot];
      if (!adapter.count) continue;
      const long most = group_rows(s.count, TILED<T>);
      for (long begin = 0; begin < s.count; begin += most) {
        const long rows = std::min(most, s.count - begin);
        groups.push_back({&adapter, a.rows->tokens + s.begin + begin, rows, place});
        place += rows * (padded<T>(a.k) + adapter.columns);
      }
      down += s.count * adapter.columns * a.k;
      for (long p = 0; p < adapter.count; p++) up += s.count * adapter.pieces[p].rank * adapter.pieces[p].n;
    }
    memory = scratch<T>(place);
    share(groups.size(), down > WORTH, [&](long i) { narrow_down(groups[i]); });
    share(groups.size() * SHARES, up > WORTH, [&](long i) { widen_up(groups[i / SHARES], i % SHARES); });
  }

  T* between(const Group& g) const { return memory + g.place + g.rows * padded<T>(a.k); }

  void narrow_down(const Group& g) const {
    alignas(64) float sums[MOST_ROWS][UNIT];
    T *gathered = memory + g.place, *out = between(g);
    gather([&](long m) { return (const T*)a.x + g.tokens[m] * a.x_stride; }, g.rows, a.k, gathered);
    for (long u = 0; u < units(g.adapter->columns); u++) {
      const T* unit = (const T*)g.adapter->down + u * padded<T>(a.k) * UNIT;
      multiply_unit(g.rows, gathered, unit, a.k, Fetch(unit), sums);
      for (long m = 0; m < g.rows; m++)
        for (long c = u * UNIT; c < std::min((u + 1) * UNIT, g.adapter->columns); c++)
          narrow(out + m * g.adapter->columns + c, sums[m][c - u * UNIT]);
    }
  }

  void widen_up(const Group& g, long share) const {
    static thread_local std::vector<T> gathered;
    alignas(64) float sums[MOST_ROWS][UNIT];
    for (long p = 0; p < g.adapter->count; p++) {
      const LoraPiece& piece = g.adapter->pieces[p];
      T* y = (T*)a.y + piece.first;
      const Output<T> out({nullptr, nullptr, nullptr, y, y, 0, piece.n, 0, 0, a.y_stride, a.y_stride});
      const T* x = between(g) + piece.column;
      const long size = padded<T>(piece.rank);
      if ((long)gathered.size() < g.rows * size) gathered.resize(g.rows * size);
      gather([&](long m) { return x + m * g.adapter->columns; }, g.rows, piece.rank, gathered.data());
      for (long u = share; u < units(piece.n); u += SHARES) {
        const T* unit = (const T*)piece.up + u * size * UNIT;
        multiply_unit(g.rows, (const T*)gathered.data(), unit, piece.rank, Fetch(unit), sums);
        for (long m = 0; m < g.rows; m++) out.write(g.tokens[m], u * UNIT, sums[m]);
      }
    }
  }
};

extern "C" {
long tgi_packed_size(int kind, long n, long k) {
  return units(n) * UNIT * (kind == BFLOAT16 ? padded<bf16>(k) : padded<float>(k));
}
void tgi_pack(int kind, const void* w, long n, long k, long stride, void* out) {
  if (kind == BFLOAT16) pack((const bf16*)w, n, k, stride, (bf16*)out);
  else pack((const float*)w, n, k, stride, (float*)out);
}
void tgi_packed_rows(int kind, const void* w, long n, long k, const int64_t* indices, long count, void* out) {
  if (kind == BFLOAT16) rows((const bf16*)w, n, k, indices, count, (bf16*)out);
  else rows((const float*)w, n, k, indices, count, (float*)out);
}
void tgi_linear(int kind, const LinearArguments* a) { kind == BFLOAT16 ? linear<bf16>(a) : linear<float>(a); }
void tgi_lora(int kind, const LoraArguments* a) {
  if (kind == BFLOAT16) Lora<bf16>{*a, {}, nullptr}.run();
  else Lora<float>{*a, {}, nullptr}.run();
}
}
