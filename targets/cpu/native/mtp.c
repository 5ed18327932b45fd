// Drafts by the model's layer for multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

#include <stdlib.h>
#include <string.h>

#include "generate.h"

static const plan_table *const plan = &dsv3c_plan;

static size_t width(void) { return (size_t)plan->hidden_size; }

dsv3c_status mtp_new(mtp_layer *m, const dsv3c_sequence *sequence, const int32_t *tokens) {
  *m = (mtp_layer){.sequence = sequence, .tokens = tokens};
  m->states = calloc((size_t)(STATES_WAITING + plan->tokens) * width(), sizeof *m->states);
  return m->states ? DSV3C_OK : dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for states of the MTP layer");
}

void mtp_free(mtp_layer *m) { free(m->states); }

// One step over `count` positions from `first`, whose states are in place. With `row`, logits of the last one are made.
static dsv3c_status step(mtp_layer *m, const int32_t *tokens, int32_t first, int32_t count, bool row) {
  dsv3c_model *model = m->sequence->model;
  memcpy(model->tokens, tokens, (size_t)count * sizeof *tokens);
  memcpy(model->page_table, m->sequence->pages, (size_t)m->sequence->count * sizeof *model->page_table);
  for (int32_t i = 0; i < count; i++) {
    model->positions[i] = first + i;
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
  bool mine = first == m->filled + m->waiting;
  if (!mine) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "the MTP layer needs the states of all positions, in order");
  memcpy(m->states + (size_t)m->waiting * width(), hidden, (size_t)count * width() * sizeof *hidden);
  m->waiting += count;
  return m->waiting >= STATES_WAITING ? fill(m, m->waiting - 1, false) : DSV3C_OK;
}

dsv3c_status mtp_catch_up(mtp_layer *m) {
  return m->waiting > MOST_DRAFTS + 1 ? fill(m, m->waiting - 1, false) : DSV3C_OK;
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
