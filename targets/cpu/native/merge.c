// Byte pair encoding of one word: the pair with the lowest rank is merged first, the leftmost of several.

#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

typedef struct { uint32_t id, before, after; } symbol;  // NO_ID: no neighbour; for `id`, merged away
typedef struct { uint32_t rank, at, id; } candidate;    // merge the symbol `at` with the next one into `id`

typedef struct {
  const tokenizer *t;
  symbol *symbols;
  candidate *heap;
  size_t waiting;
} merging;

static bool sooner(candidate a, candidate b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

static void push(merging *m, candidate new) {
  size_t i = m->waiting++;
  for (; i > 0 && sooner(new, m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
  m->heap[i] = new;
}

static candidate pop(merging *m) {
  candidate top = m->heap[0], last = m->heap[--m->waiting];
  size_t i = 0;
  for (size_t child; (child = 2 * i + 1) < m->waiting; i = child) {
    if (child + 1 < m->waiting && sooner(m->heap[child + 1], m->heap[child])) child++;
    if (!sooner(m->heap[child], last)) break;
    m->heap[i] = m->heap[child];
  }
  m->heap[i] = last;
  return top;
}

static const tokenizer_merge *find_merge(const tokenizer *t, uint32_t left, uint32_t right) {
  uint32_t mask = t->count[MERGES] - 1, slot = left * 0x9e3779b1u ^ right * 0x85ebca6bu;
  for (slot ^= slot >> 15;; slot++) {
    const tokenizer_merge *merge = &t->merges[slot & mask];
    if (merge->rank == NO_ID) return 0;
    if (merge->left == left && merge->right == right) return merge;
  }
}

static void consider(merging *m, uint32_t at) {
  if (at == NO_ID || m->symbols[at].after == NO_ID) return;
  const tokenizer_merge *merge = find_merge(m->t, m->symbols[at].id, m->symbols[m->symbols[at].after].id);
  if (merge) push(m, (candidate){merge->rank, at, merge->id});
}

// Whether the pair that the candidate was made for is still there.
static bool holds(const merging *m, candidate c) {
  const symbol *s = &m->symbols[c.at];
  if (s->id == NO_ID || s->after == NO_ID) return false;
  const tokenizer_merge *merge = find_merge(m->t, s->id, m->symbols[s->after].id);
  return merge && merge->id == c.id;
}

static void merge_pair(merging *m, candidate c) {
  symbol *left = &m->symbols[c.at], *right = &m->symbols[left->after];
  left->id = c.id;
  left->after = right->after;
  right->id = NO_ID;
  if (left->after != NO_ID) m->symbols[left->after].before = c.at;
  consider(m, left->before);
  consider(m, c.at);
}

// A byte that the vocabulary lacks has no symbol.
static uint32_t fill(merging *m, const unsigned char *word, size_t size) {
  uint32_t count = 0;
  for (size_t i = 0; i < size; i++) {
    uint32_t id = m->t->byte_ids[word[i]];
    if (id == NO_ID) continue;
    m->symbols[count] = (symbol){id, count - 1, count + 1};  // the first has NO_ID before it
    count++;
  }
  if (count) m->symbols[count - 1].after = NO_ID;
  return count;
}

static uint32_t find_word(const tokenizer *t, const unsigned char *word, size_t size) {
  uint32_t slot = 0x811c9dc5u, id;
  if (t->count[WORDS] == 0) return NO_ID;
  for (size_t i = 0; i < size; i++) slot = (slot ^ word[i]) * 0x01000193u;
  for (; (id = t->words[slot & (t->count[WORDS] - 1)]) != NO_ID; slot++)
    if (t->starts[id + 1] - t->starts[id] == size && memcmp(t->bytes + t->starts[id], word, size) == 0) return id;
  return NO_ID;
}

static dsv3c_status make_room(merge_room *room, size_t size) {
  if (size <= room->capacity) return DSV3C_OK;
  // Each byte begins one candidate, and each merge makes two.
  void *memory = size < UINT32_MAX / 4 ? realloc(room->memory, size * (sizeof(symbol) + 3 * sizeof(candidate))) : 0;
  if (!memory) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory to encode a word of %zu bytes", size);
  *room = (merge_room){memory, size};
  return DSV3C_OK;
}

dsv3c_status merge_word(const tokenizer *t, const unsigned char *word, size_t size, merge_room *room, int32_t *ids,
                        size_t *count) {
  uint32_t whole = find_word(t, word, size);
  *count = 0;
  if (whole != NO_ID) {
    ids[(*count)++] = (int32_t)whole;
    return DSV3C_OK;
  }
  TRY(make_room(room, size));
  symbol *symbols = room->memory;
  merging m = {t, symbols, (candidate *)(symbols + size), 0};
  uint32_t symbol_count = fill(&m, word, size);
  for (uint32_t i = 0; i + 1 < symbol_count; i++) consider(&m, i);
  while (m.waiting) {
    candidate next = pop(&m);
    if (holds(&m, next)) merge_pair(&m, next);
  }
  for (uint32_t i = 0; i < symbol_count && i != NO_ID; i = symbols[i].after) ids[(*count)++] = (int32_t)symbols[i].id;
  return DSV3C_OK;
}
