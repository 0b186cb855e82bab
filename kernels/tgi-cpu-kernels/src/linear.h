// Parts that linear layers share, whatever their weights are stored in.
#pragma once
#include "kernels.h"
#include "threads.h"
#include "tiles.h"
#include "vec.h"

constexpr int UNIT = 32;  // output columns that are computed together
constexpr int VECTORS = UNIT / W;
#if defined(__AVX512F__)
constexpr int ROWS = 12;  // rows in registers: 12 x 2 sums, and the weights
#else
constexpr int ROWS = W == 8 ? 3 : 4;
#endif
#if defined(__AMX_TILE__)
constexpr int MOST_ROWS = TILE_ROWS;  // that are computed together, by any kernel
template <typename T> constexpr bool TILED = std::is_same_v<T, bf16>;  // whether dense weights are multiplied by tiles
#else
constexpr int MOST_ROWS = ROWS;
template <typename T> constexpr bool TILED = false;
#endif
constexpr long AHEAD = 8192;  // bytes of weights between what is fetched from memory and what is multiplied once
constexpr long WORTH = 1 << 17;  // products that are worth waking another thread
constexpr long PANEL = 8;  // groups of rows whose activations stay in the second-level cache

// Rows that are computed together: as many groups as needed, of about the same size; tiles are filled one by one.
inline long group_rows(long m, bool tiled) {
  if (tiled) return std::max(1L, std::min<long>(m, MOST_ROWS));
  const long groups = std::max(1L, (m + ROWS - 1) / ROWS);
  return std::max(1L, (m + groups - 1) / groups);
}

// Where a pass over a unit's weights, of `bytes`, fetches from memory, and how far this advances for each byte that it
// multiplies. If several groups of rows are multiplied with a unit, each pass fetches its share of the next unit:
// memory is never idle, as it would be if the first pass fetched everything.
struct Fetch {
  const char* from;
  long share;  // of the bytes: one of `share`

  explicit Fetch(const void* unit, long bytes = 0, long pass = 0, long passes = 1)
      : from((const char*)unit + (passes == 1 ? AHEAD : bytes + pass * (bytes / passes))), share(passes) {}
};

inline long units(long n) { return (n + UNIT - 1) / UNIT; }

// Call tile(u, begin, end) for each unit of columns and each panel of the m rows. Threads share the tiles if there is
// enough work, in products. A panel has whole groups of rows.
template <typename Tile> void for_each_tile(long m, long n, long group, long work, const Tile& tile) {
  const long panel = (group > ROWS ? PANEL / 2 : PANEL) * group, panels = (m + panel - 1) / panel, all_units = units(n);
  share(panels * all_units, work > WORTH, [&](long i) {
    const long begin = i / all_units * panel;
    tile(i % all_units, begin, std::min(m, begin + panel));
  });
}

// The end of a linear layer: adds bias and residual, and rounds once.
template <typename T> struct Output {
  const T *bias, *residual;
  T* y;
  long n, residual_stride, y_stride;

  explicit Output(const LinearArguments& a)
      : bias((const T*)a.bias), residual((const T*)a.residual), y((T*)a.y), n(a.n),
        residual_stride(a.residual_stride), y_stride(a.y_stride) {}

  // Write the sums of a unit of columns, which begins at `column`.
  void write(long row, long column, const float* sums) const {
    const long count = std::min<long>(UNIT, n - column);
    T* out = y + row * y_stride + column;
    const T* more = residual ? residual + row * residual_stride + column : nullptr;
    long c = 0;
    for (; c + W <= count; c += W) {
      vf v = load(sums + c);
      if (bias) v += load(bias + column + c);
      if (more) v += load(more + c);
      store(out + c, v);
    }
    for (; c < count; c++)
      narrow(out + c, sums[c] + (bias ? widen(bias[column + c]) : 0) + (more ? widen(more[c]) : 0));
  }
};
