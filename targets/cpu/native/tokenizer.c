// Text to token ids, as the Python package `tokenizers` does it with a checkpoint's tokenizer.json.

#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

// ---- opening

static const char MAGIC[8] = "dsv3ctk2";
static const uint32_t ELEMENT_BYTES[SECTIONS] = {
  [TEXT_STARTS] = 4, [TEXT_BYTES] = 1, [BYTE_IDS] = 4, [MERGES] = sizeof(tokenizer_merge), [WORDS] = 4,
  [ADDED] = sizeof(tokenizer_added), [ADDED_BYTES] = 1, [CLASSES] = sizeof(split_class), [RANGES] = sizeof(split_range),
  [PROGRAM] = sizeof(split_step), [STAGES] = sizeof(tokenizer_span), [PREFIX] = 4, [SUFFIX] = 4,
  [ENDS] = 4,
};

static bool find_sections(tokenizer *t, const unsigned char *data, size_t size) {
  const void *found[SECTIONS];
  size_t header = sizeof MAGIC + SECTIONS * sizeof(tokenizer_span);
  if (size < header || memcmp(data, MAGIC, sizeof MAGIC) != 0) return false;
  for (int i = 0; i < SECTIONS; i++) {
    tokenizer_span span;
    memcpy(&span, data + sizeof MAGIC + (size_t)i * sizeof span, sizeof span);
    if (span.first % 4 || span.first > size) return false;
    if ((uint64_t)span.count * ELEMENT_BYTES[i] > size - span.first) return false;
    found[i] = data + span.first;
    t->count[i] = span.count;
  }
  t->starts = found[TEXT_STARTS];
  t->bytes = found[TEXT_BYTES];
  t->byte_ids = found[BYTE_IDS];
  t->merges = found[MERGES];
  t->words = found[WORDS];
  t->added = found[ADDED];
  t->added_bytes = found[ADDED_BYTES];
  t->classes = found[CLASSES];
  t->ranges = found[RANGES];
  t->program = found[PROGRAM];
  t->stages = found[STAGES];
  t->prefix = found[PREFIX];
  t->suffix = found[SUFFIX];
  t->ends = found[ENDS];
  return true;
}

static bool texts_valid(tokenizer *t) {
  if (t->count[TEXT_STARTS] == 0) return false;
  t->tokens = t->count[TEXT_STARTS] - 1;
  for (uint32_t i = 0; i < t->tokens; i++) {
    if (t->starts[i] > t->starts[i + 1]) return false;
    if (t->starts[i + 1] - t->starts[i] > t->longest) t->longest = t->starts[i + 1] - t->starts[i];
  }
  return t->starts[t->tokens] <= t->count[TEXT_BYTES];
}

static bool ids_valid(const tokenizer *t, const uint32_t *ids, uint32_t count, bool may_lack) {
  for (uint32_t i = 0; i < count; i++)
    if (ids[i] >= t->tokens && !(may_lack && ids[i] == NO_ID)) return false;
  return true;
}

// A table whose size is a power of two and that has a free slot, so that every search ends.
static bool tables_valid(const tokenizer *t) {
  uint32_t merges = t->count[MERGES], words = t->count[WORDS];
  bool free_merge = false, free_word = words == 0;
  if (merges == 0 || (merges & (merges - 1)) || (words & (words - 1))) return false;
  for (uint32_t i = 0; i < merges; i++) {
    free_merge |= t->merges[i].rank == NO_ID;
    if (t->merges[i].rank != NO_ID && t->merges[i].id >= t->tokens) return false;
  }
  for (uint32_t i = 0; i < words; i++) free_word |= t->words[i] == NO_ID;
  return free_merge && free_word && ids_valid(t, t->words, words, true);
}

static bool spans_valid(tokenizer *t) {
  for (uint32_t i = 0; i < t->count[ADDED]; i++) {
    const tokenizer_added *a = &t->added[i];
    if (a->count == 0 || a->first > t->count[ADDED_BYTES] || a->count > t->count[ADDED_BYTES] - a->first) return false;
    if (a->id >= t->tokens || a->pass > 1) return false;
    t->begins[t->added_bytes[a->first]] |= (unsigned char)(1u << a->pass);
  }
  for (uint32_t i = 0; i < t->count[CLASSES]; i++) {
    const split_class *c = &t->classes[i];
    if (c->first > t->count[RANGES] || c->count > t->count[RANGES] - c->first) return false;
  }
  if (t->count[STAGES] > STAGES_LIMIT) return false;
  for (uint32_t i = 0; i < t->count[STAGES]; i++)
    if (!split_valid(t, t->stages[i])) return false;
  return true;
}

// Ids that the model has no row for are fine until one is met: dsv3c_run refuses it.
static bool valid(tokenizer *t, const unsigned char *data, size_t size) {
  return find_sections(t, data, size) && texts_valid(t) && t->count[BYTE_IDS] == 256 && t->count[ENDS] == 2 &&
         ids_valid(t, t->byte_ids, 256, true) && tables_valid(t) && spans_valid(t) && ids_valid(t, t->ends, 2, true) &&
         ids_valid(t, t->prefix, t->count[PREFIX], false) && ids_valid(t, t->suffix, t->count[SUFFIX], false);
}

dsv3c_status tokenizer_open(const unsigned char *data, size_t size, tokenizer **out) {
  tokenizer *t = calloc(1, sizeof *t);
  *out = t;
  if (!t) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for the tokenizer");
  if (valid(t, data, size)) return DSV3C_OK;
  *out = 0;
  free(t);
  return dsv3c_fail(DSV3C_FILE_DAMAGED, "tokenizer.bin is not a table of this version");
}

void tokenizer_close(tokenizer *t) { free(t); }

// ---- encoding

typedef struct {
  const tokenizer *t;
  int32_t *ids;  // room for one of each byte
  size_t count;
  merge_room room;
} encoding;

typedef const unsigned char *place;

static dsv3c_status encode_word(encoding *e, place from, place end) {
  size_t added = 0;
  TRY(merge_word(e->t, from, (size_t)(end - from), &e->room, e->ids + e->count, &added));
  e->count += added;
  return DSV3C_OK;
}

// Matches of a stage, and what lies between them, are cut by the next one; after the last they are words.
static dsv3c_status encode_stage(encoding *e, uint32_t stage, place from, place end) {
  place match, match_end;
  if (stage == e->t->count[STAGES]) return encode_word(e, from, end);
  while (from < end && split_find(e->t, e->t->stages[stage], from, end, &match, &match_end)) {
    if (match > from) TRY(encode_stage(e, stage + 1, from, match));
    TRY(encode_stage(e, stage + 1, match, match_end));
    from = match_end;
  }
  return from < end ? encode_stage(e, stage + 1, from, end) : DSV3C_OK;
}

static const tokenizer_added *added_at(const tokenizer *t, uint32_t pass, place at, place end) {
  if (!(t->begins[*at] >> pass & 1)) return 0;
  for (const tokenizer_added *a = t->added; a < t->added + t->count[ADDED]; a++) {
    place text = t->added_bytes + a->first;
    if (a->pass != pass || a->count > (size_t)(end - at)) continue;
    if (memcmp(text, at, a->count) == 0) return a;
  }
  return 0;
}

// Added tokens are cut out of the text before anything else, those of pass 0 before those of pass 1.
static dsv3c_status encode_text(encoding *e, uint32_t pass, place from, place end) {
  if (pass == 2) return from < end ? encode_stage(e, 0, from, end) : DSV3C_OK;
  for (place at = from; at < end;) {
    const tokenizer_added *a = added_at(e->t, pass, at, end);
    if (!a) {
      at++;
      continue;
    }
    TRY(encode_text(e, pass + 1, from, at));
    e->ids[e->count++] = (int32_t)a->id;
    from = at += a->count;
  }
  return encode_text(e, pass + 1, from, end);
}

static void put_ids(encoding *e, const uint32_t *ids, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) e->ids[e->count++] = (int32_t)ids[i];
}

// A token that stands before (or behind) every text is taken away where the text brought its own.
static void settle_ends(encoding *e, uint32_t before, uint32_t behind) {
  const uint32_t *ends = e->t->ends;
  int32_t *ids = e->ids;
  if (before && e->count > 1 && (uint32_t)ids[0] == ends[0] && ids[1] == ids[0])
    memmove(ids, ids + 1, --e->count * sizeof *ids);
  if (behind && e->count > 1 && (uint32_t)ids[e->count - 1] == ends[1] && ids[e->count - 2] == ids[e->count - 1])
    e->count--;
}

dsv3c_status dsv3c_encode(const dsv3c_model *model, const char *text, size_t size, int special, int32_t **tokens,
                          size_t *count) {
  if (!model || (size && !text) || !tokens || !count)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_encode needs a model, a text and places for the ids and their number");
  if (special < DSV3C_PLAIN || special > DSV3C_NO_BOS)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_encode needs a dsv3c_special, not %d", special);
  const tokenizer *t = model->tokenizer;
  if (!t) return dsv3c_fail(DSV3C_NO_TOKENIZER, "this model was compiled without a tokenizer: give token ids");
  place from = (place)(text ? text : "");
  if (!utf8_valid(from, size)) return dsv3c_fail(DSV3C_BAD_TEXT, "the text is not UTF-8");
  uint32_t before = special ? t->count[PREFIX] : 0, behind = special ? t->count[SUFFIX] : 0;
  const uint32_t *prefix = t->prefix;
  if (special == DSV3C_NO_BOS && before && prefix[0] == t->ends[0]) prefix++, before--;
  encoding e = {.t = t};
  e.ids = malloc((size + before + behind + 1) * sizeof *e.ids);
  if (!e.ids) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory to encode %zu bytes", size);
  put_ids(&e, prefix, before);
  dsv3c_status status = encode_text(&e, 0, from, from + size);
  put_ids(&e, t->suffix, behind);
  settle_ends(&e, before, behind);
  free(e.room.memory);
  if (status != DSV3C_OK) free(e.ids);
  *tokens = status == DSV3C_OK ? e.ids : 0;
  *count = status == DSV3C_OK ? e.count : 0;
  return status;
}
