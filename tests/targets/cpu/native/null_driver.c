// Calls each function of dsv3c.h with NULL for each pointer in turn: a status that says so, or nothing done.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dsv3c.h"

static int wrong;

static void refused(int line, dsv3c_status status) {
  if (status == DSV3C_BAD_ARGUMENT && strstr(dsv3c_error(), " need")) return;
  printf("line %d: status %d, \"%s\"\n", line, (int)status, dsv3c_error());
  wrong++;
}

static void holds(int line, int truth) {
  if (!truth) printf("line %d\n", line);
  wrong += !truth;
}

#define REFUSED(call) refused(__LINE__, call)
#define HOLDS(truth) holds(__LINE__, truth)

int main(int argc, char **argv) {
  dsv3c_model *model;
  dsv3c_sequence *sequence, *fork;
  dsv3c_sampler *sampler, *fresh;
  dsv3c_generation *answer;
  dsv3c_event event;
  dsv3c_text text = {{0}, 0};
  dsv3c_sampling how = dsv3c_sampling_defaults(NULL);
  int32_t token = 0, *tokens;
  size_t count, size;
  static float logits[1 << 16];
  char out[1 << 12];
  if (argc != 2 || dsv3c_open(argv[1], NULL, &model) || dsv3c_sequence_new(model, &sequence) ||
      dsv3c_sampler_new(model, &how, &sampler))
    return puts(dsv3c_error()), 2;
  REFUSED(dsv3c_open(NULL, NULL, &model));
  REFUSED(dsv3c_open(argv[1], NULL, NULL));
  dsv3c_close(NULL);
  HOLDS(dsv3c_info_of(NULL).vocab_size == 0 && dsv3c_info_of(NULL).level == NULL);
  REFUSED(dsv3c_sequence_new(NULL, &fork));
  REFUSED(dsv3c_sequence_new(model, NULL));
  HOLDS(dsv3c_sequence_fork(NULL, 0, &fork) == DSV3C_BAD_ARGUMENT);
  REFUSED(dsv3c_sequence_fork(sequence, 0, NULL));
  HOLDS(dsv3c_sequence_truncate(NULL, 0) == DSV3C_BAD_ARGUMENT);
  HOLDS(dsv3c_sequence_length(NULL) == 0);
  dsv3c_sequence_free(NULL);
  dsv3c_request request = {sequence, &token, 1, DSV3C_LAST, logits}, bad[3] = {request, request, request};
  REFUSED(dsv3c_run(NULL, &request, 1));
  REFUSED(dsv3c_run(model, NULL, 1));
  HOLDS(dsv3c_run(model, NULL, 0) == DSV3C_OK);
  bad[0].sequence = NULL, bad[1].tokens = NULL, bad[2].logits = NULL;
  for (int i = 0; i < 3; i++) HOLDS(dsv3c_run(model, &bad[i], 1) == DSV3C_BAD_ARGUMENT);
  HOLDS(dsv3c_sequence_length(sequence) == 0);
  REFUSED(dsv3c_sampler_new(NULL, &how, &sampler));
  REFUSED(dsv3c_sampler_new(model, NULL, &sampler));
  REFUSED(dsv3c_sampler_new(model, &how, NULL));
  how.suppress_tokens.count = 1;
  REFUSED(dsv3c_sampler_new(model, &how, &fresh));
  how = dsv3c_sampling_defaults(NULL), how.bad_words_count = 1;
  REFUSED(dsv3c_sampler_new(model, &how, &fresh));
  how = dsv3c_sampling_defaults(NULL), how.logit_bias_count = 1;
  REFUSED(dsv3c_sampler_new(model, &how, &fresh));
  how = dsv3c_sampling_defaults(NULL), how.no_repeat_ngram_size = 2;
  HOLDS(dsv3c_sampler_new(model, &how, &fresh) == DSV3C_OK);
  dsv3c_history missing = {NULL, 1, 0}, short_one = {&token, 1, 2};
  REFUSED(dsv3c_sample(fresh, logits, &missing, &token));
  REFUSED(dsv3c_sample(fresh, logits, &short_one, &token));
  dsv3c_sampler_free(fresh);
  REFUSED(dsv3c_sample(NULL, logits, NULL, &token));
  REFUSED(dsv3c_sample(sampler, NULL, NULL, &token));
  REFUSED(dsv3c_sample(sampler, logits, NULL, NULL));
  dsv3c_sampler_free(NULL);
  REFUSED(dsv3c_encode(NULL, "a", 1, 1, &tokens, &count));
  REFUSED(dsv3c_encode(model, NULL, 1, 1, &tokens, &count));
  REFUSED(dsv3c_encode(model, "a", 1, 1, NULL, &count));
  REFUSED(dsv3c_encode(model, "a", 1, 1, &tokens, NULL));
  REFUSED(dsv3c_encode(model, "a", 1, 3, &tokens, &count));
  REFUSED(dsv3c_encode(model, "a", 1, -1, &tokens, &count));
  HOLDS(dsv3c_encode(model, NULL, 0, 0, &tokens, &count) == DSV3C_OK && count == 0);
  free(tokens);
  REFUSED(dsv3c_text_push(NULL, &text, 0, out, sizeof out, &size));
  REFUSED(dsv3c_text_push(model, NULL, 0, out, sizeof out, &size));
  REFUSED(dsv3c_text_push(model, &text, 0, NULL, sizeof out, &size));
  REFUSED(dsv3c_text_push(model, &text, 0, out, sizeof out, NULL));
  HOLDS(dsv3c_text_bytes(NULL) == 0);
  HOLDS(dsv3c_text_flush(NULL, out) == 0 && dsv3c_text_flush(&text, NULL) == 0);
  dsv3c_text not_zeroed = {{0}, 99};
  REFUSED(dsv3c_text_push(model, &not_zeroed, 0, out, sizeof out, &size));
  HOLDS(dsv3c_text_flush(&not_zeroed, out) == 0);
  dsv3c_parameters params = dsv3c_parameters_defaults(NULL);
  REFUSED(dsv3c_generation_new(NULL, &token, 1, &params, &answer));
  REFUSED(dsv3c_generation_new(model, NULL, 1, &params, &answer));
  REFUSED(dsv3c_generation_new(model, &token, 1, NULL, &answer));
  REFUSED(dsv3c_generation_new(model, &token, 1, &params, NULL));
  params.stop_count = 1;
  REFUSED(dsv3c_generation_new(model, &token, 1, &params, &answer));
  params.stop_count = 0;
  HOLDS(dsv3c_generation_new(model, &token, 1, &params, &answer) == DSV3C_OK);
  REFUSED(dsv3c_generation_next(NULL, &event));
  REFUSED(dsv3c_generation_next(answer, NULL));
  HOLDS(dsv3c_generation_next(answer, &event) == DSV3C_OK && event.token >= 0);
  HOLDS(dsv3c_generation_statistics(NULL).tokens == 0 && dsv3c_generation_statistics(answer).tokens == 1);
  dsv3c_generation_free(answer);
  dsv3c_generation_free(NULL);
  dsv3c_string none = {NULL, 0}, turn = {"a", 1};
  char *rendered;
  REFUSED(dsv3c_chat(NULL, none, &turn, 1, &rendered, &size));
  REFUSED(dsv3c_chat(model, none, NULL, 1, &rendered, &size));
  REFUSED(dsv3c_chat(model, none, &turn, 1, NULL, &size));
  REFUSED(dsv3c_chat(model, none, &turn, 1, &rendered, NULL));
  bad[0] = request, bad[0].count = (size_t)1 << 40;  // more than there are: none of them is read
  HOLDS(dsv3c_run(model, &bad[0], 1) == DSV3C_CONTEXT_EXCEEDED);
  HOLDS(dsv3c_run(model, &request, 1) == DSV3C_OK && dsv3c_sample(sampler, logits, NULL, &token) == DSV3C_OK);
  dsv3c_sampler_free(sampler);
  dsv3c_sequence_free(sequence);
  dsv3c_close(model);
  return wrong != 0;
}
