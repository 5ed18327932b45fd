// dsv3c-run: text or token ids from the command line, without Python.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

typedef struct {
  dsv3c_model *model;
  dsv3c_info info;
  dsv3c_generation *generation;
  int32_t *prompt, *made;
  size_t prompt_count, made_count;
  FILE *dump;
  dsv3c_finish finish;
} run;

static void check(dsv3c_status status) {
  if (status != DSV3C_OK) fail(1, dsv3c_error(), "");
}

// The numbers of streams that the shell closed are taken, or the next file that is opened would get them. What is read
// from there, or written to stdout, then fails; a closed stderr is a wish for silence.
static void take_closed_streams(void) {
  static const int MODES[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int i = 0; i < 3; i++)
    if (fcntl(i, F_GETFD) == -1 && open("/dev/null", MODES[i]) == -1) exit(1);
}

// ---- the prompt

static char *read_input(size_t *size) {
  size_t capacity = 1 << 16, used = 0;
  char *data = memory(malloc(capacity + 1));
  for (size_t got; (got = fread(data + used, 1, capacity - used, stdin)) > 0;) {
    used += got;
    if (used == capacity) data = memory(realloc(data, (capacity *= 2) + 1));
  }
  if (ferror(stdin)) fail(1, "cannot read the input", strerror(errno));
  data[used] = 0;
  *size = used;
  return data;
}

static void encode(run *r, const settings *s, const char *text, size_t size) {
  dsv3c_string turn = {text, size}, system = {s->system, s->system ? strlen(s->system) : 0};
  dsv3c_special around = s->chat ? DSV3C_PLAIN : s->no_bos ? DSV3C_NO_BOS : DSV3C_SPECIAL;
  char *rendered = 0;
  if (s->chat) check(dsv3c_chat(r->model, system, &turn, 1, &rendered, &size));
  check(dsv3c_encode(r->model, rendered ? rendered : text, size, around, &r->prompt, &r->prompt_count));
  free(rendered);
}

static void read_prompt(run *r, const settings *s) {
  const char *given = s->ids ? s->ids : s->prompt;
  size_t size = strlen(given);
  char *input = strcmp(given, "-") == 0 ? read_input(&size) : 0;
  const char *text = input ? input : given;
  if (input && !s->ids && strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, size -= 3;  // a byte order mark is no text
  if (s->ids) {
    id_list ids = options_ids("--ids", text, size);
    r->prompt = ids.ids, r->prompt_count = ids.count;
  } else {
    encode(r, s, text, size);
  }
  if (r->prompt_count == 0) fail(1, "the prompt has no tokens", "");
  if (r->prompt_count > (size_t)r->info.context) fail(1, "the prompt is longer than the context", "");
  check(dsv3c_generation_new(r->model, r->prompt, r->prompt_count, &s->how, &r->generation));
  if (!s->ids && !s->chat && !s->json && !s->show_ids) fwrite(text, 1, size, stdout);
  free(input);
}

// ---- generating

static void show(const run *r, const settings *s, const dsv3c_event *event) {
  bool ids = s->show_ids || !r->info.has_tokenizer;
  if (s->json) return;
  if (ids && event->token >= 0) printf(r->made_count > 1 ? " %d" : "%d", event->token);
  if (!ids) fwrite(event->text, 1, event->size, stdout);
  flush_output(stdout);
}

static void dump(const run *r, const float *logits) {
  size_t count = (size_t)r->info.vocab_size;
  if (r->dump && logits && fwrite(logits, sizeof *logits, count, r->dump) != count) fail(1, "--logits", strerror(errno));
}

static void generate(run *r, const settings *s) {
  dsv3c_event event = {0};
  while (!event.finish) {
    check(dsv3c_generation_next(r->generation, &event));
    dump(r, event.logits);
    if (event.token >= 0) r->made[r->made_count++] = event.token;
    show(r, s, &event);
  }
  r->finish = event.finish;
  if (!s->json) putchar('\n');
}

// ---- the report

static double rate(size_t count, double seconds) { return seconds > 0 ? (double)count / seconds : 0; }

static void print_ids(const char *name, const int32_t *ids, size_t count) {
  printf("\"%s\": [", name);
  for (size_t i = 0; i < count; i++) printf(i ? ", %d" : "%d", ids[i]);
  printf("], ");
}

static void report_drafts(dsv3c_statistics made) {
  if (made.drafted)
    fprintf(stderr, ", %zu of %zu drafts came true, %.2f tokens a step", made.accepted, made.drafted,
            rate(made.decoded, (double)made.steps));
  else fprintf(stderr, ", no drafts: none were worth their time");
}

static void report(const run *r, const settings *s) {
  static const char *const REASONS[] = {[DSV3C_STOP] = "stop", [DSV3C_LENGTH] = "length", [DSV3C_TIME] = "time"};
  dsv3c_statistics made = dsv3c_generation_statistics(r->generation);
  double prompt = rate(made.prompt_tokens, made.prompt_seconds), decode = rate(made.decoded, made.decode_seconds);
  unsigned long long used = s->how.sampling.seed;
  flush_output(stdout);
  if (!s->json) {
    fprintf(stderr, "%zu tokens at %.1f tok/s, prompt of %zu at %.1f tok/s, seed %llu, %s on %d threads", made.tokens,
            decode, made.prompt_tokens, prompt, used, r->info.level, r->info.threads);
    if (s->how.speculation) report_drafts(made);
    putc('\n', stderr);
    return;
  }
  putchar('{');
  print_ids("token_ids", r->made, r->made_count);
  print_ids("prompt_ids", r->prompt, r->prompt_count);
  printf("\"finish_reason\": \"%s\", \"prompt_tokens_per_second\": %.1f, \"decode_tokens_per_second\": %.1f, "
         "\"steps\": %zu, \"drafted\": %zu, \"accepted\": %zu, \"seed\": %llu, \"level\": \"%s\", \"threads\": %d}\n",
         REASONS[r->finish], prompt, decode, made.steps, made.drafted, made.accepted, used, r->info.level,
         r->info.threads);
}

static void prepare(run *r, const settings *s) {
  check(dsv3c_open(s->artifact, &s->open, &r->model));
  r->info = dsv3c_info_of(r->model);
  r->made = memory(malloc((size_t)r->info.context * sizeof *r->made));
  if (s->logits && !(r->dump = fopen(s->logits, "wb"))) fail(1, s->logits, strerror(errno));
}

static void finish(run *r) {
  if (r->dump && fclose(r->dump) != 0) fail(1, "--logits", strerror(errno));
  flush_output(stdout);
  flush_output(stderr);
  dsv3c_generation_free(r->generation);
  dsv3c_close(r->model);
  free(r->prompt);
  free(r->made);
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);  // a call that fails says more than a signal
  signal(SIGXFSZ, SIG_IGN);
  take_closed_streams();
  settings s = options_parse(argc, argv);
  run r = {0};
  prepare(&r, &s);
  read_prompt(&r, &s);
  generate(&r, &s);
  report(&r, &s);
  finish(&r);
  options_free(&s);
  return 0;
}
