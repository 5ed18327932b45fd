// The thread pool of a kernel library: TVM's parallel-launch ABI over pthreads and C11 atomics.
//
// A kernel calls through the data slot __TVMBackendParallelLaunch. TVM emits that slot as a weak symbol; the strong one
// here binds it to this pool, so a kernel library runs with libtvm_ffi alone. When libtvm_runtime is also loaded it
// overwrites the slot at load time: dsv3c_threads binds it back.
//
// A job is cut into more tasks than threads, taken from one counter, so that a thread that lost its core delays the job
// by one task only, and slower cores take fewer tasks: the more there are, the less others wait for a slow core's last.
// `gate` decides who may touch a job: its high half counts jobs, OPEN is set while workers may enter,
// the low bits count the workers inside. Fields of a job are written only while the gate is closed and nobody is inside.

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "native/cores.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#define EXPORT __attribute__((visibility("default")))

enum { MAX_THREADS = 256, SPINS = 4000, SPINS_PER_YIELD = 128 };
enum { TASKS_PER_THREAD = 4, TASKS_PER_THREAD_OF_UNEQUAL_CORES = 16 };

static const uint64_t OPEN = 1ull << 31, INSIDE = OPEN - 1, NEXT_JOB = 1ull << 32;

typedef struct { void *sync_handle; int32_t num_task; } ParallelGroupEnv;
typedef int (*ParallelLambda)(int task_id, ParallelGroupEnv *env, void *closure);

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
  int wanted;   // threads, the caller's one included; 0 until chosen
  int workers;  // threads started
} pool = {.launching = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

// Optional: a task that fails on a worker leaves its error in that thread's storage, the caller has none to show.
__attribute__((weak)) void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

static void run_tasks(void) {
  for (int task; (task = atomic_fetch_add(&pool.next, 1)) < pool.env.num_task;) {
    int result = pool.lambda(task, &pool.env, pool.closure), none = 0;
    if (result != 0) atomic_compare_exchange_strong(&pool.error, &none, result);
  }
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

static void *worker(void *unused) {
  (void)unused;
  cores_stay_on(&pool.cpus);
  uint64_t seen = ~0ull;
  while (!atomic_load(&pool.stopping)) {
    if (!enter(&seen)) {
      wait_for_job(seen);
      continue;
    }
    run_tasks();
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

// Both with `launching` held.
static void start_workers(void) {
  if (pool.wanted == 0) pool.wanted = default_threads();
  if (pool.workers == 0)
    pool.tasks_per_thread =
      cores_to_stay_on(pool.wanted, &pool.cpus) ? TASKS_PER_THREAD_OF_UNEQUAL_CORES : TASKS_PER_THREAD;
  static const int faults[] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE};
  sigset_t all, before;
  sigfillset(&all);  // signals are for the program's own threads, but for those that tell of this one's own faults
  for (int i = 0; i < 4; i++) sigdelset(&all, faults[i]);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.workers < pool.wanted - 1 && pthread_create(&pool.threads[pool.workers], 0, worker, 0) == 0) pool.workers++;
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

// num_task 0: as many as the pool sees fit. A nested or concurrent launch runs in its own thread.
static int launch(ParallelLambda lambda, void *closure, int num_task) {
  if (pthread_mutex_trylock(&pool.launching) != 0) return run_alone(lambda, closure, num_task);
  if (pool.workers < pool.wanted - 1 || pool.wanted == 0) start_workers();
  if (pool.workers == 0) {
    pthread_mutex_unlock(&pool.launching);
    return run_alone(lambda, closure, num_task);
  }
  pool.lambda = lambda;
  pool.closure = closure;
  pool.env = (ParallelGroupEnv){0, num_task > 0 ? num_task : (pool.workers + 1) * pool.tasks_per_thread};
  atomic_store(&pool.next, 0);
  atomic_store(&pool.error, 0);
  uint64_t job = (atomic_load(&pool.gate) & ~(OPEN | INSIDE)) + NEXT_JOB;
  atomic_store(&pool.gate, job | OPEN);
  wake_sleepers();
  run_tasks();
  atomic_fetch_and(&pool.gate, ~OPEN);  // a worker that comes now finds no job; those inside finish theirs
  for (int spin = 0; (atomic_load(&pool.gate) & INSIDE) != 0; spin++) wait_a_little(spin);
  int error = atomic_load(&pool.error);
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
