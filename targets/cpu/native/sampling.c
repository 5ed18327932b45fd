// The next token, drawn as runtime/engine/sampling.py draws it: the same processors and filters, and numpy's numbers.
// Only expf may differ from numpy's by a unit in the last place.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sampler.h"

// ---- parameters

static bool within(double value, double low, double high) { return value >= low && value <= high; }

static dsv3c_status check_numbers(const dsv3c_sampling *how) {
  const char *wrong = 0;
  if (!within(how->temperature, 0, 1e300)) wrong = "temperature";
  if (!within(how->top_p, 5e-324, 1)) wrong = "top_p";
  if (!within(how->min_p, 0, 1)) wrong = "min_p";
  if (!within(how->typical_p, 5e-324, 1)) wrong = "typical_p";
  if (!within(how->repetition_penalty, 5e-324, 1e300)) wrong = "repetition_penalty";
  if (!within(how->frequency_penalty, -1e300, 1e300)) wrong = "frequency_penalty";
  if (!within(how->presence_penalty, -1e300, 1e300)) wrong = "presence_penalty";
  if (how->top_k < 0) wrong = "top_k";
  if (how->no_repeat_ngram_size < 0) wrong = "no_repeat_ngram_size";
  if (how->min_length < 0) wrong = "min_length";
  if (how->min_new_tokens < 0) wrong = "min_new_tokens";
  return wrong ? dsv3c_fail(DSV3C_BAD_ARGUMENT, "%s is out of range", wrong) : DSV3C_OK;
}

static dsv3c_status check_ids(const char *name, dsv3c_ids list) {
  if (list.count && !list.ids) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "%s needs its ids", name);
  for (size_t i = 0; i < list.count; i++)
    if (list.ids[i] < 0 || list.ids[i] >= dsv3c_plan.vocab_size)
      return dsv3c_fail(DSV3C_BAD_TOKEN, "%s: token id %d is not in 0..%d", name, list.ids[i], dsv3c_plan.vocab_size - 1);
  return DSV3C_OK;
}

static dsv3c_status check_lists(const dsv3c_sampling *how) {
  TRY(check_ids("suppress_tokens", how->suppress_tokens));
  TRY(check_ids("eos_token_id", how->eos_token_id));
  if ((how->bad_words_count && !how->bad_words_ids) || (how->logit_bias_count && !how->logit_bias))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a sampler needs the lists that it is told to have");
  for (size_t i = 0; i < how->bad_words_count; i++) {
    TRY(check_ids("bad_words_ids", how->bad_words_ids[i]));
    if (how->bad_words_ids[i].count == 0) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "bad_words_ids has a word without ids");
  }
  for (size_t i = 0; i < how->logit_bias_count; i++) {
    TRY(check_ids("logit_bias", (dsv3c_ids){&how->logit_bias[i].token, 1}));
    double bias = how->logit_bias[i].bias;
    if (bias != -INFINITY && !within(bias, -1e300, 1e300))
      return dsv3c_fail(DSV3C_BAD_ARGUMENT, "logit_bias is out of range");
  }
  return DSV3C_OK;
}

dsv3c_sampling dsv3c_sampling_defaults(const dsv3c_model *model) {
  (void)model;
  return dsv3c_plan.parameters.sampling;
}

// ---- a sampler

static size_t list_bytes(const dsv3c_sampling *how) {
  size_t ids = how->suppress_tokens.count + how->eos_token_id.count;
  for (size_t i = 0; i < how->bad_words_count; i++) ids += how->bad_words_ids[i].count;
  return how->bad_words_count * sizeof(dsv3c_ids) + how->logit_bias_count * sizeof(dsv3c_bias) + ids * sizeof(int32_t);
}

// A copy of `size` bytes at *at, which moves behind it.
static const void *keep(unsigned char **at, const void *data, size_t size) {
  void *copy = *at;
  if (size) memcpy(copy, data, size);
  *at += size;
  return copy;
}

// The lists of the parameters, one behind the other: those of the widest elements first.
static void keep_lists(dsv3c_sampler *s) {
  dsv3c_sampling *how = &s->how;
  unsigned char *at = s->lists;
  dsv3c_ids *words = s->lists;
  how->bad_words_ids = keep(&at, how->bad_words_ids, how->bad_words_count * sizeof *words);
  how->logit_bias = keep(&at, how->logit_bias, how->logit_bias_count * sizeof *how->logit_bias);
  for (size_t i = 0; i < how->bad_words_count; i++)
    words[i].ids = keep(&at, words[i].ids, words[i].count * sizeof *words[i].ids);
  how->suppress_tokens.ids = keep(&at, how->suppress_tokens.ids, how->suppress_tokens.count * sizeof(int32_t));
  how->eos_token_id.ids = keep(&at, how->eos_token_id.ids, how->eos_token_id.count * sizeof(int32_t));
}

dsv3c_status dsv3c_sampler_new(const dsv3c_model *model, const dsv3c_sampling *how, dsv3c_sampler **out) {
  if (!model || !how || !out)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a sampler needs a model, its parameters and a place for it");
  *out = 0;
  TRY(check_numbers(how));
  TRY(check_lists(how));
  dsv3c_sampler *s = calloc(1, sizeof *s);
  if (!s) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a sampler");
  s->how = *how;
  if (how->ignore_eos) s->how.eos_token_id = (dsv3c_ids){0};
  s->vocab = (size_t)dsv3c_plan.vocab_size;
  s->lists = calloc(1, list_bytes(&s->how) + 1);
  s->logits = calloc(s->vocab, sizeof *s->logits);
  s->weights = calloc(s->vocab, sizeof *s->weights);
  s->counts = calloc(s->vocab, sizeof *s->counts);
  s->ids = calloc(s->vocab, sizeof *s->ids);
  s->order = calloc(s->vocab, sizeof *s->order);
  s->keys = calloc(s->vocab, sizeof *s->keys);
  if (!s->lists || !s->logits || !s->weights || !s->counts || !s->ids || !s->order || !s->keys) {
    dsv3c_sampler_free(s);
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a sampler");
  }
  keep_lists(s);
  s->processes = processors_needed(&s->how);
  random_seed(&s->random, how->seed);
  *out = s;
  return DSV3C_OK;
}

void dsv3c_sampler_free(dsv3c_sampler *s) {
  if (!s) return;
  free(s->lists);
  free(s->logits);
  free(s->weights);
  free(s->counts);
  free(s->ids);
  free(s->order);
  free(s->keys);
  free(s);
}

bool sampler_is_end(const dsv3c_sampler *s, int32_t token) {
  for (size_t i = 0; i < s->how.eos_token_id.count; i++)
    if (s->how.eos_token_id.ids[i] == token) return true;
  return false;
}

// ---- drawing

// The first of the largest. NaN is met by no comparison: *finite tells of it.
static int32_t likeliest(const float *logits, size_t count, bool *finite) {
  size_t best = 0;
  bool number = true;
  for (size_t i = 0; i < count; i++) {
    number &= !isnan(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  *finite = number && isfinite(logits[best]);
  return (int32_t)best;
}

static int32_t drawn(dsv3c_sampler *s, const float *logits, int32_t best, double number) {
  size_t count = filters_choose(s, logits, logits[best]), at = 0;
  double share = number * filters_weight(s, count), total = 0;
  while (at < count && (total += s->weights[s->ids[at]]) <= share) at++;
  return s->ids[at < count ? at : count - 1];
}

static dsv3c_status check_history(const dsv3c_history *text) {
  if ((text->count && !text->tokens) || text->prompt_count > text->count)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a history needs its tokens, of which those of the prompt are a part");
  return check_ids("history", (dsv3c_ids){text->tokens, text->count});
}

dsv3c_status dsv3c_sample(dsv3c_sampler *s, const float *logits, const dsv3c_history *history, int32_t *token) {
  if (!s || !logits || !token)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_sample needs a sampler, logits and a place for the token");
  dsv3c_history text = history ? *history : (dsv3c_history){0};
  if (s->processes) TRY(check_history(&text));
  bool finite;
  int32_t best = likeliest(logits, s->vocab, &finite);
  if (!finite) return dsv3c_fail(DSV3C_NOT_FINITE, "the model returned logits that are not finite");
  if (s->processes) {
    memcpy(s->logits, logits, s->vocab * sizeof *logits);
    processors_apply(s, text);
    logits = s->logits;
    best = likeliest(logits, s->vocab, &finite);
  }
  if (!finite && logits[best] == -INFINITY)
    return dsv3c_fail(DSV3C_NO_TOKEN_ALLOWED, "after %zu tokens every token is forbidden", text.count);
  if (!finite) return dsv3c_fail(DSV3C_NOT_FINITE, "the penalties lead to logits that are not finite");
  *token = s->how.temperature == 0 ? best : drawn(s, logits, best, random_number(&s->random));
  return DSV3C_OK;
}

int32_t sampler_guess(dsv3c_sampler *s, const float *logits, int32_t ahead) {
  bool finite;
  int32_t best = likeliest(logits, s->vocab, &finite);
  if (!finite) return -1;
  if (s->how.temperature == 0) return best;
  random_state later = s->random;
  double number = random_number(&later);
  while (ahead-- > 0) number = random_number(&later);
  return drawn(s, logits, best, number);
}
