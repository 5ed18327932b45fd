// The cores that this process may use, the number of threads when nobody says, and the CPUs that these stay on, as
// runtime/devices/cpu/cores.py finds them. For one file of a library.
#ifndef DSV3C_CORES_H
#define DSV3C_CORES_H

#include <sched.h>
#include <stdint.h>
#include <unistd.h>

#include "quota.h"

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#ifndef SYSTEM_ROOT
#define SYSTEM_ROOT ""  // the folder that holds proc and sys
#endif

// CPUs are the logical ones that Linux numbers; a core has one, or several that are siblings.
enum { CORES_CPUS = 8192 };
typedef struct { uint64_t words[CORES_CPUS / 64]; } cores_mask;
typedef struct { int performance, efficiency; } cores_count;

static inline int cores_has(const cores_mask *mask, int cpu) { return mask->words[cpu / 64] >> cpu % 64 & 1; }
static inline void cores_add(cores_mask *mask, int cpu) { mask->words[cpu / 64] |= (uint64_t)1 << cpu % 64; }

static inline int cores_members(const cores_mask *mask) {
  int members = 0;
  for (int i = 0; i < CORES_CPUS / 64; i++) members += __builtin_popcountll(mask->words[i]);
  return members;
}

#ifdef __linux__
// A number of up to five digits at *at, which moves behind it; -1 where there is none or it is too large.
static int cores_number(const char **at) {
  int number = 0, digits = 0;
  for (; **at >= '0' && **at <= '9' && digits < 5; ++*at, digits++) number = 10 * number + (**at - '0');
  return digits && number < CORES_CPUS ? number : -1;
}

static int cores_line(const char *root, const char *folder, const char *name, char *line) {
  if (!quota_first_line(root, folder, name, line, QUOTA_LINE)) return 0;
  line[strcspn(line, "\n")] = 0;
  return 1;
}

// The CPUs that a file lists ("0-7,16"); false where there is none or it is not such a list.
static int cores_listed(const char *root, const char *folder, const char *name, cores_mask *mask) {
  char line[QUOTA_LINE];
  const char *at = line;
  memset(mask, 0, sizeof *mask);
  if (!cores_line(root, folder, name, line)) return 0;
  do {
    int first = cores_number(&at), last = first;
    if (*at == '-') at++, last = cores_number(&at);
    if (first < 0 || last < first) return 0;
    for (int cpu = first; cpu <= last; cpu++) cores_add(mask, cpu);
  } while (*at++ == ',');
  return at[-1] == 0;
}

static void cores_folder(int cpu, char folder[64]) { snprintf(folder, 64, "/sys/devices/system/cpu/cpu%d", cpu); }

// 0 where the system does not tell.
static int cores_capacity(const char *root, int cpu) {
  char folder[64], line[QUOTA_LINE];
  const char *at = line;
  cores_folder(cpu, folder);
  if (!cores_line(root, folder, "cpu_capacity", line)) return 0;
  int capacity = cores_number(&at);
  return capacity < 0 || *at ? 0 : capacity;
}

// CPUs with more than half of the largest capacity; none where not all tell theirs.
static void cores_capable(const char *root, const cores_mask *usable, cores_mask *fast) {
  short capacities[CORES_CPUS] = {0};
  int largest = 0;
  memset(fast, 0, sizeof *fast);
  for (int cpu = 0; cpu < CORES_CPUS; cpu++) {
    if (!cores_has(usable, cpu)) continue;
    if (!(capacities[cpu] = (short)cores_capacity(root, cpu))) return;
    if (capacities[cpu] > largest) largest = capacities[cpu];
  }
  for (int cpu = 0; cpu < CORES_CPUS; cpu++)
    if (2 * capacities[cpu] > largest) cores_add(fast, cpu);
}

// Those of `usable` that performance cores have; all, where they are of one kind or the system does not tell.
static void cores_performance(const char *root, const cores_mask *usable, cores_mask *fast) {
  if (!cores_listed(root, "/sys/devices/cpu_core", "cpus", fast)) cores_capable(root, usable, fast);
  for (int i = 0; i < CORES_CPUS / 64; i++) fast->words[i] &= usable->words[i];
  if (!cores_members(fast)) *fast = *usable;
}

// The first CPU of the core that `cpu` belongs to; the CPU itself where the system does not tell.
static int cores_first_sibling(const char *root, int cpu) {
  static const char *const names[] = {"topology/core_cpus_list", "topology/thread_siblings_list"};  // new and old
  char folder[64];
  cores_mask siblings;
  cores_folder(cpu, folder);
  for (int i = 0; i < 2; i++) {
    if (!cores_listed(root, folder, names[i], &siblings) || !cores_has(&siblings, cpu)) continue;
    for (int first = 0;; first++)
      if (cores_has(&siblings, first)) return first;
  }
  return cpu;
}

static cores_count cores_of(const char *root, const cores_mask *usable) {
  cores_mask fast, firsts[2] = {0};
  cores_performance(root, usable, &fast);
  for (int cpu = 0; cpu < CORES_CPUS; cpu++)
    if (cores_has(usable, cpu)) cores_add(&firsts[cores_has(&fast, cpu)], cores_first_sibling(root, cpu));
  return (cores_count){cores_members(&firsts[1]), cores_members(&firsts[0])};
}

// The CPUs that the calling thread may use.
static void cores_usable(cores_mask *usable) {
  memset(usable, 0, sizeof *usable);
  if (sched_getaffinity(0, sizeof *usable, (cpu_set_t *)usable) == 0) return;
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  for (int cpu = 0; cpu == 0 || (cpu < online && cpu < CORES_CPUS); cpu++) cores_add(usable, cpu);
}

static cores_count cores_here(void) {
  cores_mask usable;
  cores_usable(&usable);
  return cores_of(SYSTEM_ROOT, &usable);
}

// The CPUs that so many threads, started by this one, stay on: those of the performance cores, if these are enough and
// there are others; else none, which binds no thread. Returns whether the threads get cores of both kinds.
static inline int cores_to_stay_on(int threads, cores_mask *cpus) {
  cores_mask usable;
  cores_usable(&usable);
  cores_performance(SYSTEM_ROOT, &usable, cpus);
  int alike = memcmp(cpus, &usable, sizeof usable) == 0;
  if (!alike && threads <= cores_of(SYSTEM_ROOT, cpus).performance) return 0;
  memset(cpus, 0, sizeof *cpus);
  return !alike;
}

// Bind the calling thread to a set. A system that refuses lets it run anywhere.
static inline void cores_stay_on(const cores_mask *cpus) {
  if (cores_members(cpus)) (void)!sched_setaffinity(0, sizeof *cpus, (const cpu_set_t *)cpus);
}
#else
#ifdef __APPLE__
static int cores_told(const char *name) {
  int cores = 0;
  size_t size = sizeof cores;
  return sysctlbyname(name, &cores, &size, 0, 0) == 0 && cores > 0 ? cores : 0;
}

// By level of performance, the first the fastest; Macs with one kind of core have no levels.
static cores_count cores_here(void) {
  int fast = cores_told("hw.perflevel0.physicalcpu");
  return fast ? (cores_count){fast, cores_told("hw.perflevel1.physicalcpu")}
              : (cores_count){cores_told("hw.physicalcpu"), 0};
}
#else
static cores_count cores_here(void) { return (cores_count){(int)sysconf(_SC_NPROCESSORS_ONLN), 0}; }
#endif

static inline int cores_to_stay_on(int threads, cores_mask *cpus) {
  (void)cpus;
  return threads > cores_here().performance && cores_here().efficiency > 0;
}

static inline void cores_stay_on(const cores_mask *cpus) { (void)cpus; }
#endif

// One thread a performance core, fewer where the control group's quota is less; at least 1.
static inline int cores_default(void) {
  int cores = cores_here().performance, quota = quota_cpus(SYSTEM_ROOT);
  if (quota && quota < cores) cores = quota;
  return cores > 0 ? cores : 1;
}

#endif
