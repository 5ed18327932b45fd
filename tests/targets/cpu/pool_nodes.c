// The thread pool of a kernel library on a machine with memory nodes that is made up: which node's threads take which
// item of a launch over weights, and which pages come to which node. Calls of the system take the place of those of the
// C library; the files of the machine lie in SYSTEM_ROOT.
//
//     pool_nodes THREADS SLOW ROWS SEGMENTS BLOCKS RUN BYTES
//
// SLOW: the node whose threads are not done before all items are taken, or -1; each task must be one item then, as nobody
// else takes the rest of a task. ROWS: how often the blocks of a segment make a launch's items. BYTES: of a block. Prints
// the number of nodes; for each item how many launches gave it to each node; for each page of the weights the node that it
// was moved to, -1 for none.

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CPUS = 8, NODES = 2, ITEMS = 512, PAGE = 4096, PAGES = 1 << 16, LAUNCHES = 20 };

typedef struct { void *sync; int32_t num_task; } Env;
typedef int (*Lambda)(int, Env *, void *);
extern int (*__TVMBackendParallelLaunch)(Lambda, void *, int);
extern int (*dsv3c_announce)(int, int, int, int, const void *, int64_t, const void *, int64_t, const void *, int64_t);
extern int dsv3c_threads(int);
extern int dsv3c_nodes(uint64_t);

static _Thread_local int here;  // the node that the calling thread is bound to; that of the caller is 0
static int slow = -1, policy;
static atomic_int taken[ITEMS][NODES], tasks;
static _Atomic signed char moved[PAGES];
static unsigned char *weights;

int sched_getaffinity(pid_t thread, size_t size, cpu_set_t *set) {
  memset(set, 0, size);
  for (int cpu = 0; cpu < CPUS; cpu++) CPU_SET_S(cpu, size, set);
  return 0;
}

int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t *set) {
  here = CPU_ISSET_S(CPUS - 1, size, set);
  if (CPU_COUNT_S(size, set) == CPUS) abort();
  return 0;
}

int sched_getcpu(void) { return 0; }

// Of the system: what numactl set, where pages lie (all on node 0), and moving them, which is noted.
long syscall(long number, ...) {
  va_list rest;
  va_start(rest, number);
  if (number == SYS_get_mempolicy) *va_arg(rest, int *) = policy;
  if (number == SYS_move_pages) {
    va_arg(rest, int);
    long count = va_arg(rest, long);
    unsigned char **pages = va_arg(rest, unsigned char **);
    int *wanted = va_arg(rest, int *), *places = va_arg(rest, int *);
    for (long i = 0; i < count; i++)
      if (wanted) atomic_store(&moved[(pages[i] - weights) / PAGE], (signed char)wanted[i]);
      else places[i] = 0;
  }
  va_end(rest);
  return 0;
}

static int items, together;  // of a launch, and how many threads take an item before any of them takes another
static atomic_int begun;

static int item(int i, Env *env, void *unused) {
  atomic_fetch_add(&taken[i][here], 1);
  int turn = atomic_fetch_add(&begun, 1) / together, last = here == slow ? items : (turn + 1) * together;
  while (atomic_load(&begun) < (last < items ? last : items)) usleep(20);
  return i == ITEMS - 1 ? -7 : 0;
}

static int launch(void) {
  atomic_store(&begun, 0);
  return __TVMBackendParallelLaunch(item, 0, 0);
}

static int count(int i, Env *env, void *unused) { return atomic_store(&tasks, env->num_task), 0; }

#define MUST(x) if (!(x)) { printf("failed: %s\n", #x); exit(1); }

static int segments, blocks, run, block;

static void announce(int count) {
  if (dsv3c_announce) dsv3c_announce(count, segments, blocks, run, weights, block, 0, 0, 0, 0);
}

// Says something of a launch that runs alone, as the pool is busy.
static int nested(int i, Env *env, void *unused) {
  announce(4);
  return __TVMBackendParallelLaunch(count, 0, 4);
}

int main(int n, char **a) {
  int threads = atoi(a[1]), rows = atoi(a[3]);
  slow = atoi(a[2]), segments = atoi(a[4]), blocks = atoi(a[5]), run = atoi(a[6]), block = atoi(a[7]);
  items = rows * ((blocks + run - 1) / run), together = slow < 0 ? threads : 1;
  size_t pages = ((size_t)segments * blocks * block + PAGE - 1) / PAGE;
  MUST(items < ITEMS && pages < PAGES && (slow < 0 || items <= threads * 4));
  weights = aligned_alloc(PAGE, pages * PAGE);
  memset(weights, 1, pages * PAGE);
  memset(moved, -1, sizeof moved);

  MUST(dsv3c_threads(threads) == threads && dsv3c_nodes(0) == 1 && !dsv3c_announce);
  policy = 3;
  MUST(dsv3c_nodes(1) == 1 && dsv3c_nodes(0) == 1 && !dsv3c_announce);
  policy = 0;
  MUST(dsv3c_nodes(1ull << 60) == 1 && !dsv3c_announce);
  MUST(dsv3c_threads(1) == 1 && dsv3c_nodes(1) == 1 && !dsv3c_announce);
  MUST(dsv3c_threads(threads) == threads);
  printf("%d\n", dsv3c_nodes(pages * PAGE));

  for (int i = 0; i < LAUNCHES; i++) {
    announce(items);
    MUST(launch() == 0);
  }
  for (int i = 0; i < items; i++) printf("%d,%d ", taken[i][0], taken[i][1]);
  puts("");
  for (size_t page = 0; page < pages; page++) printf("%d ", moved[page]);
  puts("");
  fflush(stdout);

  MUST(__TVMBackendParallelLaunch(nested, 0, threads) == 0);
  for (int i = 0; i < 10; i++) {
    MUST(__TVMBackendParallelLaunch(count, 0, 0) == 0);
    MUST(tasks == threads * 4);  // nothing is left of what was said
  }
  if (dsv3c_announce) dsv3c_announce(7, segments, blocks, run, weights, block, 0, 0, 0, 0);
  MUST(items % 7 == 0 || (__TVMBackendParallelLaunch(count, 0, 0) == 0 && tasks == threads * 4));
  pid_t child = fork();
  if (child == 0) {
    memset(taken, 0, sizeof taken);
    together = 1;
    announce(items);
    MUST(launch() == 0);
    for (int i = 0; i < items; i++) MUST(taken[i][0] + taken[i][1] == 1);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  MUST(status == 0);
  MUST(dsv3c_nodes(0) == 1);
  announce(items);
  MUST(__TVMBackendParallelLaunch(count, 0, 0) == 0 && tasks == threads * 4);
  return 0;
}
