// What changes logits before a token is taken, as runtime/engine/processors does it and in its order. A logit of
// -infinity cannot be taken.

#include <math.h>

#include "sampler.h"

bool processors_needed(const dsv3c_sampling *how) {
  bool ends = how->eos_token_id.count > 0 && (how->min_length > 0 || how->min_new_tokens > 0);
  return how->repetition_penalty != 1 || how->frequency_penalty != 0 || how->presence_penalty != 0 ||
         how->logit_bias_count || how->no_repeat_ngram_size || how->bad_words_count || how->suppress_tokens.count || ends;
}

float divisor(double value) { return (float)fmin(fmax(value, 1e-30), 1e30); }

// Each id that stands in the text once, however often it does.
static void penalise_repetition(dsv3c_sampler *s, dsv3c_history text) {
  float penalty = divisor(s->how.repetition_penalty);
  for (size_t i = 0; i < text.count; i++) {
    float *logit = &s->logits[text.tokens[i]];
    if (s->counts[text.tokens[i]]++ == 0) *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
  }
  for (size_t i = 0; i < text.count; i++) s->counts[text.tokens[i]] = 0;
}

// By the formula of the OpenAI API reference, of the answer alone.
static void penalise_counts(dsv3c_sampler *s, dsv3c_history text) {
  for (size_t i = text.prompt_count; i < text.count; i++) s->counts[text.tokens[i]]++;
  for (size_t i = text.prompt_count; i < text.count; i++) {
    int32_t id = text.tokens[i];
    double loss = s->counts[id] * s->how.frequency_penalty + s->how.presence_penalty;
    if (s->counts[id]) s->logits[id] -= (float)fmin(fmax(loss, -1e30), 1e30);
    s->counts[id] = 0;
  }
}

// Where float can add it; -infinity is a ban.
static float bias(double value) { return value == -INFINITY ? -INFINITY : (float)fmin(fmax(value, -1e30), 1e30); }

static bool same(const int32_t *a, const int32_t *b, size_t count) {
  while (count > 0 && a[count - 1] == b[count - 1]) count--;
  return count == 0;
}

static void ban_repeated_ngrams(dsv3c_sampler *s, dsv3c_history text) {
  size_t size = (size_t)s->how.no_repeat_ngram_size;
  if (text.count < size) return;
  const int32_t *begun = text.tokens + text.count + 1 - size;
  for (size_t i = 0; i + size <= text.count; i++)
    if (same(text.tokens + i, begun, size - 1)) s->logits[text.tokens[i + size - 1]] = -INFINITY;
}

static void ban_words(dsv3c_sampler *s, dsv3c_history text) {
  for (size_t i = 0; i < s->how.bad_words_count; i++) {
    const dsv3c_ids *word = &s->how.bad_words_ids[i];
    size_t before = word->count - 1;
    int32_t last = word->ids[before];
    if (before == 0 && sampler_is_end(s, last)) continue;
    if (before <= text.count && same(word->ids, text.tokens + text.count - before, before)) s->logits[last] = -INFINITY;
  }
}

static void ban(dsv3c_sampler *s, dsv3c_ids tokens) {
  for (size_t i = 0; i < tokens.count; i++) s->logits[tokens.ids[i]] = -INFINITY;
}

void processors_apply(dsv3c_sampler *s, dsv3c_history text) {
  const dsv3c_sampling *how = &s->how;
  if (how->repetition_penalty != 1) penalise_repetition(s, text);
  if (how->frequency_penalty != 0 || how->presence_penalty != 0) penalise_counts(s, text);
  for (size_t i = 0; i < how->logit_bias_count; i++) s->logits[how->logit_bias[i].token] += bias(how->logit_bias[i].bias);
  if (how->no_repeat_ngram_size) ban_repeated_ngrams(s, text);
  ban_words(s, text);
  size_t made = text.count - text.prompt_count;
  if (text.count < (size_t)how->min_length || made < (size_t)how->min_new_tokens) ban(s, how->eos_token_id);
  ban(s, how->suppress_tokens);
}
