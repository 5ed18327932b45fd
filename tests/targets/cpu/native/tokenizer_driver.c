// The tokenizer of the native library alone: opened from memory, and fed with damaged tables.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

// A model that can do nothing but text; NULL when the table is refused. The table must stay.
DSV3C_API dsv3c_model *driver_open(const unsigned char *table, size_t size);
DSV3C_API void driver_close(dsv3c_model *model);

dsv3c_model *driver_open(const unsigned char *table, size_t size) {
  dsv3c_model *model = calloc(1, sizeof *model);
  if (tokenizer_open(table, size, &model->tokenizer) == DSV3C_OK) return model;
  free(model);
  return 0;
}

void driver_close(dsv3c_model *model) {
  tokenizer_close(model->tokenizer);
  free(model);
}

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  unsigned char *data = malloc(*size);
  if (fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

static uint32_t next(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

static void use(dsv3c_model *model, const char *text, size_t size) {
  int32_t *ids;
  size_t count, got;
  if (dsv3c_encode(model, text, size, 1, &ids, &count) != DSV3C_OK) return;
  dsv3c_text state = {0};
  size_t capacity = dsv3c_text_bytes(model);
  char *out = malloc(capacity);
  for (size_t i = 0; i < count; i++)
    if (dsv3c_text_push(model, &state, ids[i], out, capacity, &got) != DSV3C_OK) abort();
  dsv3c_text_flush(&state, out);
  free(out);
  free(ids);
}

// driver TABLE TEXT ROUNDS: prints how many of the damaged tables were accepted, and used.
int main(int argc, char **argv) {
  size_t size, text_size;
  if (argc != 4) return 2;
  unsigned char *table = read_file(argv[1], &size), *text = read_file(argv[2], &text_size);
  uint32_t state = 1, accepted = 0;
  for (int round = 0; round < atoi(argv[3]); round++) {
    size_t kept = next(&state) % 8 ? size : next(&state) % (size + 1);
    unsigned char *damaged = malloc(kept ? kept : 1);
    memcpy(damaged, table, kept);
    for (uint32_t changes = next(&state) % 4; changes > 0 && kept; changes--) {
      // Mostly the head and the small tables, where a change matters.
      size_t place = next(&state) % 2 ? next(&state) % (kept < 128 ? kept : 128) : next(&state) % kept;
      damaged[place] = (unsigned char)(next(&state) % 4 ? next(&state) : 0xff);
    }
    dsv3c_model *model = driver_open(damaged, kept);
    if (model) {
      accepted++;
      use(model, (const char *)text, text_size);
      driver_close(model);
    }
    free(damaged);
  }
  printf("%u\n", accepted);
  free(table);
  free(text);
  return 0;
}
