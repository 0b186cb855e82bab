#include "threads.h"

#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <sched.h>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds AWAKE{200};  // time that a helper looks for work before it sleeps
constexpr std::chrono::microseconds LATE{300};  // wait for a helper that seems to have lost its core
constexpr std::chrono::seconds LONGEST{1};  // time without helpers after a wait
thread_local bool within = false;  // an item of a task
constexpr long PIECES = 16;  // of a task with many items, for each thread

void rest() {
#if defined(__x86_64__)
  for (int i = 0; i < 32; i++) __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  void resize(long threads) {
    std::lock_guard<std::mutex> alone(caller_);
    wanted_ = threads - 1;
    for (; helpers_ < wanted_; helpers_++) std::thread([this, number = helpers_] { help(number); }).detach();
  }

  void share(long items, void (*work)(const void*, long), const void* context) {
    if (within) {
      for (long i = 0; i < items; i++) work(context, i);
      return;
    }
    std::unique_lock<std::mutex> alone(caller_, std::try_to_lock);
    const auto begin = Clock::now();
    if (!alone || wanted_ == 0 || begin < alone_until_) {  // or another thread of the program shares a task
      for (long i = 0; i < items; i++) work(context, i);
      return;
    }
    work_ = work;
    context_ = context;
    items_ = items;
    piece_ = std::max(1L, items / (PIECES * (wanted_ + 1)));
    const uint64_t pieces = (items + piece_ - 1) / piece_;
    ended_ = 0;
    ticket_ = pieces << 32;
    if (sleeping_) {
      std::lock_guard<std::mutex> lock(sleepers_);
      wake_.notify_all();
    }
    take();
    const auto waiting = Clock::now();
    for (long turn = 0; ended_ != pieces; turn++) turn < 64 ? rest() : (void)sched_yield();
    // A helper that lost its core in the middle of a piece is late by milliseconds, and will be again as long as
    // another program has the core. Without helpers for a hundred times as long, at most 1 % of the time is lost.
    const auto end = Clock::now();
    const auto waited = end - waiting;
    if (waited > LATE && waited > (waiting - begin) / 4)
      alone_until_ = end + std::min<Clock::duration>(100 * waited, LONGEST);
  }

 private:
  bool left() const {
    const uint64_t ticket = ticket_;
    return (uint32_t)ticket < ticket >> 32;
  }

  // Do pieces until none is left. How many there are and the next one are in one number, so that a piece that is
  // taken is one of the task that runs; until it has ended, no other task begins.
  void take() {
    while (left()) {
      const uint64_t ticket = ticket_++;
      if ((uint32_t)ticket >= ticket >> 32) return;
      const long begin = (uint32_t)ticket * piece_, end = std::min(items_, begin + piece_);
      within = true;
      for (long i = begin; i < end; i++) work_(context_, i);
      within = false;
      ended_++;
    }
  }

  void help(long number) {
    for (;;) {
      const auto begin = Clock::now();
      while (!left() && Clock::now() - begin < AWAKE) {
        rest();
        sched_yield();
      }
      if (number < wanted_ && left()) {
        take();
        continue;
      }
      std::unique_lock<std::mutex> lock(sleepers_);
      sleeping_++;
      wake_.wait(lock, [&] { return number < wanted_ && left(); });
      sleeping_--;
    }
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};  // pieces of the task, and in the lower half how many are taken
  alignas(64) std::atomic<uint64_t> ended_{0};  // pieces
  alignas(64) std::atomic<long> sleeping_{0};
  std::atomic<long> wanted_{0};  // helpers that take part
  long helpers_ = 0, items_ = 0, piece_ = 1;  // piece_: items that are taken together
  void (*work_)(const void*, long) = nullptr;
  const void* context_ = nullptr;
  Clock::time_point alone_until_;
  std::mutex caller_, sleepers_;
  std::condition_variable wake_;
};

Pool& pool() {
  static Pool& one = *new Pool;  // never destroyed: its threads run until the process ends
  return one;
}

}  // namespace

void share_items(long items, void (*work)(const void*, long), const void* context) { pool().share(items, work, context); }

extern "C" void tgi_use_threads(long threads) { pool().resize(threads); }
