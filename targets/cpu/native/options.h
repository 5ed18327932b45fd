// The command line of dsv3c-run.
#ifndef DSV3C_OPTIONS_H
#define DSV3C_OPTIONS_H

#include <stdbool.h>
#include <stdio.h>

#include "dsv3c.h"

typedef struct {
  int32_t *ids;
  size_t count;
} id_list;

typedef struct {
  const char *artifact, *prompt, *ids, *system, *logits;
  dsv3c_options open;
  dsv3c_parameters how;  // its lists are those below, or the library's
  id_list suppressed, ends;
  dsv3c_ids *words;
  dsv3c_bias *biases;
  dsv3c_string *stops;
  bool seeded, show_ids, json, no_bos, chat;
  bool max_new, max_length, min_new, min_length;  // given, so that they stay where a default goes against them
} settings;

// Ends the program where it is used wrongly, or asked for help.
settings options_parse(int argc, char **argv);
void options_free(settings *s);
// Token ids of a text of `size` bytes, from malloc. what: the option they are from.
id_list options_ids(const char *what, const char *text, size_t size);

// ---- the end of the program

void fail(int code, const char *what, const char *detail);
void flush_output(FILE *stream);
void *memory(void *pointer);

#endif
