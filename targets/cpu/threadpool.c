// The thread pool of a kernel library: TVM's parallel-launch ABI over pthreads and C11 atomics.
//
// A kernel calls through the data slot __TVMBackendParallelLaunch. TVM emits that slot as a weak symbol; the strong one
// here binds it to this pool, so a kernel library runs with libtvm_ffi alone. When libtvm_runtime is also loaded it
// overwrites the slot at load time: dsv3c_threads binds it back.
//
// A job is cut into more tasks than threads, taken from one counter, so that a thread that lost its core delays the job
// by one task only, and slower cores take fewer tasks: the more there are, the less others wait for a slow core's last.
// Where threads are divided among memory nodes and a kernel announced its weights, each node has a counter of its own,
// for the rows that lie in its memory; who finds none left takes those of the others.
// `gate` decides who may touch a job: its high half counts jobs, OPEN is set while workers may enter,
// the low bits count the workers inside. Fields of a job are written only while the gate is closed and nobody is inside.

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "native/cores.h"
#include "native/nodes.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#define EXPORT __attribute__((visibility("default")))

enum { MAX_THREADS = 256, SPINS = 4000, SPINS_PER_YIELD = 128 };
enum { PLACED = 1 << 12 };  // matrices; more than half of these are left where they lie
enum { TASKS_PER_THREAD = 4, TASKS_PER_THREAD_OF_UNEQUAL_CORES = 16 };

static const uint64_t OPEN = 1ull << 31, INSIDE = OPEN - 1, NEXT_JOB = 1ull << 32;

typedef struct { void *sync_handle; int32_t num_task; } ParallelGroupEnv;
typedef int (*ParallelLambda)(int task_id, ParallelGroupEnv *env, void *closure);

// What a node takes first of a job over items in rows of `period`: `items` of each row, from `first` on, `step` a task.
typedef struct {
  _Alignas(64) atomic_int next;  // task to take
  int tasks, first, items, step;
} Share;

static struct {
  pthread_mutex_t launching;  // held for the length of a job, and while threads start or stop
  pthread_mutex_t sleep;
  pthread_cond_t wake;
  _Atomic uint64_t gate;
  atomic_int sleepers;
  atomic_bool stopping;
  atomic_int next;   // task to take
  atomic_int error;  // first non-zero result of a task
  ParallelLambda lambda;
  void *closure;
  ParallelGroupEnv env;
  cores_mask cpus;   // that workers stay on; this and the next change only while there are none
  int tasks_per_thread;
  pthread_t threads[MAX_THREADS];
  int wanted;   // threads, the caller's one included; 0 until chosen; once they started, as many as there are
  int workers;  // threads started
  nodes_layout nodes;      // that they are divided among; changes only while there are no workers
  unsigned char node_of[MAX_THREADS];  // of each worker
  bool divides;            // wanted by dsv3c_nodes
  Share shares[NODES_MOST];
  int period;              // of the job's items; 0: tasks come from `next`
  const void *placed[PLACED];  // weights that lie where they are read, by hash
  int placed_count;
} pool = {.launching = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

// Optional: a task that fails on a worker leaves its error in that thread's storage, the caller has none to show.
__attribute__((weak)) void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

static void run_task(int task) {
  int result = pool.lambda(task, &pool.env, pool.closure), none = 0;
  if (result != 0) atomic_compare_exchange_strong(&pool.error, &none, result);
}

// To a kernel each item is a task here.
static void run_share(Share *share) {
  int tasks_of_row = share->items ? (share->items - 1) / share->step + 1 : 1;
  for (int task; (task = atomic_fetch_add(&share->next, 1)) < share->tasks;) {
    int from = task % tasks_of_row * share->step, row = task / tasks_of_row * pool.period + share->first;
    for (int i = from; i < from + share->step && i < share->items; i++) run_task(row + i);
  }
}

// node: that the calling thread is on.
static void run_tasks(int node) {
  for (int i = 0; pool.period && i < pool.nodes.count; i++) run_share(&pool.shares[(node + i) % pool.nodes.count]);
  if (pool.period) return;
  for (int task; (task = atomic_fetch_add(&pool.next, 1)) < pool.env.num_task;) run_task(task);
}

static bool job_for(uint64_t seen) {
  uint64_t gate = atomic_load(&pool.gate);
  return (gate & OPEN) && (gate >> 32) != seen;
}

static bool enter(uint64_t *seen) {
  uint64_t gate = atomic_load(&pool.gate);
  while ((gate & OPEN) && (gate >> 32) != *seen) {
    if (!atomic_compare_exchange_weak(&pool.gate, &gate, gate + 1)) continue;
    *seen = gate >> 32;
    return true;
  }
  return false;
}

// Now and then the core goes to whoever else wants it: the thread that is waited for, or another program's.
static void wait_a_little(int spin) {
  if (spin % SPINS_PER_YIELD != SPINS_PER_YIELD - 1) PAUSE();
  else sched_yield();
}

static void wait_for_job(uint64_t seen) {
  for (int spin = 0; spin < SPINS; spin++) {
    if (job_for(seen) || atomic_load(&pool.stopping)) return;
    wait_a_little(spin);
  }
  pthread_mutex_lock(&pool.sleep);
  atomic_fetch_add(&pool.sleepers, 1);  // before the last look: the launcher looks at it after opening the gate
  while (!job_for(seen) && !atomic_load(&pool.stopping)) pthread_cond_wait(&pool.wake, &pool.sleep);
  atomic_fetch_sub(&pool.sleepers, 1);
  pthread_mutex_unlock(&pool.sleep);
}

static void wake_sleepers(void) {
  if (atomic_load(&pool.sleepers) == 0) return;
  pthread_mutex_lock(&pool.sleep);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.sleep);
}

static void *worker(void *number) {
  int node = pool.node_of[(intptr_t)number];
  cores_stay_on(pool.nodes.count > 1 ? &pool.nodes.cpus[node] : &pool.cpus);
  uint64_t seen = ~0ull;
  while (!atomic_load(&pool.stopping)) {
    if (!enter(&seen)) {
      wait_for_job(seen);
      continue;
    }
    run_tasks(node);
    atomic_fetch_sub(&pool.gate, 1);
  }
  return 0;
}

static int default_threads(void) {
  int threads = cores_default();
  return threads < MAX_THREADS ? threads : MAX_THREADS;
}

// A forked child has none of the threads and may have inherited held locks.
static void forget_threads(void) {
  pool.launching = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  pool.sleep = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  pool.wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  atomic_store(&pool.gate, 0);
  atomic_store(&pool.sleepers, 0);
  atomic_store(&pool.stopping, false);
  pool.workers = 0;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(0, 0, forget_threads); }

// What this thread's kernel said of its next launch; `items` 0: nothing.
static _Thread_local struct { int items; nodes_weights weights; } announced;

// What a kernel says right before it launches `items` items over weights (see nodes_weights): up to three arrays of so
// many bytes a block, 0 for one that is not there. Nothing is divided where items are not rows of a segment's.
static int announce(int items, int segments, int blocks, int run, const void *data, int64_t data_block,
                    const void *scale, int64_t scale_block, const void *zero, int64_t zero_block) {
  announced.items = items % nodes_items(blocks, run) == 0 ? items : 0;
  announced.weights =
    (nodes_weights){segments, blocks, run, {{data, data_block}, {scale, scale_block}, {zero, zero_block}}};
  return 0;
}

// Whom kernels tell. Theirs is a weak symbol, for pools that do not listen; null while nothing is divided.
typedef typeof(&announce) Listener;
_Atomic(Listener) dsv3c_announce;

// Find where the workers that are wanted will run. The caller is one of the threads of the node that it is on.
static void choose_places(void) {
  if (pool.wanted == 0) pool.wanted = default_threads();
  pool.tasks_per_thread =
    cores_to_stay_on(pool.wanted, &pool.cpus) ? TASKS_PER_THREAD_OF_UNEQUAL_CORES : TASKS_PER_THREAD;
  pool.nodes.count = 1;
  if (!pool.divides) return;
  nodes_divide(SYSTEM_ROOT, &pool.cpus, pool.wanted, &pool.nodes);
  if (pool.nodes.count > 1 && nodes_told()) pool.nodes.count = 1;
  if (pool.nodes.count > 1) atomic_store(&dsv3c_announce, announce);
  int here = nodes_here(&pool.nodes), worker = 0;
  for (int node = 0; pool.nodes.count > 1 && node < pool.nodes.count; node++)
    for (int i = pool.nodes.first[node] + (node == here); i < pool.nodes.first[node + 1]; i++)
      pool.node_of[worker++] = (unsigned char)node;
}

// Both with `launching` held.
static void start_workers(void) {
  if (pool.workers == 0) choose_places();
  static const int faults[] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE};
  sigset_t all, before;
  sigfillset(&all);  // signals are for the program's own threads, but for those that tell of this one's own faults
  for (int i = 0; i < 4; i++) sigdelset(&all, faults[i]);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int *n = &pool.workers; *n < pool.wanted - 1; ++*n)
    if (pthread_create(&pool.threads[*n], 0, worker, (void *)(intptr_t)*n) != 0) break;
  pool.wanted = pool.workers + 1;  // what the system refused is not asked for at each launch again
  pthread_sigmask(SIG_SETMASK, &before, 0);
}

static void stop_workers(void) {
  atomic_store(&pool.stopping, true);
  pthread_mutex_lock(&pool.sleep);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.sleep);
  for (int i = 0; i < pool.workers; i++) pthread_join(pool.threads[i], 0);
  pool.workers = 0;
  atomic_store(&pool.stopping, false);
}

__attribute__((destructor)) static void destroy(void) {
  pthread_mutex_lock(&pool.launching);
  stop_workers();
  pthread_mutex_unlock(&pool.launching);
}

static int run_alone(ParallelLambda lambda, void *closure, int num_task) {
  ParallelGroupEnv env = {0, num_task > 0 ? num_task : 1};
  for (int task = 0; task < env.num_task; task++) {
    int result = lambda(task, &env, closure);
    if (result != 0) return result;
  }
  return 0;
}

// Run a job on all threads, with `launching` held. Returns the first error of a task.
static int run_job(ParallelLambda lambda, void *closure, int num_task, int period) {
  pool.lambda = lambda;
  pool.closure = closure;
  pool.env = (ParallelGroupEnv){0, num_task};
  pool.period = period;
  atomic_store(&pool.next, 0);
  atomic_store(&pool.error, 0);
  uint64_t job = (atomic_load(&pool.gate) & ~(OPEN | INSIDE)) + NEXT_JOB;
  atomic_store(&pool.gate, job | OPEN);
  wake_sleepers();
  run_tasks(pool.nodes.count > 1 ? nodes_here(&pool.nodes) : 0);
  atomic_fetch_and(&pool.gate, ~OPEN);  // a worker that comes now finds no job; those inside finish theirs
  for (int spin = 0; (atomic_load(&pool.gate) & INSIDE) != 0; spin++) wait_a_little(spin);
  return atomic_load(&pool.error);
}

// The same over items of which every `period` are divided among the nodes alike.
static int run_divided(ParallelLambda lambda, void *closure, int items, int period) {
  int rows = items / period;
  for (int node = 0; node < pool.nodes.count; node++) {
    Share *share = &pool.shares[node];
    int tasks = (pool.nodes.first[node + 1] - pool.nodes.first[node]) * pool.tasks_per_thread;
    share->first = nodes_begin(&pool.nodes, node, period);
    share->items = nodes_begin(&pool.nodes, node + 1, period) - share->first;
    share->step = (int)(((int64_t)rows * share->items + tasks - 1) / tasks);
    if (share->step > share->items) share->step = share->items;
    share->tasks = share->items ? rows * ((share->items - 1) / share->step + 1) : 0;
    atomic_store(&share->next, 0);
  }
  return run_job(lambda, closure, items, period);
}

static int place(int thread, ParallelGroupEnv *env, void *weights) {
  (void)env;
  nodes_place(&pool.nodes, weights, thread);
  return 0;
}

// Whether these weights have not been seen yet, and there is room to note it.
static bool is_new(const void *weights) {
  uintptr_t at = (uintptr_t)weights / 64 * 0x9e3779b1u % PLACED;
  while (pool.placed[at] && pool.placed[at] != weights) at = (at + 1) % PLACED;
  if (pool.placed[at] || pool.placed_count >= PLACED / 2) return false;
  pool.placed[at] = weights;
  pool.placed_count++;
  return true;
}

// Also of a launch that runs alone: what was said is of no later one.
static int take_announced(void) {
  if (!atomic_load_explicit(&dsv3c_announce, memory_order_relaxed)) return 0;
  int items = announced.items;
  announced.items = 0;
  return items;
}

static int run_over(nodes_weights *weights, ParallelLambda lambda, void *closure, int items) {
  int threads = pool.nodes.first[pool.nodes.count];
  if (is_new(weights->parts[0].data)) run_divided(place, weights, threads, threads);
  return run_divided(lambda, closure, items, nodes_items(weights->blocks, weights->run));
}

// num_task 0: as many as the pool sees fit. A nested or concurrent launch runs in its own thread.
static int launch(ParallelLambda lambda, void *closure, int num_task) {
  int items = take_announced();
  if (pthread_mutex_trylock(&pool.launching) != 0) return run_alone(lambda, closure, num_task);
  if (pool.workers < pool.wanted - 1 || pool.wanted == 0) start_workers();
  if (pool.workers == 0) {
    pthread_mutex_unlock(&pool.launching);
    return run_alone(lambda, closure, num_task);
  }
  int tasks = num_task > 0 ? num_task : (pool.workers + 1) * pool.tasks_per_thread;
  int error = items > 0 && pool.nodes.count > 1 ? run_over(&announced.weights, lambda, closure, items)
                                                : run_job(lambda, closure, tasks, 0);
  pthread_mutex_unlock(&pool.launching);
  if (error != 0 && TVMFFIErrorSetRaisedFromCStr)
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a task of a parallel kernel failed");
  return error;
}

#ifdef DSV3C_PLAN
// The sha256 of the plan that the kernels were compiled for: it calls them with what they take, another may not.
EXPORT const char dsv3c_plan[] = DSV3C_PLAN;
#endif

EXPORT int (*__TVMBackendParallelLaunch)(ParallelLambda, void *, int) = launch;

// Run kernels of this library on `n` threads (0: one a performance core), on this pool. Returns the number in effect.
EXPORT int dsv3c_threads(int n) {
  pthread_mutex_lock(&pool.launching);
  int wanted = n < 1 ? default_threads() : n > MAX_THREADS ? MAX_THREADS : n;
  if (wanted != pool.wanted) stop_workers();
  pool.wanted = wanted;
  __TVMBackendParallelLaunch = launch;
  pthread_mutex_unlock(&pool.launching);
  return wanted;
}

// Divide threads and weights among the memory nodes of the machine, in proportion to their cores, before kernels run;
// or, with `weight_bytes` 0, do not. Weights are brought to their node when a kernel first meets them. Returns the
// number of nodes: 1 where there is one, where memory has no room for so many bytes, or numactl says where memory lies.
EXPORT int dsv3c_nodes(uint64_t weight_bytes) {
  uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
  pthread_mutex_lock(&pool.launching);
  stop_workers();
  pool.divides = weight_bytes > 0 && weight_bytes <= memory;
  choose_places();
  int count = pool.nodes.count;
  pthread_mutex_unlock(&pool.launching);
  return count;
}

// Memory that nobody touched yet, and that all nodes will read, is spread over them page by page.
EXPORT void dsv3c_spread(const void *data, uint64_t bytes) {
  pthread_mutex_lock(&pool.launching);
  if (pool.nodes.count > 1) nodes_interleave(&pool.nodes, data, bytes);
  pthread_mutex_unlock(&pool.launching);
}
