// Temperature, and the ids that are left to draw from, as runtime/engine/processors/filters.py has them: top-k, top-p,
// min-p and typical-p, in this order, each of the shares that the ones before it left.

#include <math.h>

#include "sampler.h"

// ---- the least of many: a heap of numbers by their keys; equal ones in order

static bool before(const dsv3c_sampler *s, int32_t a, int32_t b) {
  return s->keys[a] != s->keys[b] ? s->keys[a] < s->keys[b] : a < b;
}

static void sink(dsv3c_sampler *s, size_t at, size_t count) {
  int32_t item = s->order[at];
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && before(s, s->order[child + 1], s->order[child])) child++;
    if (!before(s, s->order[child], item)) break;
    s->order[at] = s->order[child];
  }
  s->order[at] = item;
}

static void make_heap(dsv3c_sampler *s, size_t count) {
  for (size_t i = 0; i < count; i++) s->order[i] = (int32_t)i;
  for (size_t i = count / 2; i-- > 0;) sink(s, i, count);
}

// The first of a heap of `count`, which then has one less.
static int32_t take_first(dsv3c_sampler *s, size_t count) {
  int32_t first = s->order[0];
  s->order[0] = s->order[count - 1];
  sink(s, 0, count - 1);
  return first;
}

// ---- the filters

double filters_weight(const dsv3c_sampler *s, size_t count) {
  double total = 0;
  for (size_t i = 0; i < count; i++) total += s->weights[s->ids[i]];
  return total;
}

// The `most` likeliest of all ids, as long as they weigh less than `goal` together, likeliest first.
static size_t take_likeliest(dsv3c_sampler *s, size_t most, double goal) {
  size_t count = 0;
  double total = 0;
  for (size_t i = 0; i < s->vocab; i++) s->keys[i] = -(double)s->weights[i];
  make_heap(s, s->vocab);
  while (count < most && (count == 0 || total < goal)) {
    s->ids[count] = take_first(s, s->vocab - count);
    total += s->weights[s->ids[count++]];
  }
  return count;
}

static size_t take_nucleus(const dsv3c_sampler *s, size_t count) {
  double goal = s->how.top_p * filters_weight(s, count), total = s->weights[s->ids[0]];
  size_t enough = 1;
  while (enough < count && total < goal) total += s->weights[s->ids[enough++]];
  return enough;
}

static size_t drop_below(dsv3c_sampler *s, size_t count, double least) {
  size_t kept = 0;
  for (size_t i = 0; i < count; i++)
    if (s->weights[s->ids[i]] >= least) s->ids[kept++] = s->ids[i];
  return kept;
}

// How many nats each candidate is from what is typical, as keys.
static void measure_distances(dsv3c_sampler *s, const float *logits, float highest, size_t count, double total) {
  float temperature = divisor(s->how.temperature);
  double entropy = 0, whole = log(total);
  for (size_t i = 0; i < count; i++) {
    double share = s->weights[s->ids[i]] / total;
    s->keys[i] = whole - (double)((logits[s->ids[i]] - highest) / temperature);
    if (share > 0) entropy += share * s->keys[i];
  }
  for (size_t i = 0; i < count; i++) s->keys[i] = fabs(s->keys[i] - entropy);
}

// The fewest that reach the share typical_p, the most typical first, and those as typical as the last of them.
static size_t keep_typical(dsv3c_sampler *s, const float *logits, float highest, size_t count) {
  double total = filters_weight(s, count), reached = 0, farthest = 0;
  measure_distances(s, logits, highest, count, total);
  make_heap(s, count);
  for (size_t left = count; left > 0 && (left == count || reached < s->how.typical_p); left--) {
    int32_t item = take_first(s, left);
    farthest = s->keys[item];
    reached += s->weights[s->ids[item]] / total;
  }
  size_t kept = 0;
  for (size_t i = 0; i < count; i++)
    if (s->keys[i] <= farthest) s->ids[kept++] = s->ids[i];
  return kept;
}

size_t filters_choose(dsv3c_sampler *s, const float *logits, float highest) {
  const dsv3c_sampling *how = &s->how;
  size_t count = s->vocab;
  bool top_k = how->top_k > 0 && (size_t)how->top_k < s->vocab;
  float temperature = divisor(how->temperature);
  for (size_t i = 0; i < s->vocab; i++) s->weights[i] = expf((logits[i] - highest) / temperature);
  for (size_t i = 0; i < s->vocab; i++) s->ids[i] = (int32_t)i;
  if (top_k) count = take_likeliest(s, (size_t)how->top_k, INFINITY);
  if (top_k && how->top_p < 1) count = take_nucleus(s, count);
  else if (how->top_p < 1) count = take_likeliest(s, s->vocab, how->top_p * filters_weight(s, count));
  if (how->min_p > 0) count = drop_below(s, count, (double)(float)how->min_p);
  if (how->typical_p >= 1) return count;
  if (count == s->vocab) count = drop_below(s, count, 1e-300);  // what cannot be drawn is not typical
  return keep_typical(s, logits, highest, count);
}
