// Sequences: tokens in pages of the cache. Forks share pages; one is copied before any of them writes to it.

#include <stdlib.h>
#include <string.h>

#include "sequence.h"

static const plan_table *const plan = &dsv3c_plan;

static int32_t pages_of(int32_t length) { return length / plan->page_size + (length % plan->page_size != 0); }

// Only the last page is ever written again.
static bool must_copy(const dsv3c_sequence *s, int32_t length) {
  return s->length % plan->page_size != 0 && length > s->length && s->model->references[s->pages[s->count - 1]] > 1;
}

int32_t sequence_pages_needed(const dsv3c_sequence *s, int32_t length) {
  int32_t more = pages_of(length) - s->count;
  return (more > 0 ? more : 0) + must_copy(s, length);
}

static int32_t take_page(dsv3c_model *model) {
  int32_t page = model->free_pages[--model->free_count];
  model->references[page] = 1;
  return page;
}

static void release_page(dsv3c_model *model, int32_t page) {
  if (--model->references[page] == 0) model->free_pages[model->free_count++] = page;
}

static void copy_page(dsv3c_model *model, int32_t source, int32_t target) {
  for (uint32_t i = 0; i < plan->cache_count; i++) {
    unsigned char *cache = model->caches.data + model->cache_starts[i];
    size_t size = (size_t)plan->page_size * plan->cache_bytes[i];
    memcpy(cache + (size_t)target * size, cache + (size_t)source * size, size);
  }
}

void sequence_reserve(dsv3c_sequence *s, int32_t length) {
  if (must_copy(s, length)) {
    int32_t *last = &s->pages[s->count - 1], shared = *last;
    *last = take_page(s->model);
    copy_page(s->model, shared, *last);
    release_page(s->model, shared);
  }
  while (s->count < pages_of(length)) s->pages[s->count++] = take_page(s->model);
}

void sequence_cut(dsv3c_sequence *s, int32_t length) {
  s->length = length;
  while (s->count > pages_of(length)) release_page(s->model, s->pages[--s->count]);
}

dsv3c_status dsv3c_sequence_new(dsv3c_model *model, dsv3c_sequence **out) {
  if (!model || !out) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a sequence needs a model and a place for it");
  size_t most = (size_t)pages_of(model->context);
  dsv3c_sequence *s = calloc(1, sizeof *s + most * sizeof *s->pages);
  *out = s;
  if (!s) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a sequence");
  s->model = model;
  return DSV3C_OK;
}

dsv3c_status dsv3c_sequence_fork(const dsv3c_sequence *source, int32_t length, dsv3c_sequence **out) {
  if (!out) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a fork needs a place for it");
  if (!source || length < 0 || length > source->length)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "cannot fork %d of %d tokens", length, source ? source->length : 0);
  TRY(dsv3c_sequence_new(source->model, out));
  (*out)->length = length;
  (*out)->count = pages_of(length);
  for (int32_t i = 0; i < (*out)->count; i++) {
    (*out)->pages[i] = source->pages[i];
    source->model->references[source->pages[i]]++;
  }
  return DSV3C_OK;
}

dsv3c_status dsv3c_sequence_truncate(dsv3c_sequence *s, int32_t length) {
  if (!s || length < 0 || length > s->length)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "cannot roll back from %d tokens to %d", s ? s->length : 0, length);
  sequence_cut(s, length);
  return DSV3C_OK;
}

int32_t dsv3c_sequence_length(const dsv3c_sequence *s) { return s ? s->length : 0; }

void dsv3c_sequence_free(dsv3c_sequence *s) {
  if (s) sequence_cut(s, 0);
  free(s);
}
