// Threads that share the items of a task.
//
// `share(items, worth, work)` calls work(i) for every i below `items`, in any order and on any thread, and returns when
// all have ended. A thread takes the next item when it is free, the caller too, which waits for items that others
// have begun, never for a thread: one that sleeps or has lost its core holds nobody up. (A parallel region of
// OpenMP ends when every thread has arrived; on a machine with other programs that took ten times the work itself.)
// An item that shares a task does all of that itself.
#pragma once
#include "tiles.h"

#include <vector>

void share_items(long items, void (*work)(const void* context, long item), const void* context);

// `worth`: whether the work is worth waking another thread; else the caller does it alone.
template <typename Work> void share(long items, bool worth, const Work& work) {
  if (!worth || items < 2) {
    const TileScope scope;
    for (long i = 0; i < items; i++) work(i);
    return;
  }
  share_items(items, [](const void* context, long item) { (*(const Work*)context)(item); }, &work);
}

constexpr long SMALL = 1 << 15;  // numbers below which another thread is not worth waking, in the operations on rows

// Memory of the calling thread for `count` numbers, valid until its next call for this type.
template <typename T> T* scratch(long count) {
  static thread_local std::vector<T> memory;
  if ((long)memory.size() < count) memory.resize(count);
  return memory.data();
}
