// The next token, drawn as runtime/engine/sampling.py draws it: the same filters, and numpy's generator (PCG64, seeded by
// SeedSequence) for the same numbers. Only expf may differ from numpy's by a unit in the last place.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

__extension__ typedef unsigned __int128 uint128;

struct dsv3c_sampler {
  dsv3c_sampling how;
  uint128 state, increment;
  size_t vocab;
  float *logits, *weights;  // after the penalty; relative to the likeliest, which weighs 1
  int32_t *ids;             // candidates, a heap while they are drawn from it
  unsigned char *seen;
};

// ---- numpy's generator: numpy/random/bit_generator.pyx, src/pcg64

static uint32_t hash_word(uint32_t value, uint32_t *constant, uint32_t factor) {
  value ^= *constant;
  *constant *= factor;
  value *= *constant;
  return value ^ value >> 16;
}

static uint32_t mix(uint32_t x, uint32_t y) {
  uint32_t mixed = 0xca01f9ddu * x - 0x4973f715u * y;
  return mixed ^ mixed >> 16;
}

static void next_state(dsv3c_sampler *s) {
  const uint128 factor = (uint128)0x2360ed051fc65da4ull << 64 | 0x4385df649fccf645ull;
  s->state = s->state * factor + s->increment;
}

static void seed(dsv3c_sampler *s, uint64_t value) {
  uint32_t pool[4], constant = 0x43b0d7e5u, output = 0x8b51f9ddu, word[8];
  for (int i = 0; i < 4; i++) pool[i] = hash_word(i < 2 ? (uint32_t)(value >> 32 * i) : 0, &constant, 0x931e8875u);
  for (int source = 0; source < 4; source++)
    for (int target = 0; target < 4; target++)
      if (source != target) pool[target] = mix(pool[target], hash_word(pool[source], &constant, 0x931e8875u));
  for (int i = 0; i < 8; i++) word[i] = hash_word(pool[i % 4], &output, 0x58f38dedu);
  uint64_t half[4];
  for (int i = 0; i < 4; i++) half[i] = (uint64_t)word[2 * i + 1] << 32 | word[2 * i];
  s->state = 0;
  s->increment = ((uint128)half[2] << 64 | half[3]) << 1 | 1;
  next_state(s);
  s->state += (uint128)half[0] << 64 | half[1];
  next_state(s);
}

// In [0, 1), 53 bits.
static double uniform(dsv3c_sampler *s) {
  next_state(s);
  uint64_t folded = (uint64_t)(s->state >> 64) ^ (uint64_t)s->state;
  unsigned turn = (unsigned)(s->state >> 122);
  uint64_t bits = folded >> turn | folded << (-turn & 63);
  return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}

// ---- candidates by weight; equal ones in the order of their ids

static bool before(const dsv3c_sampler *s, int32_t a, int32_t b) {
  return s->weights[a] != s->weights[b] ? s->weights[a] > s->weights[b] : a < b;
}

static void sink(dsv3c_sampler *s, size_t at, size_t count) {
  int32_t id = s->ids[at];
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && before(s, s->ids[child + 1], s->ids[child])) child++;
    if (!before(s, s->ids[child], id)) break;
    s->ids[at] = s->ids[child];
  }
  s->ids[at] = id;
}

// Sort the `count` likeliest of all to the end of ids, backwards, as long as they weigh less than `goal` together.
// Returns how many there are. count or goal may be more than there is.
static size_t take_likeliest(dsv3c_sampler *s, size_t count, double goal) {
  size_t left = s->vocab;
  double total = 0;
  for (size_t i = left / 2; i-- > 0;) sink(s, i, left);
  while (left > 0 && s->vocab - left < count && (left == s->vocab || total < goal)) {
    int32_t id = s->ids[0];
    s->ids[0] = s->ids[--left];
    sink(s, 0, left);
    s->ids[left] = id;
    total += s->weights[id];
  }
  return s->vocab - left;
}

static double weight_of(const dsv3c_sampler *s, size_t count) {
  double total = 0;
  for (size_t i = 0; i < count; i++) total += s->weights[s->ids[i]];
  return total;
}

static void reverse(int32_t *ids, size_t count) {
  for (size_t i = 0; i < count / 2; i++) {
    int32_t kept = ids[i];
    ids[i] = ids[count - 1 - i];
    ids[count - 1 - i] = kept;
  }
}

// Leave in ids what may be drawn, in the order it is counted in. Returns their number.
static size_t choose(dsv3c_sampler *s) {
  const dsv3c_sampling *how = &s->how;
  size_t count = s->vocab;
  bool top_k = how->top_k > 0 && (size_t)how->top_k < s->vocab;
  for (size_t i = 0; i < s->vocab; i++) s->ids[i] = (int32_t)i;
  if (top_k || how->top_p < 1) {
    double goal = top_k ? INFINITY : how->top_p * weight_of(s, count);
    count = take_likeliest(s, top_k ? (size_t)how->top_k : s->vocab, goal);
    reverse(s->ids, s->vocab);
  }
  if (top_k && how->top_p < 1) {
    double goal = how->top_p * weight_of(s, count), total = s->weights[s->ids[0]];
    size_t enough = 1;
    while (enough < count && total < goal) total += s->weights[s->ids[enough++]];
    count = enough;
  }
  if (how->min_p <= 0) return count;
  size_t kept = 0;
  for (size_t i = 0; i < count; i++)
    if (s->weights[s->ids[i]] >= (float)how->min_p) s->ids[kept++] = s->ids[i];
  return kept;
}

// ---- the interface

static dsv3c_status check(const dsv3c_sampling *how) {
  const char *wrong = 0;
  if (!(how->temperature >= 0 && how->temperature <= 1e300)) wrong = "temperature";
  if (!(how->top_p > 0 && how->top_p <= 1)) wrong = "top_p";
  if (!(how->min_p >= 0 && how->min_p <= 1)) wrong = "min_p";
  if (!(how->repetition_penalty > 0 && how->repetition_penalty <= 1e300)) wrong = "repetition_penalty";
  if (how->top_k < 0) wrong = "top_k";
  return wrong ? dsv3c_fail(DSV3C_BAD_ARGUMENT, "%s is out of range", wrong) : DSV3C_OK;
}

dsv3c_sampling dsv3c_sampling_defaults(const dsv3c_model *model) {
  (void)model;
  return dsv3c_plan.sampling;
}

dsv3c_status dsv3c_sampler_new(const dsv3c_model *model, const dsv3c_sampling *how, dsv3c_sampler **out) {
  if (!model || !how || !out)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a sampler needs a model, its parameters and a place for it");
  TRY(check(how));
  dsv3c_sampler *s = calloc(1, sizeof *s);
  *out = s;
  if (!s) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a sampler");
  s->how = *how;
  s->vocab = (size_t)dsv3c_plan.vocab_size;
  s->logits = calloc(s->vocab, sizeof *s->logits);
  s->weights = calloc(s->vocab, sizeof *s->weights);
  s->ids = calloc(s->vocab, sizeof *s->ids);
  s->seen = calloc(s->vocab, 1);
  seed(s, how->seed);
  if (s->logits && s->weights && s->ids && s->seen) return DSV3C_OK;
  dsv3c_sampler_free(s);
  *out = 0;
  return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a sampler");
}

dsv3c_status dsv3c_sampler_observe(dsv3c_sampler *s, const int32_t *tokens, size_t count) {
  if (!s || (count && !tokens))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_sampler_observe needs a sampler and tokens");
  for (size_t i = 0; i < count; i++) {
    if (tokens[i] < 0 || (size_t)tokens[i] >= s->vocab)
      return dsv3c_fail(DSV3C_BAD_TOKEN, "token id %d is not in 0..%d", tokens[i], dsv3c_plan.vocab_size - 1);
    s->seen[tokens[i]] = 1;
  }
  return DSV3C_OK;
}

// Where float can divide by it; what overflows by it is -infinity, as it should be.
static float divisor(double value) { return (float)fmin(fmax(value, 1e-30), 1e30); }

static float penalised(const dsv3c_sampler *s, float logit) {
  float penalty = divisor(s->how.repetition_penalty);
  return logit > 0 ? logit / penalty : logit * penalty;
}

dsv3c_status dsv3c_sample(dsv3c_sampler *s, const float *logits, int32_t *token) {
  if (!s || !logits || !token)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_sample needs a sampler, logits and a place for the token");
  size_t best = 0;
  for (size_t i = 0; i < s->vocab; i++) {
    s->logits[i] = s->how.repetition_penalty != 1 && s->seen[i] ? penalised(s, logits[i]) : logits[i];
    if (isnan(s->logits[i])) return dsv3c_fail(DSV3C_NOT_FINITE, "the model returned logits that are not numbers");
    if (s->logits[i] > s->logits[best]) best = i;
  }
  float highest = s->logits[best];
  if (!isfinite(highest)) return dsv3c_fail(DSV3C_NOT_FINITE, "the model returned logits that are not finite");
  *token = (int32_t)best;
  if (s->how.temperature == 0) return DSV3C_OK;
  float temperature = divisor(s->how.temperature);
  for (size_t i = 0; i < s->vocab; i++) s->weights[i] = expf((s->logits[i] - highest) / temperature);
  size_t count = choose(s), drawn = 0;
  double share = uniform(s) * weight_of(s, count), total = 0;
  while (drawn < count && (total += s->weights[s->ids[drawn]]) <= share) drawn++;
  *token = s->ids[drawn < count ? drawn : count - 1];
  return DSV3C_OK;
}

void dsv3c_sampler_free(dsv3c_sampler *s) {
  if (!s) return;
  free(s->logits);
  free(s->weights);
  free(s->ids);
  free(s->seen);
  free(s);
}
