// What the files that draw a token share: random.c, processors.c, filters.c, sampling.c.
#ifndef DSV3C_SAMPLER_H
#define DSV3C_SAMPLER_H

#include "internal.h"

__extension__ typedef unsigned __int128 uint128;

typedef struct {
  uint128 state, increment;
} random_state;

struct dsv3c_sampler {
  dsv3c_sampling how;  // its lists are the sampler's own
  void *lists;         // what they lie in
  bool processes;      // whether anything changes logits before temperature
  random_state random;
  size_t vocab;
  float *logits, *weights;  // after the processors; relative to the likeliest, which weighs 1
  uint32_t *counts;         // by id; zero between calls
  int32_t *ids, *order;     // candidates; a heap
  double *keys;             // what the heap goes by
};

// ---- random.c

void random_seed(random_state *r, uint64_t value);
// In [0, 1), 53 bits.
double random_number(random_state *r);

// ---- processors.c

bool processors_needed(const dsv3c_sampling *how);
// Change s->logits as the parameters say, given the text so far, whose ids are checked.
void processors_apply(dsv3c_sampler *s, dsv3c_history text);
// Where float can divide by it; what overflows by it is -infinity, as it should be.
float divisor(double value);

// ---- filters.c

// Weigh `logits`, the largest of which is finite, and leave in s->ids what may be drawn, in the order it is counted in.
// Returns their number.
size_t filters_choose(dsv3c_sampler *s, const float *logits, float highest);
double filters_weight(const dsv3c_sampler *s, size_t count);

// ---- sampling.c

// What a draft proposes for the token `ahead` places after the next one: drawn from the draft's logits with the number
// that dsv3c_sample will take there, so that equal logits give equal tokens. Takes no number. -1 where logits are not
// finite.
int32_t sampler_guess(dsv3c_sampler *s, const float *logits, int32_t ahead);
bool sampler_is_end(const dsv3c_sampler *s, int32_t token);

#endif
