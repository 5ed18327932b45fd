// Drafts by the model's layer for multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

#include <stdlib.h>
#include <string.h>

#include "generate.h"

static const plan_table *const plan = &dsv3c_plan;

static size_t width(void) { return (size_t)plan->hidden_size; }

static int32_t room(void) { return 2 * plan->page_size; }

dsv3c_status mtp_new(mtp_layer *m, const dsv3c_sequence *sequence, const int32_t *tokens) {
  *m = (mtp_layer){.sequence = sequence, .tokens = tokens};
  m->states = calloc((size_t)room() * width(), sizeof *m->states);
  return m->states ? DSV3C_OK : dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for states of the MTP layer");
}

void mtp_free(mtp_layer *m) { free(m->states); }

// One step over `count` positions from `first`, whose states are in place. With `row`, logits of the last one are made.
static dsv3c_status step(mtp_layer *m, const int32_t *tokens, int32_t first, int32_t count, bool row) {
  dsv3c_model *model = m->sequence->model;
  int32_t before = m->begin / plan->page_size;
  memcpy(model->tokens, tokens, (size_t)count * sizeof *tokens);
  memcpy(model->page_table, m->sequence->pages + before, (size_t)(m->sequence->count - before) * sizeof(int32_t));
  for (int32_t i = 0; i < count; i++) {
    model->positions[i] = first - m->begin + i;
    model->sequence[i] = 0;
  }
  m->rows = count;
  model->rows[0] = count - 1;
  model->control[0] = count;
  model->control[1] = row;
  TRY(kernels_run(model->kernels, &plan->mtp));
  return memory_require(&model->weights, &plan->weights);
}

// Read the first `count` states that wait.
static dsv3c_status fill(mtp_layer *m, int32_t count, bool row) {
  for (int32_t size; count > 0; count -= size) {
    size = count < plan->mtp.max_tokens ? count : plan->mtp.max_tokens;
    memcpy(m->sequence->model->hidden, m->states, (size_t)size * width() * sizeof *m->states);
    TRY(step(m, m->tokens + m->filled + 1, m->filled, size, row && size == count));
    m->filled += size;
    m->waiting -= size;
    memmove(m->states, m->states + (size_t)size * width(), (size_t)m->waiting * width() * sizeof *m->states);
  }
  return DSV3C_OK;
}

dsv3c_status mtp_see(void *layer, int32_t first, int32_t count, const float *hidden) {
  mtp_layer *m = layer;
  int32_t end = first + count, most = room();
  if (m->waiting + count > most) {  // there is no state for what lies before: begin anew
    m->begin = (end - most + plan->page_size - 1) / plan->page_size * plan->page_size;
    int32_t gone = m->begin - m->filled < m->waiting ? m->begin - m->filled : m->waiting;
    m->filled = m->begin;
    m->waiting -= gone;
    memmove(m->states, m->states + (size_t)gone * width(), (size_t)m->waiting * width() * sizeof *m->states);
  }
  int32_t from = m->filled + m->waiting;
  memcpy(m->states + (size_t)m->waiting * width(), hidden + (size_t)(from - first) * width(),
         (size_t)(end - from) * width() * sizeof *hidden);
  m->waiting += end - from;
  return DSV3C_OK;
}

dsv3c_status mtp_catch_up(mtp_layer *m, int32_t *rows) {
  *rows = m->waiting > MOST_DRAFTS + 1 ? m->waiting - 1 : 0;
  return fill(m, *rows, false);
}

dsv3c_status mtp_propose(mtp_layer *m, dsv3c_sampler *sampler, int32_t count, int32_t *drafts) {
  const float *logits = model_output(m->sequence->model, plan->mtp.logits);
  const float *hidden = model_output(m->sequence->model, plan->mtp.hidden);
  TRY(fill(m, m->waiting, true));
  for (int32_t i = 0; i < count; i++) {
    drafts[i] = sampler_guess(sampler, logits, i);
    if (i + 1 == count || drafts[i] < 0) continue;
    // The layer reads its own state behind a draft; what it leaves in its cache there is written again.
    memcpy(m->sequence->model->hidden, hidden + (size_t)(m->rows - 1) * width(), width() * sizeof *hidden);
    TRY(step(m, &drafts[i], m->filled + i, 1, true));
  }
  return DSV3C_OK;
}
