// Requests cut into steps, as runtime/engine/session.py cuts them: the same steps, so the same numbers.

#include <string.h>

#include "sequence.h"

static const plan_table *const plan = &dsv3c_plan;

static dsv3c_status check_tokens(const dsv3c_request *request) {
  for (size_t i = 0; i < request->count; i++)
    if (request->tokens[i] < 0 || request->tokens[i] >= plan->vocab_size)
      return dsv3c_fail(DSV3C_BAD_TOKEN, "token id %d at position %zu is not in 0..%d", request->tokens[i], i,
                        plan->vocab_size - 1);
  return DSV3C_OK;
}

static dsv3c_status check_request(const dsv3c_model *model, const dsv3c_request *request) {
  const dsv3c_sequence *s = request->sequence;
  if (!s || s->model != model) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a request's sequence is of another model");
  if (s->run == model->runs) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "two requests append to the same sequence");
  if (request->want > DSV3C_ALL) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a request's `want` is %d", (int)request->want);
  if (request->count && (!request->tokens || (request->want != DSV3C_NONE && !request->logits)))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a request lacks its tokens, or a place for its logits");
  if (request->count > (size_t)(model->context - s->length))  // before the tokens are read: a wrong count ends here
    return dsv3c_fail(DSV3C_CONTEXT_EXCEEDED, "%zu tokens behind %d do not fit the context of %d", request->count,
                      s->length, model->context);
  return check_tokens(request);
}

// Pages of all requests are taken before the first step, so that a step never lacks one.
static dsv3c_status reserve(dsv3c_model *model, const dsv3c_request *requests, size_t count) {
  int64_t needed = 0;
  model->runs++;
  for (size_t i = 0; i < count; i++) {
    TRY(check_request(model, &requests[i]));
    dsv3c_sequence *s = requests[i].sequence;
    s->run = model->runs;
    s->before = s->length;
    needed += sequence_pages_needed(s, s->length + (int32_t)requests[i].count);
  }
  if (needed > model->free_count)
    return dsv3c_fail(DSV3C_OUT_OF_PAGES, "the cache has %d free pages of %d tokens, %lld are needed",
                      model->free_count, plan->page_size, (long long)needed);
  for (size_t i = 0; i < count; i++) {
    dsv3c_sequence *s = requests[i].sequence;
    sequence_reserve(s, s->length + (int32_t)requests[i].count);
  }
  return DSV3C_OK;
}

static const plan_entry *in_context(const plan_entry *brief, const plan_entry *entry, int64_t tokens, int64_t context) {
  return brief->steps && context <= brief->max_context && tokens <= brief->max_tokens ? brief : entry;
}

const plan_entry *entry_for(const dsv3c_model *model, int64_t longest, int64_t tokens, int64_t context) {
  const plan_entry *decode = in_context(&plan->short_decode, &plan->decode, tokens, context);
  const plan_entry *prefill = in_context(&plan->short_prefill, &plan->prefill, tokens, context);
  if (!prefill->steps) return decode;
  if (!decode->steps) return prefill;
  int32_t pays_from = model->level->prefill_min_tokens ? model->level->prefill_min_tokens : prefill->min_tokens;
  return longest < pays_from && tokens <= decode->max_tokens ? decode : prefill;
}

static int32_t least(int64_t a, int64_t b) { return (int32_t)(a < b ? a : b); }

// The pieces of the next step: requests in order, as long as tokens, rows and sequences fit. Returns their number.
static int32_t next_step(dsv3c_model *model, const dsv3c_request *requests, size_t count) {
  int64_t total = 0, longest = 0, context = 0;
  for (size_t i = 0; i < count; i++) {
    const dsv3c_sequence *s = requests[i].sequence;
    int64_t left = (int64_t)requests[i].count - (s->length - s->before), end = s->length + least(left, plan->tokens);
    total += left;
    longest = left > longest ? left : longest;
    context = end > context ? end : context;
  }
  if (total == 0) return 0;
  const plan_entry *entry = entry_for(model, least(longest, plan->tokens), least(total, plan->tokens), context);
  int32_t room = entry->max_tokens, rows = plan->rows, pieces = 0;
  for (size_t i = 0; i < count && pieces < plan->sequences; i++) {
    dsv3c_sequence *s = requests[i].sequence;
    int32_t done = s->length - s->before, left = (int32_t)requests[i].count - done, n = least(left, room), wanted = 0;
    if (requests[i].want == DSV3C_ALL) wanted = n = least(n, rows);
    if (requests[i].want == DSV3C_LAST) wanted = n == left && n > 0;
    if (wanted > rows) n--, wanted = 0;  // no row left for the last token: it goes into the next step
    if (n == 0) continue;
    model->pieces[pieces++] = (step_piece){s, &requests[i], done, n, wanted};
    room -= n;
    rows -= wanted;
  }
  return pieces;
}

// Write the inputs of a step; returns its tokens.
static int32_t fill_inputs(dsv3c_model *model, int32_t pieces) {
  int32_t total = 0, rows = 0;
  for (int32_t i = 0; i < pieces; i++) {
    const step_piece *piece = &model->pieces[i];
    const dsv3c_sequence *s = piece->sequence;
    memcpy(model->tokens + total, piece->request->tokens + piece->start, (size_t)piece->count * sizeof *model->tokens);
    memcpy(model->page_table + (size_t)i * (size_t)plan->pages, s->pages, (size_t)s->count * sizeof *s->pages);
    for (int32_t t = 0; t < piece->count; t++, total++) {
      model->positions[total] = s->length + t;
      model->sequence[total] = i;
    }
    for (int32_t r = piece->rows; r > 0; r--) model->rows[rows++] = total - r;
  }
  model->control[0] = total;
  model->control[1] = rows;
  return total;
}

static void hand_out_logits(const float *logits, const step_piece *pieces, int32_t count) {
  size_t width = (size_t)plan->vocab_size;
  for (const step_piece *piece = pieces; piece < pieces + count; piece++) {
    size_t first = piece->request->want == DSV3C_ALL ? (size_t)piece->start : 0;
    size_t values = (size_t)piece->rows * width;
    if (values) memcpy(piece->request->logits + first * width, logits, values * sizeof *logits);
    logits += values;
  }
}

static dsv3c_status run_steps(dsv3c_model *model, const dsv3c_request *requests, size_t count,
                              const step_watcher *watcher) {
  for (int32_t pieces; (pieces = next_step(model, requests, count)) > 0;) {
    int32_t total = fill_inputs(model, pieces), longest = 0, context = 0;
    for (int32_t i = 0; i < pieces; i++) {
      int32_t size = model->pieces[i].count, end = model->pieces[i].sequence->length + size;
      longest = size > longest ? size : longest;
      context = end > context ? end : context;
    }
    const plan_entry *entry = entry_for(model, longest, total, context);
    TRY(kernels_run(model->kernels, entry));
    TRY(memory_require(&model->weights, &plan->weights));
    hand_out_logits(model_output(model, entry->logits), model->pieces, pieces);
    for (int32_t i = 0; i < pieces; i++) model->pieces[i].sequence->length += model->pieces[i].count;
    if (!watcher) continue;
    const step_piece *piece = model->pieces;
    TRY(watcher->see(watcher->who, piece->sequence->length - piece->count, piece->count,
                     model_output(model, entry->hidden)));
  }
  return DSV3C_OK;
}

static dsv3c_status run_all(dsv3c_model *model, const dsv3c_request *requests, size_t count,
                            const step_watcher *watcher) {
  TRY(reserve(model, requests, count));
  dsv3c_status status = run_steps(model, requests, count, watcher);
  for (size_t i = 0; status != DSV3C_OK && i < count; i++)
    sequence_cut(requests[i].sequence, requests[i].sequence->before);
  return status;
}

dsv3c_status dsv3c_run(dsv3c_model *model, const dsv3c_request *requests, size_t count) {
  if (!model || (count && !requests)) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_run needs a model and requests");
  return run_all(model, requests, count, 0);
}

dsv3c_status run_watched(dsv3c_model *model, const dsv3c_request *request, const step_watcher *watcher) {
  return run_all(model, request, 1, watcher);
}
