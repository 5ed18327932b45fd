// What this machine can do at most, measured on the pool of a kernel library: how fast memory streams in, and how many
// multiply-adds a second its vector units reach on registers. The callers take the time.
//
// Compiled with the vector flags of the library's level, so each library measures the units its kernels use. Their
// instructions stand as assembly: immintrin.h alone takes longer to compile than all of this.

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct { void *sync_handle; int32_t num_task; } ParallelGroupEnv;
typedef int (*ParallelLambda)(int task_id, ParallelGroupEnv *env, void *closure);
extern int (*__TVMBackendParallelLaunch)(ParallelLambda, void *, int);  // the pool's, see threadpool.c

// Independent sums: at least the cycles a multiply-add takes, times the units; fewer than there are registers.
enum { LINE = 64, AHEAD = 4096, CHAINS = 12 };

#if defined(__AVX512F__)
enum { VECTOR = 64 };
#elif defined(__AVX__)
enum { VECTOR = 32 };
#else
enum { VECTOR = 16 };
#endif

typedef uint64_t words __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(VECTOR)));

// The compiler must take what is in this register for unknown: else it merges chains and moves products out of loops.
#if defined(__x86_64__)
#define UNKNOWN(x) __asm__ volatile("" : "+x"(x))
#elif defined(__aarch64__)
#define UNKNOWN(x) __asm__ volatile("" : "+w"(x))
#else
#define UNKNOWN(x) __asm__ volatile("" : "+m"(x))
#endif

// Keeps a result that nothing reads: the compiler must not drop what computed it.
static volatile uint64_t kept;

typedef struct { const words *data; size_t lines; } Stream;

static int read_part(int task, ParallelGroupEnv *env, void *closure) {
  const Stream *stream = closure;
  size_t begin = stream->lines * task / env->num_task, end = stream->lines * (task + 1) / env->num_task;
  const words *p = stream->data;
  words a = {0}, b = {0}, c = {0}, d = {0};
  for (; begin + 4 <= end; begin += 4) {
    for (int i = 0; i < 4; i++) __builtin_prefetch((const char *)(p + begin + i) + AHEAD);
    a ^= p[begin];
    b ^= p[begin + 1];
    c ^= p[begin + 2];
    d ^= p[begin + 3];
  }
  for (; begin < end; begin++) a ^= p[begin];
  a ^= b ^ c ^ d;
  kept = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
  return 0;
}

// Reads `size` bytes (64-byte aligned; a rest of less than a line is left out) once, on all threads.
EXPORT void dsv3c_probe_read(const void *data, size_t size) {
  Stream stream = {data, size / LINE};
  __TVMBackendParallelLaunch(read_part, &stream, 0);
}

// Counts operations, two a multiply-add, of `rounds` rounds by one task.
typedef struct { long rounds; int operations; ParallelLambda part; } Burst;

static int float_part(int task, ParallelGroupEnv *env, void *closure) {
  (void)env;
  floats sum[CHAINS] = {{0}}, x, y;
  for (int i = 0; i < CHAINS; i++) UNKNOWN(sum[i]);
  for (size_t i = 0; i < sizeof x / sizeof(float); i++) x[i] = 0.5f, y[i] = (float)task;
  for (long round = ((const Burst *)closure)->rounds; round > 0; round--) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * x + y;
  }
  for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
  kept = (uint64_t)sum[0][0];
  return 0;
}

// Products of bytes summed into i32, by the instructions this level has for it.
#if defined(__AMX_INT8__)
#define NO_INTEGERS  // but tiles
#elif defined(__AVX2__)
typedef int32_t integers __attribute__((vector_size(VECTOR)));
#if defined(__AVX512VNNI__)
#define DOT "vpdpbusd %3, %2, %0"
#elif defined(__AVXVNNI__)
#define DOT "%{vex%} vpdpbusd %3, %2, %0"
#else
#define DOT "vpmaddubsw %3, %2, %1\n vpmaddwd %4, %1, %1\n vpaddd %1, %0, %0"
#endif
static inline integers dot(integers sum, integers a, integers b) {
  integers pairs, ones = (integers){0} + 0x10001;
  __asm__(DOT : "+x"(sum), "=&x"(pairs) : "x"(a), "x"(b), "x"(ones));
  return sum;
}
#elif defined(__aarch64__)
typedef int32_t integers __attribute__((vector_size(16)));
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define PRODUCTS 32  // of two by two rows of eight
#define DOT "usmmla %0.4s, %3.16b, %4.16b"
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOT "sdot %0.4s, %3.16b, %4.16b"
#else
#define DOT \
  "smull %1.8h, %3.8b, %4.8b\n smull2 %2.8h, %3.16b, %4.16b\n addp %1.8h, %1.8h, %2.8h\n sadalp %0.4s, %1.8h"
#endif
static inline integers dot(integers sum, integers a, integers b) {
  integers low, high;
  __asm__(DOT : "+w"(sum), "=&w"(low), "=&w"(high) : "w"(a), "w"(b));
  return sum;
}
#else
#define NO_INTEGERS
#endif

#ifndef PRODUCTS
#define PRODUCTS sizeof(integers)  // one a byte
#endif

#ifndef NO_INTEGERS
static int integer_part(int task, ParallelGroupEnv *env, void *closure) {
  (void)env;
  integers sum[CHAINS] = {{0}}, a = {task}, b = {1};
  for (int i = 0; i < CHAINS; i++) UNKNOWN(sum[i]);
  for (long round = ((const Burst *)closure)->rounds; round > 0; round--) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) {
      UNKNOWN(a);
      sum[i] = dot(sum[i], a, b);
    }
  }
  for (int i = 1; i < CHAINS; i++) sum[0] ^= sum[i];
  kept = (uint64_t)sum[0][0];
  return 0;
}
#endif

#if defined(__AMX_INT8__)
enum { TILE_PRODUCTS = 16 * 16 * 64 };

// Tiles of sixteen rows of 64 bytes. Four sums in turn are about what hides the latency of a product.
static int tile_part(int task, ParallelGroupEnv *env, void *closure) {
  (void)task, (void)env;
  static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  __asm__ volatile("ldtilecfg %0" : : "m"(config));  // clears the tiles too
  for (long round = ((const Burst *)closure)->rounds; round > 0; round--) {
    for (int i = 0; i < CHAINS; i += 4) {
      __asm__ volatile("tdpbsud %tmm6, %tmm4, %tmm0\n tdpbsud %tmm6, %tmm5, %tmm1");
      __asm__ volatile("tdpbsud %tmm7, %tmm4, %tmm2\n tdpbsud %tmm7, %tmm5, %tmm3");
    }
  }
  __asm__ volatile("tilerelease");
  return 0;
}
#endif

static int count_tasks(int task, ParallelGroupEnv *env, void *closure) {
  Burst *burst = closure;
  if (task == 0) burst->operations *= env->num_task;
  return burst->part(task, env, closure);
}

static double burst(ParallelLambda part, int operations, long rounds) {
  Burst job = {rounds, operations * CHAINS, part};
  __TVMBackendParallelLaunch(count_tasks, &job, 0);
  return (double)job.operations * (double)rounds;
}

// Both do `rounds` rounds in each task and return the number of operations done; 0: the level has no such unit.
EXPORT double dsv3c_probe_float(long rounds) { return burst(float_part, 2 * sizeof(floats) / sizeof(float), rounds); }

EXPORT double dsv3c_probe_int8(long rounds) {
#if defined(__AMX_INT8__)
  return burst(tile_part, 2 * TILE_PRODUCTS, rounds);
#elif defined(NO_INTEGERS)
  (void)rounds;
  return 0;
#else
  return burst(integer_part, 2 * PRODUCTS, rounds);
#endif
}
