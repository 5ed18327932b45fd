// tokenizer.bin: tokenizer.json as tables that are used where they lie. Little-endian words of 32 bits:
// "dsv3ctk2", then for each section its place in the file, in bytes, and the number of its elements.
#ifndef DSV3C_TOKENIZER_H
#define DSV3C_TOKENIZER_H

#include "internal.h"

enum {
  TEXT_STARTS,  // word: where the text of each id begins in TEXT_BYTES; one more for the end
  TEXT_BYTES,   // byte
  BYTE_IDS,     // word: id of each single byte, NO_ID for none
  MERGES,       // tokenizer_merge: a hash table with open addressing, a power of two long
  WORDS,        // word: ids of whole words in a hash table of the same kind; empty where merging alone makes tokens
  ADDED,        // tokenizer_added, longest first
  ADDED_BYTES,  // byte
  CLASSES,      // split_class
  RANGES,       // split_range: sorted within a class
  PROGRAM,      // split_step
  STAGES,       // tokenizer_span of PROGRAM: each cuts the pieces of the one before
  PREFIX,       // word: ids before a text
  SUFFIX,       // word: ids behind it
  ENDS,         // word: the BOS and the EOS, which a text has once; NO_ID for none
  SECTIONS
};

#define NO_ID 0xffffffffu
enum { STAGES_LIMIT = 64 };  // each waits on the stack for the next one

typedef struct { uint32_t first, count; } tokenizer_span;
typedef struct { uint32_t left, right, rank, id; } tokenizer_merge;   // rank NO_ID: free
typedef struct { uint32_t first, count, id, pass; } tokenizer_added;  // of ADDED_BYTES; pass 0 is cut out first
typedef struct { uint32_t first, count, ascii[4]; } split_class;      // of RANGES; ascii: a bit a character below 128
typedef struct { uint32_t first, last; } split_range;
typedef struct { uint32_t op, a, b, c; } split_step;

// What a step does at a place in the text.
enum {
  STEP_RUN,       // as many characters of class a as there are, b to c of them; fewer when what follows fails
  STEP_ATOMIC,    // the same, never fewer
  STEP_SPLIT,     // go on at step a; at step b when that fails
  STEP_JUMP,      // go on at step a
  STEP_AHEAD,     // a character of class a must follow
  STEP_NOT_AHEAD, // none may
  STEP_LINE_END,  // the text must end, or a line feed follow
  STEP_MATCH
};

struct tokenizer {
  const uint32_t *starts, *byte_ids, *words, *prefix, *suffix, *ends;
  const unsigned char *bytes, *added_bytes;
  const tokenizer_merge *merges;
  const tokenizer_added *added;
  const split_class *classes;
  const split_range *ranges;
  const split_step *program;
  const tokenizer_span *stages;
  uint32_t count[SECTIONS];  // elements of each section
  uint32_t tokens, longest;  // ids; bytes of the longest text
  unsigned char begins[256]; // bit p: an added token of pass p begins with the byte
};

// ---- utf8.c

// Bytes of the character that `bytes` begins with: 1 to 4; 0 if all `count` bytes may still become one, -1 if not.
int utf8_length(const unsigned char *bytes, size_t count);
bool utf8_valid(const unsigned char *text, size_t size);

// ---- split.c

// Whether the steps of a stage can be run: they end, and refer to what is there.
bool split_valid(const tokenizer *t, tokenizer_span stage);
// First match of the stage at or behind `from` in [from, end): its begin and end.
bool split_find(const tokenizer *t, tokenizer_span stage, const unsigned char *from, const unsigned char *end,
                const unsigned char **match, const unsigned char **match_end);

// ---- merge.c

typedef struct {
  void *memory;
  size_t capacity;  // bytes of a word that there is room for
} merge_room;

// Ids of one word to `ids`, which has room for `size` of them; *count is how many. `room` begins zeroed; the caller
// frees its memory.
dsv3c_status merge_word(const tokenizer *t, const unsigned char *word, size_t size, merge_room *room, int32_t *ids,
                        size_t *count);

#endif
