// A sequence and its pages, as the steps see it.
#ifndef DSV3C_SEQUENCE_H
#define DSV3C_SEQUENCE_H

#include "internal.h"

struct dsv3c_sequence {
  dsv3c_model *model;
  int32_t length, count;  // tokens, pages
  int32_t before;         // tokens when the present run began
  uint64_t run;           // the last run it was part of
  int32_t pages[];
};

// Free pages that sequence_reserve takes.
int32_t sequence_pages_needed(const dsv3c_sequence *s, int32_t length);
// Make positions up to `length` writable. The pages needed are free.
void sequence_reserve(dsv3c_sequence *s, int32_t length);
// Forget the tokens from `length` on; pages beyond go back.
void sequence_cut(dsv3c_sequence *s, int32_t length);

#endif
