// The system sends SIGBUS to whoever reads a mapped page that its file no longer has: truncated, or on a disk that fails.
// The handler puts zeros into the place of the whole file, so that the instruction and the step come to their end, and
// notes it for who looks after the step. Nothing is asked or counted while all is well.

#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

enum { SLOTS = 256 };

static struct {
  _Atomic uintptr_t base;  // 0: free
  size_t size;
  int lost;
} slots[SLOTS];
static pthread_mutex_t taking = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;

static void pass_on(int number, siginfo_t *info, void *context) {
  if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
  else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(number);
  else if (before.sa_handler == SIG_DFL || info->si_code > 0) {
    sigaction(number, &before, 0);  // a fault happens again when this returns, and then ends the program
    if (info->si_code <= 0) raise(number);
  }
}

static void on_bus(int number, siginfo_t *info, void *context) {
  uintptr_t at = (uintptr_t)info->si_addr;
  for (int i = 0; i < SLOTS && info->si_code > 0; i++) {  // not above 0: a program sent it
    uintptr_t base = atomic_load(&slots[i].base);
    if (base == 0 || at < base || at - base >= slots[i].size) continue;
    int error = errno;
    __atomic_store_n(&slots[i].lost, 1, __ATOMIC_SEQ_CST);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    if (mmap((void *)base, slots[i].size, PROT_READ, flags, -1, 0) == MAP_FAILED) break;
    errno = error;
    return;
  }
  pass_on(number, info, context);
}

static void take_signal(void) {
  struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

int *dsv3c_watch(void *base, size_t size) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, take_signal);
  int *lost = 0;
  pthread_mutex_lock(&taking);
  for (int i = 0; i < SLOTS && !lost; i++) {
    if (atomic_load(&slots[i].base) != 0) continue;
    slots[i].size = size;
    slots[i].lost = 0;
    atomic_store(&slots[i].base, (uintptr_t)base);
    lost = &slots[i].lost;
  }
  pthread_mutex_unlock(&taking);
  return lost;
}

void dsv3c_unwatch(int *lost) {
  for (int i = 0; i < SLOTS; i++)
    if (&slots[i].lost == lost) atomic_store(&slots[i].base, 0);
}
