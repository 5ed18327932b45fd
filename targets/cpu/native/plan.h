// The tables of plan.c: what `dsv3c compile` knows of this model, as constants.
#ifndef DSV3C_PLAN_H
#define DSV3C_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "dsv3c.h"

enum { PLAN_CONTROL = 16, PLAN_INPUTS = 6, PLAN_ALIGNMENT = 64 };
#define PLAN_NONE 0xffffffffu

typedef enum { IN_INPUTS, IN_ARENA, IN_CACHE, IN_WEIGHTS } plan_place;

// `at`: bytes from the start of the inputs, the arena or the weights file; the number of a cache. code, bits: of the
// elements, as DLPack has them. size: elements, of a cache those of one token's row: how many it has is chosen when
// opening.
typedef struct {
  plan_place place;
  uint8_t code, bits;
  int64_t size, at;
} plan_buffer;

// steps: for each kernel call its kernel, the number of its buffers, the buffers. NULL: the plan has no such entry.
typedef struct {
  const uint32_t *steps;
  size_t words;
  size_t calls, arguments;  // of all steps
  uint32_t logits, hidden;  // buffers: the rows asked for; the states of all tokens after the final norm, or PLAN_NONE
  int32_t min_tokens, max_tokens;
  int32_t max_context;  // the longest one, itself included, that a token of a step may have
} plan_entry;

// One file of the artifact as it was when this library was built.
typedef struct {
  const char *path;
  uint64_t bytes, checked;  // its size; how many of its first bytes `crc` is of
  uint32_t crc;             // CRC-32, as zlib has it
} plan_file;

// Levels rise in strength. prefill_min_tokens 0: the entry's own.
typedef struct {
  const char *name;
  const char *const *requires;  // CPU features as Linux names them, NULL at the end
  int32_t prefill_min_tokens;
  plan_file library;
} plan_level;

// A chat template that only joins texts. Where it does not, or there is none, `lacks` says so, and no text is there.
// The last two: NULL where answers in a conversation are not written as they are; `lacks` then says that.
typedef struct {
  const char *lacks;
  const char *head;                       // before the first text of the user
  const char *system_head, *system_tail;  // around the text of the system, which stands before that; NULL: it takes none
  const char *tail;                       // behind the last text of the user
  const char *user_tail, *assistant_tail; // behind a text that another one follows
} plan_chat;

typedef struct {
  int32_t tokens, rows, sequences, pages;  // bounds of one step; pages of one sequence
  int32_t page_size, vocab_size, context;
  const uint32_t *cache_bytes;  // of one token's row, by cache
  uint32_t cache_count;
  uint64_t arena_bytes, input_bytes;
  uint32_t inputs[PLAN_INPUTS];  // buffers: tokens, positions, sequence, page_table, rows, control
  const plan_buffer *buffers;
  size_t buffer_count;
  const char *const *kernels;
  size_t kernel_count;
  plan_entry decode, prefill, mtp, short_decode, short_prefill;
  uint32_t hidden_input;  // a buffer: what mtp reads beside the other inputs, states of `hidden_size` numbers
  int32_t hidden_size;
  const plan_level *levels;
  size_t level_count;
  plan_file weights, tokenizer;  // tokenizer.path NULL: ids only
  const int32_t *end_tokens;
  size_t end_token_count;
  dsv3c_parameters parameters;  // the defaults
  plan_chat chat;
} plan_table;

extern const plan_table dsv3c_plan;

#endif
