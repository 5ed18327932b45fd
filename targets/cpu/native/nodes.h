// Memory nodes: which CPUs are near which memory, as runtime/devices/cpu/cores.py finds them; how threads and the rows
// of weights are divided among them; and pages brought to the node that reads them. For one file of a library.
#ifndef DSV3C_NODES_H
#define DSV3C_NODES_H

#include "cores.h"

#ifdef __linux__
#include <sys/mman.h>
#include <sys/syscall.h>
#endif

enum { NODES_MOST = 64 };

// Nodes that get threads, by their numbers of the system. With one, nothing is divided and the rest is unset.
typedef struct {
  int count;
  int numbers[NODES_MOST];
  int first[NODES_MOST + 1];  // of the threads of each node; behind the last, the number of all threads
  cores_mask cpus[NODES_MOST];
} nodes_layout;

// Weights of one launch: up to three arrays, each of `segments` times `blocks` blocks. Of every segment, item i of the
// launch reads the blocks from i % items * run on, `run` of them, where items = blocks / run, rounded up.
typedef struct {
  int segments, blocks, run;
  struct { const unsigned char *data; int64_t block; } parts[3];  // block: bytes of one
} nodes_weights;

// What a node's threads take of `items`: those from here on, up to where the next node's begin.
static inline int nodes_begin(const nodes_layout *nodes, int node, int items) {
  return (int)((int64_t)items * nodes->first[node] / nodes->first[nodes->count]);
}

static inline int nodes_items(int blocks, int run) { return (blocks + run - 1) / run; }

#ifdef __linux__
// Nodes with CPUs of `usable`; none where the system does not tell, or leaves one of these out or names it twice.
static inline void nodes_of(const char *root, const cores_mask *usable, nodes_layout *nodes) {
  static const char folder[] = "/sys/devices/system/node";
  cores_mask online;
  int members = 0;
  nodes->count = 0;
  if (!cores_listed(root, folder, "online", &online)) return;
  for (int number = 0; number < CORES_CPUS; number++) {
    char name[64];
    snprintf(name, sizeof name, "node%d/cpulist", number);
    if (!cores_has(&online, number) || nodes->count > NODES_MOST) continue;
    cores_mask cpus;
    if (!cores_listed(root, folder, name, &cpus)) continue;  // one of memory alone has an empty list
    for (int i = 0; i < CORES_CPUS / 64; i++) cpus.words[i] &= usable->words[i];
    if (!cores_members(&cpus)) continue;
    members += cores_members(&cpus);
    if (nodes->count < NODES_MOST) nodes->cpus[nodes->count] = cpus, nodes->numbers[nodes->count] = number;
    nodes->count++;
  }
  cores_mask found = {0};
  for (int node = 0; node < nodes->count && node < NODES_MOST; node++)
    for (int i = 0; i < CORES_CPUS / 64; i++) found.words[i] |= nodes->cpus[node].words[i];
  if (nodes->count > NODES_MOST || members != cores_members(usable) || memcmp(&found, usable, sizeof found) != 0)
    nodes->count = 0;
}

// Divide threads among the nodes of the CPUs that they stay on, in proportion to the cores of each. No CPUs: all that
// the calling thread may use.
static inline void nodes_divide(const char *root, const cores_mask *cpus, int threads, nodes_layout *nodes) {
  int cores[NODES_MOST + 1] = {0}, kept = 0;
  cores_mask usable = *cpus;
  if (!cores_members(cpus)) cores_usable(&usable);
  nodes_of(root, &usable, nodes);
  if (nodes->count < 2) {
    nodes->count = 1;
    return;
  }
  for (int node = 0; node < nodes->count; node++) {
    cores_count counted = cores_of(root, &nodes->cpus[node]);
    cores[node + 1] = cores[node] + counted.performance + counted.efficiency;
  }
  int all = cores[nodes->count];
  for (int node = 0; node < nodes->count; node++) {
    int first = threads * cores[node] / all, last = threads * cores[node + 1] / all;
    if (first == last) continue;
    nodes->cpus[kept] = nodes->cpus[node];
    nodes->numbers[kept] = nodes->numbers[node];
    nodes->first[kept++] = first;
  }
  nodes->first[kept] = threads;
  nodes->count = kept;
}

// The node that the calling thread runs on now; the first where it is on none of them.
static inline int nodes_here(const nodes_layout *nodes) {
  int cpu = sched_getcpu();
  for (int node = 0; cpu >= 0 && cpu < CORES_CPUS && node < nodes->count; node++)
    if (cores_has(&nodes->cpus[node], cpu)) return node;
  return 0;
}

// Whether somebody else says where memory of the calling thread lies, as numactl does. A system that does not answer is
// taken to have said nothing.
static inline int nodes_told(void) {
  int mode = 0;
  return syscall(SYS_get_mempolicy, &mode, 0, 0, 0, 0) == 0 && mode != 0;  // MPOL_DEFAULT
}

// Memory that was not touched yet goes to all nodes in turn, page by page. A system that refuses leaves it as it is.
static inline void nodes_interleave(const nodes_layout *nodes, const void *data, uint64_t bytes) {
  uint64_t mask[CORES_CPUS / 64] = {0}, page = (uint64_t)sysconf(_SC_PAGESIZE);
  uintptr_t first = ((uintptr_t)data + page - 1) / page * page, last = ((uintptr_t)data + bytes) / page * page;
  for (int node = 0; node < nodes->count; node++)
    mask[nodes->numbers[node] / 64] |= (uint64_t)1 << nodes->numbers[node] % 64;
  if (first < last) (void)!syscall(SYS_mbind, first, last - first, 3 /* MPOL_INTERLEAVE */, mask, 8 * sizeof mask, 0);
}

// Pages on their way to a node, so many that what a call of the system costs is little beside the copying.
enum { NODES_PAGES = 4096 };
typedef struct {
  int node, count;  // node: the system's number
  void *pages[NODES_PAGES];
  int places[NODES_PAGES], wanted[NODES_PAGES];
} nodes_moving;

// Those that lie elsewhere are moved, if nobody else maps them and the system allows it.
static inline void nodes_move(nodes_moving *moving) {
  int count = 0;
  if (moving->count && syscall(SYS_move_pages, 0, (long)moving->count, moving->pages, 0, moving->places, 0) == 0)
    for (int i = 0; i < moving->count; i++)
      if (moving->places[i] >= 0 && moving->places[i] != moving->node) moving->pages[count++] = moving->pages[i];
  moving->count = 0;
  for (int i = 0; i < count; i++) moving->wanted[i] = moving->node;
  const int alone = 2;  // MPOL_MF_MOVE
  if (count) (void)!syscall(SYS_move_pages, 0, (long)count, moving->pages, moving->wanted, moving->places, alone);
}

// Read the pages that begin between two addresses: those that are in no memory yet come to the reader's node.
static inline void nodes_read(nodes_moving *moving, const unsigned char *from, const unsigned char *to) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = ((uintptr_t)from + page - 1) / page * page;
  if (first >= (uintptr_t)to) return;
  madvise((void *)first, (uintptr_t)to - first, MADV_WILLNEED);  // these alone, where a fault would read more around it
  for (uintptr_t at = first; at < (uintptr_t)to; at += page) {
    (void)*(const volatile unsigned char *)at;
    moving->pages[moving->count++] = (void *)at;
    if (moving->count == NODES_PAGES) nodes_move(moving);
  }
}

// Bring to its node what one thread, a number of all, is to place of the weights. It should run there.
static inline void nodes_place(const nodes_layout *nodes, const nodes_weights *weights, int thread) {
  int node = 0, items = nodes_items(weights->blocks, weights->run);
  while (nodes->first[node + 1] <= thread) node++;
  int begin = nodes_begin(nodes, node, items) * weights->run, end = nodes_begin(nodes, node + 1, items) * weights->run;
  int64_t own = (end < weights->blocks ? end : weights->blocks) - begin, all = own * weights->segments;
  int64_t nth = thread - nodes->first[node], of = nodes->first[node + 1] - nodes->first[node];
  nodes_moving moving = {.node = nodes->numbers[node]};
  for (int part = 0; part < 3; part++) {
    int64_t block = weights->parts[part].block, length;
    for (int64_t at = all * nth / of, last = all * (nth + 1) / of; block && at < last; at += length) {
      int64_t inside = at % own;
      length = own - inside < last - at ? own - inside : last - at;
      const unsigned char *from = weights->parts[part].data + (at / own * weights->blocks + begin + inside) * block;
      nodes_read(&moving, from, from + length * block);
    }
  }
  nodes_move(&moving);
}
#else
static inline void nodes_divide(const char *root, const cores_mask *cpus, int threads, nodes_layout *nodes) {
  (void)root, (void)cpus, (void)threads;
  nodes->count = 1;
}

static inline int nodes_here(const nodes_layout *nodes) { return (void)nodes, 0; }
static inline int nodes_told(void) { return 0; }
static inline void nodes_interleave(const nodes_layout *nodes, const void *data, uint64_t bytes) {
  (void)nodes, (void)data, (void)bytes;
}
static inline void nodes_place(const nodes_layout *nodes, const nodes_weights *weights, int thread) {
  (void)nodes, (void)weights, (void)thread;
}
#endif

#endif
