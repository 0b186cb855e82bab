// Whether the library computes here what it should: tried when it is loaded, before it is chosen.
#include "kernels.h"
#include "vec.h"

#include <csetjmp>
#include <csignal>
#include <vector>
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Small integers, whose sums of products are exact in every order.
long number(long i, long j) { return (i * 37 + j * 59 + i * j) % 15 - 7; }

constexpr long N = 33, K = 100, GROUP = 128;  // parts of a unit and of a step; the calling thread does all

template <typename Linear> bool right(long rows, const Linear& linear) {
  std::vector<bf16> x(rows * K), y(rows * N);
  for (long m = 0; m < rows; m++)
    for (long i = 0; i < K; i++) narrow(&x[m * K + i], i ? (float)number(m, i) : 127.0f);  // then 8 bits hold them exactly
  const LinearArguments a{x.data(), nullptr, nullptr, nullptr, y.data(), rows, N, K, K, N, N};
  linear(a);
  for (long m = 0; m < rows; m++)
    for (long n = 0; n < N; n++) {
      float sum = 0;
      for (long i = 0; i < K; i++) sum += widen(x[m * K + i]) * (float)number(n, i);
      bf16 wanted;
      narrow(&wanted, sum);
      if (y[m * N + n] != wanted) return false;
    }
  return true;
}

void dense(LinearArguments a) {
  std::vector<bf16> weight(N * K), packed(tgi_packed_size(BFLOAT16, N, K));
  for (long n = 0; n < N; n++)
    for (long i = 0; i < K; i++) narrow(&weight[n * K + i], (float)number(n, i));
  tgi_pack(BFLOAT16, weight.data(), N, K, K, packed.data());
  a.w = packed.data();
  tgi_linear(BFLOAT16, &a);
}

void integers(LinearArguments a) {
  std::vector<uint8_t> weight(N * K), packed(tgi_packed_ints_size(N, K, 8, GROUP));
  std::vector<float> scales(packed.size() / GROUP, 1.0f);
  for (long n = 0; n < N; n++)
    for (long i = 0; i < K; i++) weight[n * K + i] = (uint8_t)(128 + number(n, i));
  tgi_pack_ints(weight.data(), N, K, 8, GROUP, packed.data());
  a.w = packed.data();
  const QuantizedArguments quantized{a, scales.data(), nullptr, nullptr, nullptr, nullptr, 8, GROUP, 1, INTEGERS};
  tgi_quantized_linear(BFLOAT16, &quantized);
}

bool right() {
  for (long rows : {20, 33})  // a whole tile and a part, two and a row alone
    if (!right(rows, dense) || !right(rows, integers)) return false;
  return true;
}

sigjmp_buf before;
void give_up(int) { siglongjmp(before, 1); }

}  // namespace

// Null, or why the library must not be used.
extern "C" const char* tgi_check() {
#if defined(__AMX_TILE__)
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return "the system does not permit tile registers";
#endif
  struct sigaction action = {}, old[3];
  const int signals[3] = {SIGILL, SIGSEGV, SIGBUS};
  action.sa_handler = give_up;
  const char* volatile wrong = "an instruction failed";
  for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &old[i]);
  if (!sigsetjmp(before, 1)) wrong = right() ? nullptr : "a product is wrong";
  for (int i = 0; i < 3; i++) sigaction(signals[i], &old[i], nullptr);
  return wrong;
}
