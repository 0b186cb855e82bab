// Products by AMX: tiles of 16 rows of activations with tiles of 16 columns of weights, 64 bytes of features at once.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>
#if defined(__AMX_TILE__)
#include <immintrin.h>

constexpr long TILE_HEIGHT = 16;  // rows
constexpr long TILE_WIDTH = 64;   // bytes of a row
constexpr long TILE_ROWS = 2 * TILE_HEIGHT;  // most rows that are multiplied together
inline thread_local long tiles_for = 0;  // rows that the thread's tiles are configured for; 0: they are not in use

// Configure tiles 0 to 3 for sums, of which 2 r + c belongs to tile r of the activations, 4 and 5, and to tile c of the
// weights, 6 and 7.
inline void use_tiles(long rows) {
  if (rows == tiles_for) return;
  const long first = std::min(rows, TILE_HEIGHT), second = rows - first;
  const long heights[8] = {first, first, second, second, first, second, TILE_HEIGHT, TILE_HEIGHT};
  struct alignas(64) { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } configuration = {};
  configuration.palette = 1;
  for (int tile = 0; tile < 8; tile++) {
    configuration.rows[tile] = (uint8_t)heights[tile];
    configuration.bytes[tile] = heights[tile] ? TILE_WIDTH : 0;
  }
  asm volatile("" ::"r"(&configuration) : "memory");  // GCC 12 takes it that 8 of the 64 bytes are read
  _tile_loadconfig(&configuration);
  tiles_for = rows;
}

// Releases the thread's tiles: a thread that has none in use is switched faster.
struct TileScope {
  ~TileScope() {
    if (!tiles_for) return;
    _tile_release();
    tiles_for = 0;
  }
};

// Sums of up to TILE_ROWS rows and the 32 columns of a unit: bfloat16 to float, signed bytes and unsigned weights to
// int32. A step takes 64 bytes of every row, which lie together, and 2 KB of weights. Two tiles of each meet in four
// products, which is one load for each: the processor loads a tile faster than it multiplies one, from the first-level
// cache.
template <typename Sum, bool BOTH, typename Fetch>
inline void multiply_tiles(const char* x, long rows, const char* unit, long steps, Fetch& fetch, Sum (*out)[32]) {
#define TGI_DOT(sums, activations, weights)                                            \
  if constexpr (std::is_same_v<Sum, float>) _tile_dpbf16ps(sums, activations, weights); \
  else _tile_dpbsud(sums, activations, weights)
  constexpr long PITCH = 2 * TILE_WIDTH, BYTES = TILE_HEIGHT * PITCH;
  const long advance = BYTES / fetch.share;
  use_tiles(rows);
  asm volatile("" ::: "memory");  // GCC 12 does not know that tiles are loaded from memory
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (BOTH) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long s = 0; s < steps; s++, x += rows * TILE_WIDTH, unit += BYTES, fetch.from += advance) {
    for (long b = 0; b < advance; b += 64) __builtin_prefetch(fetch.from + b);
    _tile_loadd(6, unit, PITCH);
    _tile_loadd(4, x, TILE_WIDTH);
    TGI_DOT(0, 4, 6);
    _tile_loadd(7, unit + TILE_WIDTH, PITCH);
    TGI_DOT(1, 4, 7);
    if constexpr (BOTH) {
      _tile_loadd(5, x + TILE_HEIGHT * TILE_WIDTH, TILE_WIDTH);
      TGI_DOT(2, 5, 6);
      TGI_DOT(3, 5, 7);
    }
  }
  _tile_stored(0, out[0], sizeof *out);
  _tile_stored(1, out[0] + TILE_HEIGHT, sizeof *out);
  if constexpr (BOTH) {
    _tile_stored(2, out[TILE_HEIGHT], sizeof *out);
    _tile_stored(3, out[TILE_HEIGHT] + TILE_HEIGHT, sizeof *out);
  }
#undef TGI_DOT
}

template <typename Sum, typename Fetch>
inline void multiply_tiles(const void* x, long rows, const void* unit, long steps, Fetch& fetch, Sum (*out)[32]) {
  if (rows > TILE_HEIGHT) multiply_tiles<Sum, true>((const char*)x, rows, (const char*)unit, steps, fetch, out);
  else multiply_tiles<Sum, false>((const char*)x, rows, (const char*)unit, steps, fetch, out);
}
#else
struct TileScope {
  ~TileScope() {}
};
#endif
