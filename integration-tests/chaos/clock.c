// A wall clock that jumps: put before libc by LD_PRELOAD, it adds the seconds in the file $WALL_CLOCK_OFFSET (a
// 64-bit integer) to every reading of CLOCK_REALTIME. Waits of the kernel until a time of day do not move.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef int (*Clock)(clockid_t, struct timespec *);

static int64_t offset(void) {
  static const volatile int64_t *shared;
  const char *path = getenv("WALL_CLOCK_OFFSET");
  if (!shared && path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (mapped != MAP_FAILED) shared = mapped;
  }
  return shared ? *shared : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  static Clock libc;
  if (!libc) libc = (Clock)dlsym(RTLD_NEXT, "clock_gettime");
  const int failed = libc(id, now);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec precise;
  const int failed = clock_gettime(CLOCK_REALTIME, &precise);
  if (!failed) *now = (struct timeval){precise.tv_sec, precise.tv_nsec / 1000};
  return failed;
}

time_t time(time_t *result) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  if (result) *result = now.tv_sec;
  return now.tv_sec;
}
