// What the files of the runtime share. Nothing here is visible outside of the library.
#ifndef DSV3C_INTERNAL_H
#define DSV3C_INTERNAL_H

#include <stdarg.h>
#include <stdbool.h>

#include "dsv3c.h"
#include "plan.h"

#define TRY(call) \
  do { \
    dsv3c_status status_ = (call); \
    if (status_ != DSV3C_OK) return status_; \
  } while (0)

// ---- error.c

// Note the message for dsv3c_error(); returns `status`.
__attribute__((format(printf, 2, 3))) dsv3c_status dsv3c_fail(dsv3c_status status, const char *format, ...);

// ---- memory.c

// `data` lies inside a mapping of `mapped` bytes at `base`. A zeroed block is empty. lost: of a file, becomes 1 when it
// could not be read; NULL where that is not watched.
typedef struct {
  unsigned char *data;
  size_t size;
  void *base;
  size_t mapped;
  int *lost;
} memory_block;

// Zeroed memory on a 64-byte boundary; huge pages are asked for where it is large. what: for the message.
dsv3c_status memory_allocate(uint64_t size, const char *what, memory_block *block);
// A file of the artifact, mapped for reading after its size and checksum were compared. artifact: its open folder.
dsv3c_status memory_map(int artifact, const plan_file *file, memory_block *block);
// Let the system begin to read all of a mapped file.
void memory_read_ahead(const memory_block *block);
// As memory_map, but a copy, which nobody changes any more.
dsv3c_status memory_read(int artifact, const plan_file *file, memory_block *block);
// Fails once a mapped file could not be read: what was computed from it since is worth nothing.
dsv3c_status memory_require(const memory_block *block, const plan_file *file);
void memory_free(memory_block *block);

// ---- cpu.c

// The level to run: the one DSV3C_ISA names, or the strongest that this CPU can run.
dsv3c_status cpu_choose(const plan_level *levels, size_t count, const plan_level **chosen);
bool cpu_has(const char *feature);
// One a performance core that this process may use; fewer where its control group's quota is less.
int cpu_threads(void);

// ---- kernels.c

typedef struct kernel_table kernel_table;

// Load the library of `level`, a copy with threads of its own, and bind the calls of all entries to the buffers at
// `data`, one address a buffer.
dsv3c_status kernels_load(int artifact, const plan_level *level, void *const *data, const int64_t *sizes,
                          int32_t *threads, kernel_table **table);
// Have threads and weights divided among memory nodes, where there are several; returns how many, 1 without.
int kernels_divide(const kernel_table *table, uint64_t weight_bytes);
// Put the pages of memory that no one touched yet on all nodes in turn.
void kernels_spread(const kernel_table *table, const void *data, uint64_t bytes);
dsv3c_status kernels_run(const kernel_table *table, const plan_entry *entry);
void kernels_free(kernel_table *table);

// ---- tokenizer.c

typedef struct tokenizer tokenizer;

dsv3c_status tokenizer_open(const unsigned char *data, size_t size, tokenizer **out);
void tokenizer_close(tokenizer *t);

// ---- model.c

typedef struct {
  dsv3c_sequence *sequence;
  const dsv3c_request *request;
  int32_t start, count, rows;
} step_piece;

struct dsv3c_model {
  const plan_level *level;
  int32_t threads, context;
  memory_block weights, arena, caches, inputs, table;
  kernel_table *kernels;
  uint64_t *cache_starts;  // of each cache in `caches`, in bytes; behind the last their end
  int32_t *tokens, *positions, *sequence, *page_table, *rows, *control;
  float *hidden;  // input of the entry mtp
  uint32_t *references;  // of each page
  int32_t *free_pages;   // a stack
  int32_t page_count, free_count;
  step_piece *pieces;
  uint64_t runs;
  tokenizer *tokenizer;
};

// Where an entry leaves the buffer `logits` or `hidden`; the next step writes over it.
const float *model_output(const dsv3c_model *model, uint32_t buffer);

// ---- run.c

// Told of each step of a run that ended well: the first position of its tokens, their number, their states.
typedef struct {
  dsv3c_status (*see)(void *who, int32_t first, int32_t count, const float *hidden);
  void *who;
} step_watcher;

// As dsv3c_run of one request. watcher: NULL for nobody.
dsv3c_status run_watched(dsv3c_model *model, const dsv3c_request *request, const step_watcher *watcher);
// The entry of a step of so many tokens, of which `longest` are of one sequence, none in a context above `context`.
const plan_entry *entry_for(const dsv3c_model *model, int64_t longest, int64_t tokens, int64_t context);

#endif
