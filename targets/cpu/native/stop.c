// Stop strings, as StopFilter of runtime/text/stream.py finds them. Texts come in whole characters, so bytes will do.

#include <stdlib.h>
#include <string.h>

#include "generate.h"

static dsv3c_status check(const dsv3c_string *stops, size_t count, size_t *bytes, size_t *longest) {
  if (count && !stops) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a generation needs the stop strings that it is told to have");
  for (size_t i = 0; i < count; i++) {
    if (!stops[i].text || stops[i].size == 0) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a stop string is empty");
    *bytes += stops[i].size;
    if (stops[i].size > *longest) *longest = stops[i].size;
  }
  return DSV3C_OK;
}

dsv3c_status stop_new(stop_filter *f, const dsv3c_string *stops, size_t count, size_t push_bytes) {
  size_t bytes = 0, longest = 0;
  *f = (stop_filter){.count = count};
  TRY(check(stops, count, &bytes, &longest));
  f->capacity = longest + push_bytes;
  f->stops = calloc(1, count * sizeof *f->stops + bytes + f->capacity + 1);
  if (!f->stops) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for stop strings");
  char *at = (char *)(f->stops + count);
  for (size_t i = 0; i < count; at += stops[i++].size) {
    memcpy(at, stops[i].text, stops[i].size);
    f->stops[i] = (dsv3c_string){at, stops[i].size};
  }
  f->text = at;
  return DSV3C_OK;
}

void stop_free(stop_filter *f) { free(f->stops); }

size_t stop_bytes(const stop_filter *f) { return f->capacity; }

// Where the stop string first begins in what is held, its size where it does not.
static size_t find(const stop_filter *f, const dsv3c_string *stop) {
  for (size_t at = 0; at + stop->size <= f->held; at++)
    if (memcmp(f->text + at, stop->text, stop->size) == 0) return at;
  return f->held;
}

// Bytes at the end of what is held that a stop string may begin with.
static size_t overlap(const stop_filter *f, const dsv3c_string *stop) {
  size_t size = stop->size - 1 < f->held ? stop->size - 1 : f->held;
  while (size > 0 && memcmp(f->text + f->held - size, stop->text, size) != 0) size--;
  return size;
}

static size_t give(stop_filter *f, size_t size, char *out) {
  memcpy(out, f->text, size);
  f->held -= size;
  memmove(f->text, f->text + size, f->held);
  return size;
}

size_t stop_push(stop_filter *f, const char *text, size_t size, char *out) {
  size_t first, keep = 0;
  if (f->stopped) return 0;
  memcpy(f->text + f->held, text, size);
  first = f->held += size;
  for (size_t i = 0; i < f->count; i++) {
    size_t at = find(f, &f->stops[i]), more = overlap(f, &f->stops[i]);
    if (at < first) first = at;
    if (more > keep) keep = more;
  }
  f->stopped = first < f->held;
  size = give(f, f->stopped ? first : f->held - keep, out);
  if (f->stopped) f->held = 0;
  return size;
}

size_t stop_flush(stop_filter *f, char *out) { return give(f, f->held, out); }
