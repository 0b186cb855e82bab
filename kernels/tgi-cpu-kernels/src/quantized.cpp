// Linear layers whose weights are integers of 8 or 4 bits, with a scale for each group of input features:
// y = sum over groups of scale * (stored - zero) . x (+ bias) (+ residual).
//
// Scales may be nested: those of `span` groups are one factor times integers or floats of 8 bits, and likewise minima, which
// then are subtracted instead of zeros. Weights of 4 bits may be places in a table of numbers of 8 bits.
//
// Activations are rounded to 8 bits, in the same groups and by each row's own maximum, so that a group is an exact
// sum of integers; groups are added in their order. A row's result does not depend on its neighbours.
//
// A weight [n, k] is packed into units of UNIT columns, each as [k/4][UNIT][4] bytes; of 4 bits, as [k/8][UNIT][4]
// with the first four features in the low halves of the bytes, and the next four in the high ones.
//
// With AMX, groups of whole tiles of 8-bit weights are multiplied by tiles. Sums of integers are exact: the result is
// that of vectors, bit for bit.
#include "linear.h"

#include <limits>
#include <vector>

constexpr long QUAD = 4;

static long groups_of(long k, long group) { return (k + group - 1) / group; }
static long padded(long k, long group) { return groups_of(k, group) * group; }

// Put the k numbers of column c of a unit, which is 0 so far, into their places.
static void place(const uint8_t* row, long k, long bits, long c, uint8_t* unit) {
  const long step = 32 / bits;
  unit += c * QUAD;
  long i = 0;
  for (; i + step <= k; i += step, unit += UNIT * QUAD) {
    uint32_t quad, next = 0;
    memcpy(&quad, row + i, 4);
    if (bits == 4) memcpy(&next, row + i + 4, 4);
    quad |= next << 4;
    memcpy(unit, &quad, 4);
  }
  for (long j = 0; i + j < k; j++) unit[j % 4] |= row[i + j] << (j / 4 * 4);
}

static void pack(const uint8_t* w, long n, long k, long bits, long group, uint8_t* out) {
  const long size = UNIT * padded(k, group) * bits / 8;
  share(units(n), true, [&](long u) {
    memset(out + u * size, 0, size);
    for (long c = 0; c < std::min<long>(UNIT, n - u * UNIT); c++)
      place(w + (u * UNIT + c) * k, k, bits, c, out + u * size);
  });
}

// Round a group of a weight's row to integers. Without `zero`, the middle of their range stands for 0.
template <typename T> static float round_weights(const T* x, long count, long bits, uint8_t* out, uint8_t* zero) {
  const long whole = count - count % W;
  vf lows = vf{}, highs = vf{};
  for (long i = 0; i < whole; i += W) {
    const vf v = load(x + i);
    lows = -maximum(-v, -lows);
    highs = maximum(v, highs);
  }
  float low = -largest(-lows), high = largest(highs);
  for (long i = whole; i < count; i++) {
    low = std::min(low, widen(x[i]));
    high = std::max(high, widen(x[i]));
  }
  const int32_t most = (1 << bits) - 1, middle = 1 << (bits - 1);
  const float scale = zero ? (high - low) / most : std::max(-low, high) / (middle - 1);
  const float step = std::max(scale, std::numeric_limits<float>::min());
  const int32_t origin = zero ? nearest(all(-low / step))[0] : middle;
  if (zero) *zero = (uint8_t)origin;
  for (long i = 0; i < count; i += W) {
    T piece[W] = {};
    const long length = std::min<long>(W, count - i);
    memcpy(piece, x + i, length * sizeof(T));
    vi q = nearest(load(piece) / step) + origin;
    q = q > most ? vi{} + most : q < 0 ? vi{} : q;
    const vq bytes = __builtin_convertvector(q, vq);
    memcpy(out + i, &bytes, length);
  }
  return scale;
}

template <typename T>
static void round_and_pack(const T* w, long n, long k, long stride, long bits, long group, uint8_t* out, float* scales,
                           uint8_t* zeros) {
  const long groups = groups_of(k, group), size = UNIT * padded(k, group) * bits / 8;
  share(units(n), true, [&](long u) {
    uint8_t* row = scratch<uint8_t>(k);
    memset(out + u * size, 0, size);
    for (long c = 0; c < UNIT; c++)
      for (long g = 0; g < groups; g++) {
        const long at = (u * groups + g) * UNIT + c, column = u * UNIT + c;
        scales[at] = 0;
        if (zeros) zeros[at] = 0;
        if (column >= n) continue;
        scales[at] = round_weights(w + column * stride + g * group, std::min(group, k - g * group), bits, row + g * group,
                                   zeros ? zeros + at : nullptr);
        if (g == groups - 1) place(row, k, bits, c, out + u * size);
      }
  });
}

// Activations of a group of rows in 8 bits as [steps][rows][STEP]; scales and sums of each row's groups.
struct Rounded {
  int8_t* numbers;
  float* scales;
  int32_t* sums;
};

// Round `count` numbers of a row to places that follow one another in steps, `apart` bytes from one to the next.
// Returns their scale.
template <long STEP, typename T> static float round_group(const T* x, long count, int8_t* out, long apart, int32_t* total) {
  vf top = vf{}, poison = vf{};  // infinity and NaN make the scale NaN
  const long whole = count - count % W;
  for (long i = 0; i < whole; i += W) {
    const vf v = load(x + i);
    top = maximum(maximum(v, -v), top);
    poison += v * 0.0f;
  }
  float most = largest(top), wrong = sum(poison);
  for (long i = whole; i < count; i++) {
    most = std::max(most, std::fabs(widen(x[i])));
    wrong += widen(x[i]) * 0.0f;
  }
  const float inverse = most > 0 ? 127.0f / most : 0.0f;
  vi added = vi{};
  for (long i = 0; i < whole; i += W) {
    const vi q = nearest(load(x + i) * inverse);
    const vq bytes = __builtin_convertvector(q, vq);
    added += q;
    constexpr long PIECE = std::min<long>(W, STEP);
    for (long b = 0; b < W; b += PIECE) memcpy(out + (i + b) / STEP * apart + i % STEP, (const char*)&bytes + b, PIECE);
  }
  *total = 0;
  for (int i = 0; i < W; i++) *total += added[i];
  for (long i = whole; i < count; i++) {
    const int32_t q = nearest(all(widen(x[i]) * inverse))[0];
    out[i / STEP * apart + i % STEP] = (int8_t)q;
    *total += q;
  }
  return most / 127.0f + wrong;
}

static inline vu load_quads(const uint8_t* p) { vu v; memcpy(&v, p, sizeof v); return v; }
static inline vi widen_bytes(const uint8_t* p) { vuq v; memcpy(&v, p, sizeof v); return __builtin_convertvector(v, vi); }
static inline vi widen_bytes(const int8_t* p) { vq v; memcpy(&v, p, sizeof v); return __builtin_convertvector(v, vi); }
static inline int32_t load_quad(const int8_t* p) { int32_t quad; memcpy(&quad, p, QUAD); return quad; }

template <typename T, int BITS, long STEP, bool TABLE = false> struct Quantized {
  static constexpr bool TILES = STEP > QUAD;
  const QuantizedArguments& a;
  const LinearArguments& l = a.linear;
  const long groups = groups_of(l.k, a.group), width = padded(l.k, a.group);
  const long group_bytes = a.group * UNIT * BITS / 8, shift = __builtin_ctzl(a.span), spans = ((groups - 1) >> shift) + 1;

  // Round row m of `rows` that lie together.
  void round(const T* x, long m, long rows, const Rounded& to) const {
    for (long g = 0; g < groups; g++) {
      int8_t* out = to.numbers + g * a.group * rows + m * STEP;
      const long count = std::min(a.group, l.k - g * a.group), place = m * groups + g;
      for (long i = count; i < a.group; i++) out[i / STEP * rows * STEP + i % STEP] = 0;
      to.scales[place] = round_group<STEP>(x + g * a.group, count, out, rows * STEP, to.sums + place);
    }
  }

  // The first of a vector of columns in an array [units][groups][32], and in one by `span` groups.
  long in_groups(long u, long g, long v) const { return (u * groups + g) * UNIT + v * W; }
  long in_spans(long u, long g, long v) const { return (u * spans + (g >> shift)) * UNIT + v * W; }

  // The stored numbers of a vector of columns that mean 0.
  vi zeros_of(long u, long g, long v) const {
    if (a.minima) return vi{};
    return a.zeros ? widen_bytes(a.zeros + in_groups(u, g, v)) : vi{} + (1 << (TABLE ? 7 : BITS - 1));
  }

  // The table, again and again, as unsigned bytes.
  vu table() const {
    vu bytes = {};
    for (unsigned i = 0; TABLE && i < sizeof bytes; i += 16) memcpy((char*)&bytes + i, a.table, 16);
    return bytes ^ 0x80808080u;
  }

  // Factors of a vector of columns in a group.
  vf scales_of(long u, long g, long v) const {
    const vf scales = load(a.scales + in_spans(u, g, v));
    if (!a.shares) return scales;
    const int8_t* shares = a.shares + in_groups(u, g, v);
    if (a.share_kind == INTEGERS) return scales * __builtin_convertvector(widen_bytes(shares), vf);
    const vi bytes = widen_bytes((const uint8_t*)shares);
    if (a.share_kind == POWERS) return scales * (vf)(bytes << 23);
    const vf small = __builtin_convertvector(bytes, vf) * 0x1p-9f;  // those below 8 have no leading 1
    return scales * select(bytes < 8, small, (vf)((bytes << 20) + (120 << 23)));
  }

  // Add row m's sums of a group.
  void add(const Rounded& x, vf scales, long g, long m, vi sums, float* out) const {
    store(out, load(out) + __builtin_convertvector(sums, vf) * x.scales[m * groups + g] * scales);
  }

  // Subtract the minima of all groups.
  void subtract(long rows, const Rounded& x, long u, float (*out)[UNIT]) const {
    for (long g = 0; g < groups; g++)
      for (long v = 0; v < VECTORS; v++) {
        const vf zeros = __builtin_convertvector(widen_bytes(a.zeros + in_groups(u, g, v)), vf);
        const vf minima = load(a.minima + in_spans(u, g, v)) * zeros;
        for (long m = 0; m < rows; m++) {
          const float total = x.sums[m * groups + g] * x.scales[m * groups + g];
          store(out[m] + v * W, load(out[m] + v * W) - minima * total);
        }
      }
  }

#if defined(__AMX_TILE__)
  void block_of_tiles(long rows, const Rounded& x, long u, Fetch fetch, float (*out)[UNIT]) const {
    alignas(64) int32_t sums[MOST_ROWS][UNIT];
    const uint8_t* w = (const uint8_t*)l.w + u * groups * group_bytes;
    for (long m = 0; m < rows; m++) memset(out[m], 0, sizeof out[m]);
    for (long g = 0; g < groups; g++) {
      multiply_tiles(x.numbers + g * a.group * rows, rows, w + g * group_bytes, a.group / STEP, fetch, sums);
      for (long v = 0; v < VECTORS; v++) {
        const vi zero = zeros_of(u, g, v);
        const vf scales = scales_of(u, g, v);
        for (long m = 0; m < rows; m++) {
          vi products;
          memcpy(&products, sums[m] + v * W, sizeof products);
          add(x, scales, g, m, products - zero * x.sums[m * groups + g], out[m] + v * W);
        }
      }
    }
  }
#endif

  // Sums of M rows and one unit.
  template <int M> void block(const Rounded& x, long u, Fetch fetch, float (*out)[UNIT]) const {
    constexpr long BYTES = UNIT * 4;
    const uint8_t* w = (const uint8_t*)l.w + u * groups * group_bytes;
    const long advance = BYTES / fetch.share;
    const int8_t* numbers = x.numbers;
    const vu table = this->table();
    for (int m = 0; m < M; m++) memset(out[m], 0, sizeof out[m]);
    for (long g = 0; g < groups; g++) {
      vi acc[M][VECTORS];
      for (int v = 0; v < VECTORS; v++) {
        const vi zero = zeros_of(u, g, v);
        for (int m = 0; m < M; m++) acc[m][v] = zero * -x.sums[m * groups + g];
      }
      for (long i = 0; i < a.group; i += 32 / BITS, w += BYTES, numbers += 32 / BITS * M, fetch.from += advance) {
        for (int b = 0; b < BYTES; b += 64) __builtin_prefetch(fetch.from + b);
        for (int m = 0; m < M; m++)
          for (int v = 0; v < VECTORS; v++) {
            const vu quads = load_quads(w + v * W * 4);
            if constexpr (BITS == 8) acc[m][v] = dot_quads(acc[m][v], quads, load_quad(numbers + m * QUAD));
            else {
              const vu low = quads & 0x0f0f0f0fu, high = quads >> 4 & 0x0f0f0f0fu;
              acc[m][v] = dot_quads(acc[m][v], TABLE ? look_up(table, low) : low, load_quad(numbers + m * QUAD));
              acc[m][v] = dot_quads(acc[m][v], TABLE ? look_up(table, high) : high, load_quad(numbers + (M + m) * QUAD));
            }
          }
      }
      for (int v = 0; v < VECTORS; v++) {
        const vf scales = scales_of(u, g, v);
        for (int m = 0; m < M; m++) add(x, scales, g, m, acc[m][v], out[m] + v * W);
      }
    }
  }
  template <int M = ROWS> void block_of(long rows, const Rounded& x, long u, Fetch fetch, float (*out)[UNIT]) const {
    if constexpr (M > 0) {
      if (rows == M) block<M>(x, u, fetch, out);
      else block_of<M - 1>(rows, x, u, fetch, out);
    }
  }

  void multiply_unit(long rows, const Rounded& x, long u, Fetch fetch, float (*out)[UNIT]) const {
#if defined(__AMX_TILE__)
    if constexpr (TILES) block_of_tiles(rows, x, u, fetch, out);
    else
#endif
      block_of(rows, x, u, fetch, out);
    if (a.minima) subtract(rows, x, u, out);
  }

  void run() const {
    const Output<T> output(l);
    int8_t* numbers = scratch<int8_t>(l.m * width);
    float* scales = scratch<float>(l.m * groups);
    int32_t* sums = scratch<int32_t>(l.m * groups);
    const long group = group_rows(l.m, TILES);
    auto rounded = [&](long row) {  // of the rows from `row` on, a multiple of `group`
      return Rounded{numbers + row * width, scales + row * groups, sums + row * groups};
    };
    share(l.m, l.m * l.k > SMALL, [&](long row) {
      const long m = row % group, first = row - m;
      round((const T*)l.x + row * l.x_stride, m, std::min(group, l.m - first), rounded(first));
    });
    for_each_tile(l.m, l.n, group, l.m * l.n * l.k, [&](long u, long begin, long end) {
      alignas(64) float out[MOST_ROWS][UNIT];
      const uint8_t* unit = (const uint8_t*)l.w + u * groups * group_bytes;
      const long passes = (end - begin + group - 1) / group;
      for (long row = begin, pass = 0; row < end; row += group, pass++) {
        const long rows = std::min(group, l.m - row);
        multiply_unit(rows, rounded(row), u, Fetch(unit, groups * group_bytes, pass, passes), out);
        for (long i = 0; i < rows; i++) output.write(row + i, u * UNIT, out[i]);
      }
    });
  }
};

template <typename T> static void quantized(const QuantizedArguments* a) {
#if defined(__AMX_TILE__)
  if (a->bits == 8 && a->group % TILE_WIDTH == 0) return Quantized<T, 8, TILE_WIDTH>{*a}.run();
#endif
  if (a->bits == 8) Quantized<T, 8, QUAD>{*a}.run();
  else if (a->table) Quantized<T, 4, QUAD, true>{*a}.run();
  else Quantized<T, 4, QUAD>{*a}.run();
}

extern "C" {
long tgi_packed_ints_size(long n, long k, long bits, long group) { return units(n) * UNIT * padded(k, group) * bits / 8; }
void tgi_pack_ints(const uint8_t* w, long n, long k, long bits, long group, uint8_t* out) { pack(w, n, k, bits, group, out); }
void tgi_round_and_pack(int kind, const void* w, long n, long k, long stride, long bits, long group, uint8_t* out,
                        float* scales, uint8_t* zeros) {
  if (kind == BFLOAT16) round_and_pack((const bf16*)w, n, k, stride, bits, group, out, scales, zeros);
  else round_and_pack((const float*)w, n, k, stride, bits, group, out, scales, zeros);
}
void tgi_quantized_linear(int kind, const QuantizedArguments* a) {
  kind == BFLOAT16 ? quantized<bf16>(a) : quantized<float>(a);
}
}
