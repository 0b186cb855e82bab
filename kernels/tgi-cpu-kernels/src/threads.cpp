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
constexpr std::chrono::milliseconds WINDOW{20};  // of tasks, after which it is judged whether helpers help
constexpr std::chrono::milliseconds ALONE{200};  // first time without helpers, doubled up to LONGEST
constexpr std::chrono::milliseconds LONGEST{1600};
thread_local bool within = false;  // an item of a task
constexpr long PARTS = 4;  // for each thread, of what is left: a thread takes one of them

void rest() {
#if defined(__x86_64__)
  for (int i = 0; i < 32; i++) __builtin_ia32_pause();
#endif
}

// Wait for a helper: at first for one that is about to end, then for one whose core does something else, as ours could.
void wait(long turn) {
  if (turn < 64) rest();
  else if (turn < 1000) sched_yield();
  else std::this_thread::sleep_for(std::chrono::microseconds(50));
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
      const TileScope scope;
      for (long i = 0; i < items; i++) work(context, i);
      return;
    }
    work_ = work;
    context_ = context;
    ended_ = 0;
    ticket_ = (uint64_t)items << 32;
    if (sleeping_) {
      std::lock_guard<std::mutex> lock(sleepers_);
      wake_.notify_all();
    }
    take();
    const auto waiting = Clock::now();
    for (long turn = 0; ended_ != (uint64_t)items; turn++) wait(turn);
    const auto end = Clock::now();
    judge(end, end - begin, end - waiting);
  }

 private:
  // Leave helpers out for a while if waiting for them took nearly half of the time, as it does while another program
  // has one of the cores: two threads are then no faster than one. What takes a core now and then, as the server
  // does in every step, costs a short wait, less than the time without helpers would.
  void judge(Clock::time_point now, Clock::duration took, Clock::duration waited) {
    took_ += took;
    waited_ += waited;
    if (took_ < WINDOW) return;
    const bool late = waited_ * 5 > took_ * 2;
    if (late) alone_until_ = now + alone_;
    alone_ = late ? std::min<Clock::duration>(2 * alone_, LONGEST) : ALONE;
    took_ = waited_ = {};
  }

  bool left() const {
    const uint64_t ticket = ticket_;
    return (uint32_t)ticket < ticket >> 32;
  }

  // Do items until none is left, first many together, so that neighbours are read one after another, then fewer, so
  // that all threads end at once. How many items there are and the next one are in one number, so that those that
  // are taken belong to the task that runs; until they have ended, no other task begins.
  void take() {
    const TileScope scope;
    uint64_t ticket = ticket_;
    for (;;) {
      const uint64_t all = ticket >> 32, next = (uint32_t)ticket;
      if (next >= all) return;
      const uint64_t count = std::max<uint64_t>(1, (all - next) / (PARTS * (wanted_ + 1)));
      if (!ticket_.compare_exchange_weak(ticket, ticket + count)) continue;
      within = true;
      for (uint64_t i = next; i < next + count; i++) work_(context_, i);
      within = false;
      ended_ += count;
      ticket = ticket_;
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

  alignas(64) std::atomic<uint64_t> ticket_{0};  // items of the task, and in the lower half how many are taken
  alignas(64) std::atomic<uint64_t> ended_{0};  // items
  alignas(64) std::atomic<long> sleeping_{0};
  std::atomic<long> wanted_{0};  // helpers that take part
  long helpers_ = 0;
  void (*work_)(const void*, long) = nullptr;
  const void* context_ = nullptr;
  Clock::time_point alone_until_;
  Clock::duration took_{}, waited_{}, alone_ = ALONE;  // of the tasks of a window; the next time without helpers
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
