// The thread pool of a kernel library on a Linux with memory nodes, as the first program of an emulated machine: where
// pages of weights and caches lie, by the system's own word, and which node's threads read them. See emulate_numa.py.
//
// Every scenario maps the weights anew and launches over them as kernels do. Prints a line each:
//
//     NAME nodes=N first=SECONDS local=PERCENT on=PAGES,PAGES
//
// first: the launch that finds the weights unread. local: of the pages that items read in the launches after it, those
// on the node whose thread read them. on: pages of each node, as the system says.

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SEGMENTS = 16, BLOCKS = 64, BLOCK = 9 * PAGE + 1024, LAUNCHES = 4, MOST = 64 };
enum { TURNS = 40 };  // that a block is read in, so that a launch lasts longer than threads take to wake here
enum { BYTES = SEGMENTS * BLOCKS * BLOCK, PAGES = BYTES / PAGE };
static const char FILE_NAME[] = "/disk/weights";

typedef struct { void *sync; int32_t num_task; } Env;
extern int (*__TVMBackendParallelLaunch)(int (*)(int, Env *, void *), void *, int);
extern int (*dsv3c_announce)(int, int, int, int, const void *, int64_t, const void *, int64_t, const void *, int64_t);
extern int dsv3c_threads(int);
extern int dsv3c_nodes(uint64_t);
extern void dsv3c_spread(const void *, uint64_t);

static const unsigned char *weights;
static signed char node_of[PAGES];                  // where the system says that pages lie
static signed char reader[SEGMENTS * BLOCKS];       // the node whose thread read a block last
static long read_local, read_all;

static void must(int ok, const char *what) {
  if (ok) return;
  printf("failed: %s: %s\n", what, strerror(errno));
  reboot(RB_POWER_OFF);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void locate(const unsigned char *data, int pages, int counts[MOST]) {
  static void *addresses[PAGES];
  static int places[PAGES];
  memset(counts, 0, MOST * sizeof *counts);
  for (int i = 0; i < pages; i++) {
    addresses[i] = (void *)(data + (size_t)i * PAGE);
    (void)*(volatile const unsigned char *)addresses[i];  // it is asked of pages that this process has
  }
  must(syscall(SYS_move_pages, 0, (long)pages, addresses, 0, places, 0) == 0, "move_pages");
  for (int i = 0; i < pages; i++) {
    node_of[i] = (signed char)places[i];
    if (places[i] >= 0) counts[places[i]]++;
  }
}

// A block of every segment, as an item of moe_gate_up with all experts active reads one: `item` goes through the blocks
// of one segment after the other.
static int read_block(int item, Env *env, void *unused) {
  (void)env, (void)unused;
  unsigned node = 0, sum = 0;
  const unsigned char *at = weights + (size_t)item * BLOCK;
  for (int turn = 0; turn < TURNS; turn++)
    for (int i = 0; i < BLOCK; i += 64) sum += ((volatile const unsigned char *)at)[i];
  getcpu(0, &node);
  reader[item] = (signed char)node;
  return sum == 1;  // of weights that have something in them, never
}

static void launch(int announced) {
  if (announced && dsv3c_announce)
    dsv3c_announce(SEGMENTS * BLOCKS, SEGMENTS, BLOCKS, 1, weights, BLOCK, 0, 0, 0, 0);
  must(__TVMBackendParallelLaunch(read_block, 0, 0) == 0, "launch");
}

static void count_local(void) {
  for (long i = 0; i < SEGMENTS * BLOCKS; i++)
    for (long page = i * BLOCK / PAGE; page <= ((i + 1) * BLOCK - 1) / PAGE && page < PAGES; page++) {
      read_all++;
      if (node_of[page] == reader[i]) read_local++;
    }
}

static void map(int ahead) {
  int file = open(FILE_NAME, O_RDONLY);
  weights = mmap(0, BYTES, PROT_READ, MAP_SHARED, file, 0);
  must(file >= 0 && weights != MAP_FAILED, "map");
  if (ahead) madvise((void *)weights, BYTES, MADV_WILLNEED);
  close(file);
}

static void forget_cache(void) {
  int file = open("/proc/sys/vm/drop_caches", O_WRONLY);
  must(file >= 0 && write(file, "3", 1) == 1, "drop_caches");
  close(file);
}

// Read the file by a thread near node 0, as a program does that copies or checks it.
static void warm_on_first_node(void) {
  static char piece[1 << 20];
  cpu_set_t first, before;
  sched_getaffinity(0, sizeof before, &before);
  CPU_ZERO(&first);
  CPU_SET(0, &first);
  sched_setaffinity(0, sizeof first, &first);
  int file = open(FILE_NAME, O_RDONLY);
  while (read(file, piece, sizeof piece) > 0) {}
  close(file);
  sched_setaffinity(0, sizeof before, &before);
}

static void scenario(const char *name, int divided) {
  int counts[MOST], nodes = dsv3c_nodes(divided ? BYTES : 0);
  map(!divided);
  double start = seconds();
  launch(divided);
  double first = seconds() - start;
  locate(weights, PAGES, counts);
  read_local = read_all = 0;
  start = seconds();
  for (int i = 0; i < LAUNCHES; i++) launch(divided), count_local();
  printf("%-28s nodes=%d first=%.3f local=%.1f%% on=%d,%d\n", name, nodes, first,
         100.0 * (double)read_local / (double)read_all, counts[0], counts[1]);
  munmap((void *)weights, BYTES);
}

static void caches(const char *name, int divided) {
  int counts[MOST], pages = 4096;
  dsv3c_nodes(divided ? BYTES : 0);
  unsigned char *data = mmap(0, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  dsv3c_spread(data, (uint64_t)pages * PAGE);
  memset(data, 1, (size_t)pages * PAGE);
  locate(data, pages, counts);
  printf("%-28s on=%d,%d\n", name, counts[0], counts[1]);
  munmap(data, (size_t)pages * PAGE);
}

// In a process of its own, whose pool has seen nothing yet.
static void apart(const char *name, void (*body)(const char *, int), int divided) {
  int status;
  pid_t child = fork();
  if (child == 0) {
    must(dsv3c_threads(0) == sysconf(_SC_NPROCESSORS_ONLN), "threads");
    body(name, divided);
    _exit(0);
  }
  waitpid(child, &status, 0);
  if (status != 0) printf("failed: %s: status %d\n", name, status);
}

// A process that has the weights mapped, with all their pages.
static pid_t hold(void) {
  pid_t child = fork();
  if (child != 0) return sleep(1), child;
  int counts[MOST];
  map(0);
  locate(weights, PAGES, counts);
  for (;;) pause();
}

static void load_modules(void) {
  FILE *list = fopen("/modules/list", "r");
  char name[256], path[300];
  while (list && fgets(name, sizeof name, list)) {
    name[strcspn(name, "\n")] = 0;
    snprintf(path, sizeof path, "/modules/%s", name);
    int file = open(path, O_RDONLY);
    if (syscall(SYS_finit_module, file, "", 0) != 0) printf("module %s: %s\n", name, strerror(errno));
    close(file);
  }
}

int main(void) {
  mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755), mkdir("/disk", 0755);
  mount("proc", "/proc", "proc", 0, 0), mount("sysfs", "/sys", "sysfs", 0, 0), mount("dev", "/dev", "devtmpfs", 0, 0);
  setvbuf(stdout, 0, _IONBF, 0);
  puts("");  // behind what the firmware left on the line
  load_modules();
  for (int i = 0; i < 100 && access("/dev/vda", F_OK) != 0; i++) usleep(50000);
  must(mount("/dev/vda", "/disk", "ext4", MS_RDONLY, 0) == 0, "mount");

  forget_cache(), apart("cold,one", scenario, 0);
  forget_cache(), apart("cold,divided", scenario, 1);
  forget_cache(), warm_on_first_node();
  apart("warm-elsewhere,one", scenario, 0);
  apart("warm-elsewhere,divided", scenario, 1);
  apart("warm-in-place,divided", scenario, 1);
  apart("warm-in-place,one", scenario, 0);
  forget_cache(), warm_on_first_node();
  pid_t other = hold();
  apart("mapped-twice,divided", scenario, 1);
  kill(other, SIGKILL), waitpid(other, 0, 0);
  apart("caches,one", caches, 0);
  apart("caches,divided", caches, 1);
  puts("done");
  reboot(RB_POWER_OFF);
}
