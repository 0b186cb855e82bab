// The tile instructions in plain C++, as Intel's manual defines them, so that the code for AMX is tested on processors
// without it: `-include` this file. A configuration or an operand that the processor refuses ends the program.
//
// TGI_EMULATED_TILES makes them fail: "refused" permission, an "illegal" instruction, or "wrong" sums.
#pragma once
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace emulated {

struct Tile { uint8_t rows, row[16][64]; uint16_t bytes; };
struct State { bool configured; Tile tile[8]; };
inline thread_local State state = {};
inline bool permitted = false;  // of the process

inline bool fails(const char* how) {
  const char* wanted = getenv("TGI_EMULATED_TILES");
  return wanted && !strcmp(wanted, how);
}

[[noreturn]] inline void fault(const char* what) {
  fprintf(stderr, "emulated tiles: %s\n", what);
  abort();
}
inline void require(bool right, const char* what) {
  if (!right) fault(what);
}

inline long system_call(long number, long request, long feature) {
  require(number == SYS_arch_prctl && request == 0x1023 && feature == 18, "another system call");
  permitted = !fails("refused");
  return permitted ? 0 : -1;
}

inline void load_configuration(const void* memory) {
  require(permitted, "no permission");  // the first use of the data, strictly
  if (fails("illegal")) raise(SIGILL);
  uint8_t c[64];
  memcpy(c, memory, 64);
  require(c[0] == 1, "palette");
  for (int i = 1; i < 16; i++) require(c[i] == 0, "start row or reserved bytes");
  for (int i = 32; i < 48; i++) require(c[i] == 0, "bytes of tiles that there are not");
  for (int i = 56; i < 64; i++) require(c[i] == 0, "rows of tiles that there are not");
  memset(state.tile, 0, sizeof state.tile);
  state.configured = true;
  for (int t = 0; t < 8; t++) {
    memcpy(&state.tile[t].bytes, c + 16 + 2 * t, 2);
    state.tile[t].rows = c[48 + t];
    require(state.tile[t].rows <= 16 && state.tile[t].bytes <= 64, "a tile is too large");
    require(!state.tile[t].rows == !state.tile[t].bytes, "half a tile");
  }
}
inline void release() { state = {}; }

inline Tile& used(int t) {
  require(state.configured && t >= 0 && t < 8, "not configured");
  Tile& tile = state.tile[t];
  require(tile.rows && tile.bytes % 4 == 0, "a tile that is not in use");
  return tile;
}
inline void zero(int t) { memset(used(t).row, 0, sizeof used(t).row); }
inline void load(int t, const void* from, long stride) {
  zero(t);
  for (int r = 0; r < used(t).rows; r++) memcpy(used(t).row[r], (const char*)from + r * stride, used(t).bytes);
}
inline void store(int t, void* to, long stride) {
  for (int r = 0; r < used(t).rows; r++) memcpy((char*)to + r * stride, used(t).row[r], used(t).bytes);
}

inline void check(int c, int a, int b) {
  require(c != a && a != b && c != b, "the same tile twice");
  require(used(c).rows == used(a).rows, "rows of sums and activations");
  require(used(c).bytes == used(b).bytes, "columns of sums and weights");
  require(used(a).bytes / 4 == used(b).rows, "what is summed over");
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
inline float wide(const uint8_t* p) {  // a bfloat16
  uint32_t bits = p[0] << 16 | p[1] << 24;
  float x;
  memcpy(&x, &bits, 4);
  return flushed(x);
}

// Even and odd numbers of the pairs are summed apart by fused multiply-adds, then added to each other, then to the tile.
inline void dot_bf16(int c, int a, int b) {
  check(c, a, b);
  const Tile &left = used(a), &right = used(b);
  Tile& out = used(c);
  const float error = fails("wrong");
  for (int m = 0; m < out.rows; m++)
    for (int n = 0; n < out.bytes / 4; n++) {
      float sums[2] = {0, 0}, total;
      for (int k = 0; k < left.bytes / 4; k++)
        for (int odd = 0; odd < 2; odd++)
          sums[odd] = flushed(std::fma(wide(left.row[m] + 4 * k + 2 * odd), wide(right.row[k] + 4 * n + 2 * odd), sums[odd]));
      memcpy(&total, out.row[m] + 4 * n, 4);
      total = flushed(flushed(total) + flushed(sums[0] + sums[1])) + error;
      memcpy(out.row[m] + 4 * n, &total, 4);
    }
}

// Signed bytes of `a` with unsigned ones of `b`, modulo 2^32.
inline void dot_bytes(int c, int a, int b) {
  check(c, a, b);
  const Tile &left = used(a), &right = used(b);
  Tile& out = used(c);
  for (int m = 0; m < out.rows; m++)
    for (int n = 0; n < out.bytes / 4; n++) {
      uint32_t total;
      memcpy(&total, out.row[m] + 4 * n, 4);
      for (int k = 0; k < left.bytes / 4; k++)
        for (int i = 0; i < 4; i++) total += (uint32_t)((int8_t)left.row[m][4 * k + i] * (int32_t)right.row[k][4 * n + i]);
      memcpy(out.row[m] + 4 * n, &total, 4);
    }
}

}  // namespace emulated

#define __AMX_TILE__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig emulated::load_configuration
#define _tile_release emulated::release
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_zero emulated::zero
#define _tile_dpbf16ps emulated::dot_bf16
#define _tile_dpbsud emulated::dot_bytes
#define syscall emulated::system_call
