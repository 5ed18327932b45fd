// The answer to one prompt, as runtime/engine generates it: feed, draw, tell the text that is certain, stop.

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "generate.h"

static const plan_table *const plan = &dsv3c_plan;

struct dsv3c_generation {
  dsv3c_model *model;
  dsv3c_sequence *sequence;
  dsv3c_sampler *sampler;
  dsv3c_speculation speculation;
  mtp_layer mtp;
  pace pace;
  stop_filter stop;
  dsv3c_text text;
  char *piece, *out;  // of one token; what certainly is no stop string
  int32_t *tokens;    // of the prompt and all that was drawn: the last one is not fed yet
  float *logits;      // a row for each token of a step
  size_t prompt, count, told, limit;  // tokens; those that were told; those of an answer at most
  size_t first_row;   // the place in `tokens` of what the first row of logits gave
  double deadline;    // by now(); 0: none
  dsv3c_finish finish;
  dsv3c_status failed;
  dsv3c_statistics statistics;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// ---- parameters

static bool clash(int32_t least, int32_t most) { return most > 0 && least > most; }

static dsv3c_status check(const dsv3c_parameters *how) {
  const dsv3c_sampling *s = &how->sampling;
  if (how->max_new_tokens < 0) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "max_new_tokens is out of range");
  if (how->max_length < 0) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "max_length is out of range");
  if (!(how->max_time >= 0 && how->max_time <= 1e300))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "max_time is out of range");
  if (clash(s->min_new_tokens, how->max_new_tokens))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "min_new_tokens is above max_new_tokens: lower the one or raise the other");
  if (clash(s->min_length, how->max_length))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "min_length is above max_length: lower the one or raise the other");
  if (!how->max_new_tokens && how->max_length && s->min_new_tokens >= how->max_length)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "max_length has no room for min_new_tokens: lower the one or raise the other");
  if (how->speculation > DSV3C_MTP)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "the kind of speculation is %d", (int)how->speculation);
  if (how->speculation == DSV3C_MTP && !plan->mtp.steps)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "this model has no layer for multi-token prediction: draft by n-grams");
  return DSV3C_OK;
}

static dsv3c_status check_prompt(const dsv3c_model *model, const int32_t *prompt, size_t count) {
  if (count == 0) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "the prompt has no tokens");
  if (count > (size_t)model->context)
    return dsv3c_fail(DSV3C_CONTEXT_EXCEEDED, "the prompt of %zu tokens is longer than the context of %d", count,
                      model->context);
  for (size_t i = 0; i < count; i++)
    if (prompt[i] < 0 || prompt[i] >= plan->vocab_size)
      return dsv3c_fail(DSV3C_BAD_TOKEN, "token id %d at position %zu is not in 0..%d", prompt[i], i,
                        plan->vocab_size - 1);
  return DSV3C_OK;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// Tokens of the answer at most.
static dsv3c_status set_limit(dsv3c_generation *g, const dsv3c_parameters *how) {
  size_t room = (size_t)g->model->context - g->prompt, most = (size_t)how->max_length;
  size_t min_length = (size_t)how->sampling.min_length, behind = min_length > g->prompt ? min_length - g->prompt : 0;
  g->limit = (size_t)how->max_new_tokens;
  if (!g->limit && most && most <= g->prompt)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "max_length is %zu and the prompt alone has %zu tokens: raise it, or give "
                      "max_new_tokens, for the answer alone", most, g->prompt);
  if (!g->limit && most) g->limit = most - g->prompt;
  if (!g->limit) g->limit = larger(DSV3C_MAX_NEW_TOKENS, larger((size_t)how->sampling.min_new_tokens, behind));
  if (g->limit > room) g->limit = room;
  return DSV3C_OK;
}

dsv3c_parameters dsv3c_parameters_defaults(const dsv3c_model *model) {
  (void)model;
  return plan->parameters;
}

// ---- beginning and end

static dsv3c_status prepare(dsv3c_generation *g, const int32_t *prompt, const dsv3c_parameters *how) {
  TRY(set_limit(g, how));
  TRY(dsv3c_sampler_new(g->model, &how->sampling, &g->sampler));
  TRY(dsv3c_sequence_new(g->model, &g->sequence));
  size_t bytes = larger(dsv3c_text_bytes(g->model), sizeof g->text.held), rows = how->speculation ? MOST_DRAFTS + 1 : 1;
  if (how->stop_count && !g->model->tokenizer)
    return dsv3c_fail(DSV3C_NO_TOKENIZER, "this model was compiled without a tokenizer: there is no text to stop at");
  TRY(stop_new(&g->stop, how->stop, how->stop_count, bytes));
  g->tokens = calloc(g->prompt + g->limit + 1, sizeof *g->tokens);
  g->logits = calloc(rows * (size_t)plan->vocab_size, sizeof *g->logits);
  g->piece = calloc(1, bytes + 1);
  g->out = calloc(1, 2 * stop_bytes(&g->stop) + 1);
  if (!g->tokens || !g->logits || !g->piece || !g->out)
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a generation");
  memcpy(g->tokens, prompt, g->prompt * sizeof *prompt);
  if (g->speculation == DSV3C_MTP) TRY(mtp_new(&g->mtp, g->sequence, g->tokens));
  return DSV3C_OK;
}

dsv3c_status dsv3c_generation_new(dsv3c_model *model, const int32_t *prompt, size_t count, const dsv3c_parameters *how,
                                  dsv3c_generation **out) {
  if (!model || (count && !prompt) || !how || !out)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a generation needs a model, a prompt, its parameters and a place for it");
  *out = 0;
  TRY(check(how));
  TRY(check_prompt(model, prompt, count));
  dsv3c_generation *g = calloc(1, sizeof *g);
  if (!g) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a generation");
  *g = (dsv3c_generation){.model = model, .prompt = count, .count = count, .told = count,
                          .deadline = how->max_time > 0 ? now() + how->max_time : 0,
                          .speculation = how->speculation, .statistics.prompt_tokens = count};
  pace_begin(&g->pace);
  dsv3c_status status = prepare(g, prompt, how);
  if (status == DSV3C_OK) *out = g;
  else dsv3c_generation_free(g);
  return status;
}

void dsv3c_generation_free(dsv3c_generation *g) {
  if (!g) return;
  mtp_free(&g->mtp);
  stop_free(&g->stop);
  dsv3c_sequence_free(g->sequence);
  dsv3c_sampler_free(g->sampler);
  free(g->tokens);
  free(g->logits);
  free(g->piece);
  free(g->out);
  free(g);
}

dsv3c_statistics dsv3c_generation_statistics(const dsv3c_generation *g) {
  return g ? g->statistics : (dsv3c_statistics){0};
}

// ---- steps

static dsv3c_status draw(dsv3c_generation *g, size_t row, int32_t *token) {
  dsv3c_history text = {g->tokens, g->count, g->prompt};
  TRY(dsv3c_sample(g->sampler, g->logits + row * (size_t)plan->vocab_size, &text, token));
  g->tokens[g->count++] = *token;
  return DSV3C_OK;
}

static dsv3c_status read_prompt(dsv3c_generation *g) {
  dsv3c_request request = {g->sequence, g->tokens, g->prompt, DSV3C_LAST, g->logits};
  step_watcher watcher = {mtp_see, &g->mtp};
  int32_t token;
  TRY(run_watched(g->model, &request, g->speculation == DSV3C_MTP ? &watcher : 0));
  return draw(g, 0, &token);
}

// Drafts that fit the answer, the cache and one step of the entry that plain steps run: others compute other bits.
static int32_t most_drafts(const dsv3c_generation *g) {
  size_t left = g->prompt + g->limit - g->count - 1;
  int32_t most = left < MOST_DRAFTS ? (int32_t)left : MOST_DRAFTS;
  if (most > plan->rows - 1) most = plan->rows - 1;
  int32_t next = g->sequence->length + 1;
  const plan_entry *plain = entry_for(g->model, 1, 1, next);
  while (most > 0 && (entry_for(g->model, most + 1, most + 1, next + most) != plain || most >= plan->tokens ||
                      most >= plain->max_tokens))
    most--;
  while (most > 0 && sequence_pages_needed(g->sequence, g->sequence->length + most + 1) > g->model->free_count) most--;
  return most;
}

// Drafts for the next step, none where they are not worth it; *source: what they are from. Where that is the text, the
// first draft is there in any case.
static dsv3c_status propose(dsv3c_generation *g, int32_t *drafts, int32_t *count, int *source) {
  int32_t most = most_drafts(g);
  *count = 0;
  *source = FROM_MTP;
  if (most == 0) return DSV3C_OK;
  if (g->speculation == DSV3C_NGRAM) *source = ngram_propose(g->tokens, g->count, most, drafts);
  if (g->speculation == DSV3C_NGRAM && *source == 0) return DSV3C_OK;
  *count = pace_choose(&g->pace, *source, most, g->mtp.waiting);
  if (*count == 0 || g->speculation == DSV3C_NGRAM) return DSV3C_OK;
  int32_t rows;
  double begin = now();
  sequence_reserve(g->sequence, g->sequence->length + *count + 1);
  TRY(mtp_catch_up(&g->mtp, &rows));
  if (rows) pace_caught_up(&g->pace, rows, now() - begin);
  begin = now();
  TRY(mtp_propose(&g->mtp, g->sampler, *count, drafts));
  pace_took_drafts(&g->pace, *count, now() - begin);
  for (int32_t i = 0; i < *count; i++)
    if (drafts[i] < 0) *count = i;
  return DSV3C_OK;
}

// Feed the last token and the drafts, draw a token of each row as long as the drafts are what is drawn.
static dsv3c_status verify(dsv3c_generation *g, const int32_t *drafts, int32_t count, int source) {
  int32_t fed[MOST_DRAFTS + 1] = {g->tokens[g->count - 1]}, length = g->sequence->length, row = 0, token = 0;
  memcpy(fed + 1, drafts, (size_t)count * sizeof *drafts);
  dsv3c_request request = {g->sequence, fed, (size_t)count + 1, DSV3C_ALL, g->logits};
  double begin = now();
  TRY(dsv3c_run(g->model, &request, 1));
  pace_took(&g->pace, count + 1, now() - begin);
  g->first_row = g->count;
  for (; row <= count; row++) {
    TRY(draw(g, (size_t)row, &token));
    if (row < count) pace_learn(&g->pace, source, token == fed[row + 1]);
    if (row == count || token != fed[row + 1] || sampler_is_end(g->sampler, token)) break;
  }
  g->statistics.drafted += (size_t)count;
  g->statistics.accepted += g->count - g->first_row - 1;
  sequence_cut(g->sequence, length + row + 1);
  if (g->speculation != DSV3C_MTP) return DSV3C_OK;
  const plan_entry *entry = entry_for(g->model, count + 1, count + 1, length + count + 1);
  return mtp_see(&g->mtp, length, row + 1, model_output(g->model, entry->hidden));
}

static dsv3c_status step(dsv3c_generation *g) {
  int32_t drafts[MOST_DRAFTS], count = 0;
  int source = 0;
  if (g->speculation) TRY(propose(g, drafts, &count, &source));
  TRY(verify(g, drafts, count, source));
  // A draft out of the text costs nothing: whether it would have come true is learned without feeding it.
  if (source > FROM_MTP && count == 0) pace_learn(&g->pace, source, g->tokens[g->count - 1] == drafts[0]);
  return DSV3C_OK;
}

// Draw at least one more token.
static dsv3c_status advance(dsv3c_generation *g) {
  double begin = now();
  bool first = g->count == g->prompt;
  size_t before = g->count;
  g->first_row = before;
  dsv3c_status status = first ? read_prompt(g) : step(g);
  *(first ? &g->statistics.prompt_seconds : &g->statistics.decode_seconds) += now() - begin;
  if (status != DSV3C_OK || first) return status;
  g->statistics.steps++;
  g->statistics.decoded += g->count - before;
  return DSV3C_OK;
}

// ---- what is told

static dsv3c_status tell(dsv3c_generation *g, int32_t token, dsv3c_event *event) {
  size_t size = 0;
  if (g->model->tokenizer)
    TRY(dsv3c_text_push(g->model, &g->text, token, g->piece, dsv3c_text_bytes(g->model), &size));
  event->token = token;
  event->size = stop_push(&g->stop, g->piece, size, g->out);
  g->told++;
  g->statistics.tokens++;
  return DSV3C_OK;
}

static void end(dsv3c_generation *g, dsv3c_finish reason, dsv3c_event *event) {
  size_t size = dsv3c_text_flush(&g->text, g->piece);
  event->size = stop_push(&g->stop, g->piece, size, g->out);
  event->size += stop_flush(&g->stop, g->out + event->size);
  event->finish = g->finish = g->stop.stopped ? DSV3C_STOP : reason;
}

static bool time_is_over(const dsv3c_generation *g) { return g->deadline > 0 && now() >= g->deadline; }

static dsv3c_status next(dsv3c_generation *g, dsv3c_event *event) {
  if (g->finish) return event->finish = g->finish, DSV3C_OK;
  if (g->stop.stopped) return end(g, DSV3C_STOP, event), DSV3C_OK;
  if (g->told == g->prompt + g->limit) return end(g, DSV3C_LENGTH, event), DSV3C_OK;
  if (g->told == g->count && time_is_over(g)) return end(g, DSV3C_TIME, event), DSV3C_OK;
  if (g->told == g->count) TRY(advance(g));
  int32_t token = g->tokens[g->told];
  event->logits = g->logits + (g->told - g->first_row) * (size_t)plan->vocab_size;
  if (sampler_is_end(g->sampler, token)) return end(g, DSV3C_STOP, event), DSV3C_OK;
  return tell(g, token, event);
}

dsv3c_status dsv3c_generation_next(dsv3c_generation *g, dsv3c_event *event) {
  if (!g || !event) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_generation_next needs a generation and an event");
  *event = (dsv3c_event){.token = -1, .text = g->out};
  if (g->failed) return dsv3c_fail(g->failed, "the generation has failed before");
  return g->failed = next(g, event);
}
