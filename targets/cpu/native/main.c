// dsv3c-run: text or token ids from the command line, without Python.

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef __APPLE__
#include <limits.h>
#include <mach-o/dyld.h>
#endif

#include "dsv3c.h"

static const char USAGE[] =
  "Usage: dsv3c-run [OPTIONS] [ARTIFACT]\n"
  "\n"
  "Generate from a compiled model. ARTIFACT is the folder that holds this program's folder, unless given.\n"
  "\n"
  "  -p, --prompt TEXT       text to go on with; - reads it from standard input\n"
  "      --no-bos            leave out the BOS, the token that begins a text, before the prompt\n"
  "      --ids \"1 2 3\"       token ids to go on with; - reads them from standard input\n"
  "  -n, --max-new-tokens N  stop after so many tokens (200)\n"
  "      --temperature X     0 takes the likeliest token; the default is the model's, as for all of these\n"
  "      --top-k N           draw from the N likeliest; 0 is off\n"
  "      --top-p X           draw from the likeliest that make up this share; 1 is off\n"
  "      --min-p X           draw from those with at least this share of the likeliest; 0 is off\n"
  "      --repetition-penalty X  1 is off\n"
  "      --seed N            the same seed gives the same tokens\n"
  "      --ignore-eos        go on behind the end of the answer\n"
  "  -j, --threads N         the default is one a physical core\n"
  "      --context N         tokens to have room for; the default is what the model can hold\n"
  "      --show-ids          print token ids, not text\n"
  "      --logits FILE       write the float32 logits of each token that was drawn\n"
  "      --json              print one JSON object with the ids and the speed, nothing else\n"
  "  -h, --help\n"
  "\n"
  "DSV3C_ISA in the environment names the kernel level to use. Exit codes: 0 done, 1 the input or the machine is at\n"
  "fault, 2 wrong usage.\n";

typedef struct {
  const char *artifact, *prompt, *ids, *logits;
  dsv3c_options open;
  double temperature, top_p, min_p, penalty;  // negative: the model's default
  long top_k, count;
  uint64_t seed;
  bool seeded, ignore_eos, show_ids, json, no_bos;
} settings;

typedef struct {
  dsv3c_model *model;
  dsv3c_info info;
  dsv3c_sequence *sequence;
  dsv3c_sampler *sampler;
  int32_t *prompt, *made;
  size_t prompt_count, made_count;
  float *logits;
  char *text;
  FILE *dump;
  double prompt_seconds, decode_seconds;
  size_t steps;  // after the first token
  const char *reason;
} run;

static void fail(int code, const char *what, const char *detail) {
  fprintf(stderr, "dsv3c-run: %s%s%s\n", what, *detail ? ": " : "", detail);
  exit(code);
}

// A pipe that nobody reads any more ends the program quietly.
static void output_lost(void) {
  if (errno == EPIPE) exit(1);
  fail(1, "cannot write the output", strerror(errno));
}

static void flush(FILE *stream) {
  // The error of an earlier write is kept by the stream, its errno is not.
  if (fflush(stream) != 0 || ferror(stream)) output_lost();
}

// The numbers of streams that the shell closed are taken, or the next file that is opened would get them. What is read
// from there, or written to stdout, then fails; a closed stderr is a wish for silence.
static void take_closed_streams(void) {
  static const int MODES[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int i = 0; i < 3; i++)
    if (fcntl(i, F_GETFD) == -1 && open("/dev/null", MODES[i]) == -1) exit(1);
}

static void check(dsv3c_status status) {
  if (status != DSV3C_OK) fail(1, dsv3c_error(), "");
}

static void *memory(void *pointer) {
  if (!pointer) fail(1, "out of memory", "");
  return pointer;
}

// ---- the command line

static double number(const char *option, const char *text, double low, double high) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= low && value <= high)) fail(2, option, "not a number in range");
  return value;
}

static long integer(const char *option, const char *text, long low, long high) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (end == text || *end || errno || value < low || value > high) fail(2, option, "not an integer in range");
  return value;
}

static uint64_t seed(const char *text) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (end == text || *end || errno || strchr(text, '-')) fail(2, "--seed", "not an integer from 0 to 2^64 - 1");
  return value;
}

enum {
  TEMPERATURE = 256, TOP_K, TOP_P, MIN_P, PENALTY, SEED, IGNORE_EOS, CONTEXT, IDS, SHOW_IDS, LOGITS, JSON, NO_BOS
};

static const struct option OPTIONS[] = {
  {"prompt", 1, 0, 'p'}, {"ids", 1, 0, IDS}, {"max-new-tokens", 1, 0, 'n'}, {"temperature", 1, 0, TEMPERATURE},
  {"top-k", 1, 0, TOP_K}, {"top-p", 1, 0, TOP_P}, {"min-p", 1, 0, MIN_P}, {"repetition-penalty", 1, 0, PENALTY},
  {"seed", 1, 0, SEED}, {"ignore-eos", 0, 0, IGNORE_EOS}, {"threads", 1, 0, 'j'}, {"context", 1, 0, CONTEXT},
  {"show-ids", 0, 0, SHOW_IDS}, {"logits", 1, 0, LOGITS}, {"json", 0, 0, JSON}, {"no-bos", 0, 0, NO_BOS},
  {"help", 0, 0, 'h'}, {0, 0, 0, 0},
};

static void set(settings *s, int option, const char *text) {
  switch (option) {
    case 'p': s->prompt = text; break;
    case IDS: s->ids = text; break;
    case 'n': s->count = integer("--max-new-tokens", text, 1, INT32_MAX); break;
    case TEMPERATURE: s->temperature = number("--temperature", text, 0, 1e300); break;
    case TOP_K: s->top_k = integer("--top-k", text, 0, INT32_MAX); break;
    case TOP_P: s->top_p = number("--top-p", text, 5e-324, 1); break;
    case MIN_P: s->min_p = number("--min-p", text, 0, 1); break;
    case PENALTY: s->penalty = number("--repetition-penalty", text, 5e-324, 1e300); break;
    case SEED: s->seed = seed(text), s->seeded = true; break;
    case IGNORE_EOS: s->ignore_eos = true; break;
    case 'j': s->open.threads = (int32_t)integer("--threads", text, 1, 256); break;
    case CONTEXT: s->open.context = (int32_t)integer("--context", text, 1, INT32_MAX); break;
    case SHOW_IDS: s->show_ids = true; break;
    case LOGITS: s->logits = text; break;
    case JSON: s->json = true; break;
    case NO_BOS: s->no_bos = true; break;
    case 'h': fputs(USAGE, stdout), flush(stdout); exit(0);
    default: fputs("try dsv3c-run --help\n", stderr); exit(2);
  }
}

#ifdef __APPLE__
static bool own_path(char *path, uint32_t size) {
  char found[4096];
  return _NSGetExecutablePath(found, &(uint32_t){sizeof found}) == 0 && size >= PATH_MAX && realpath(found, path);
}
#else
static bool own_path(char *path, size_t size) {
  ssize_t length = readlink("/proc/self/exe", path, size - 1);
  if (length > 0) path[length] = 0;
  return length > 0;
}
#endif

// The folder above this program's.
static char *own_artifact(void) {
  static char path[4096];
  if (!own_path(path, sizeof path)) return 0;
  for (int up = 0; up < 2; up++) {
    char *slash = strrchr(path, '/');
    if (!slash) return 0;
    *slash = 0;
  }
  return path;
}

static settings parse(int argc, char **argv) {
  settings s = {.temperature = -1, .top_p = -1, .min_p = -1, .penalty = -1, .top_k = -1, .count = 200};
  for (int option; (option = getopt_long(argc, argv, "p:n:j:h", OPTIONS, 0)) != -1;) set(&s, option, optarg);
  if (argc - optind > 1) fail(2, "more than one artifact", argv[optind + 1]);
  s.artifact = optind < argc ? argv[optind] : own_artifact();
  if (!s.artifact) fail(2, "no artifact given", "");
  if (!s.prompt == !s.ids) fail(2, "give either --prompt or --ids", "");
  if (!s.seeded) s.seed = ((uint64_t)time(0) * 1000003 + (uint64_t)getpid()) & 0xffffffff;  // short enough to type
  return s;
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

static void read_ids(run *r, const char *text, size_t size) {
  if (strlen(text) != size) fail(2, "--ids", "not a list of token ids");
  r->prompt = memory(malloc((size / 2 + 1) * sizeof *r->prompt));
  for (const char *at = text + strspn(text, " ,\t\r\n"); *at; at += strspn(at, " ,\t\r\n")) {
    char *end;
    errno = 0;
    long id = strtol(at, &end, 10);
    if (end == at || errno || id < 0 || id > INT32_MAX) fail(2, "--ids", "not a list of token ids");
    r->prompt[r->prompt_count++] = (int32_t)id;
    at = end;
  }
}

static void read_prompt(run *r, const settings *s) {
  const char *given = s->ids ? s->ids : s->prompt;
  size_t size = strlen(given);
  char *input = strcmp(given, "-") == 0 ? read_input(&size) : 0;
  const char *text = input ? input : given;
  if (input && !s->ids && strncmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, size -= 3;  // a byte order mark is no text
  dsv3c_special around = s->no_bos ? DSV3C_NO_BOS : DSV3C_SPECIAL;
  if (s->ids) read_ids(r, text, size);
  else check(dsv3c_encode(r->model, text, size, around, &r->prompt, &r->prompt_count));
  if (r->prompt_count == 0) fail(1, "the prompt has no tokens", "");
  if (r->prompt_count > (size_t)r->info.context) fail(1, "the prompt is longer than the context", "");
  if (!s->ids && !s->json && !s->show_ids) fwrite(text, 1, size, stdout);
  free(input);
}

// ---- generating

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool is_end(const run *r, const settings *s, int32_t token) {
  for (size_t i = 0; i < r->info.end_token_count && !s->ignore_eos; i++)
    if (r->info.end_tokens[i] == token) return true;
  return false;
}

static void show(run *r, const settings *s, dsv3c_text *text, int32_t token) {
  size_t size = 0;
  if (s->json) return;
  if (s->show_ids || !r->info.has_tokenizer) {
    printf(r->made_count > 1 ? " %d" : "%d", token);
  } else {
    check(dsv3c_text_push(r->model, text, token, r->text, dsv3c_text_bytes(r->model), &size));
    fwrite(r->text, 1, size, stdout);
  }
  flush(stdout);
}

static void dump(const run *r) {
  size_t count = (size_t)r->info.vocab_size;
  if (r->dump && fwrite(r->logits, sizeof *r->logits, count, r->dump) != count)
    fail(1, "--logits", strerror(errno));
}

static void generate(run *r, const settings *s) {
  dsv3c_text text = {0};
  long room = r->info.context - (long)r->prompt_count, limit = s->count < room ? s->count : room;
  const int32_t *feed = r->prompt;
  size_t feed_count = r->prompt_count;
  int32_t token;
  r->reason = "length";
  for (long i = 0; i < limit; i++) {
    double begin = now();
    dsv3c_request request = {r->sequence, feed, feed_count, DSV3C_LAST, r->logits};
    check(dsv3c_run(r->model, &request, 1));
    check(dsv3c_sampler_observe(r->sampler, feed, feed_count));
    check(dsv3c_sample(r->sampler, r->logits, &token));
    *(i ? &r->decode_seconds : &r->prompt_seconds) += now() - begin;
    r->steps = (size_t)i;
    dump(r);
    if (is_end(r, s, token)) {
      r->reason = "stop";
      break;
    }
    r->made[r->made_count++] = token;
    show(r, s, &text, token);
    feed = &r->made[r->made_count - 1];
    feed_count = 1;
  }
  char rest[3];
  if (s->json) return;
  fwrite(rest, 1, dsv3c_text_flush(&text, rest), stdout);
  putchar('\n');
}

static double rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

static void print_ids(const char *name, const int32_t *ids, size_t count) {
  printf("\"%s\": [", name);
  for (size_t i = 0; i < count; i++) printf(i ? ", %d" : "%d", ids[i]);
  printf("], ");
}

static void report(const run *r, const settings *s) {
  double prompt = rate((double)r->prompt_count, r->prompt_seconds), decode = rate((double)r->steps, r->decode_seconds);
  unsigned long long used = s->seed;
  flush(stdout);
  if (!s->json) {
    fprintf(stderr, "%zu tokens at %.1f tok/s, prompt of %zu at %.1f tok/s, seed %llu, %s on %d threads\n",
            r->made_count, decode, r->prompt_count, prompt, used, r->info.level, r->info.threads);
    return;
  }
  putchar('{');
  print_ids("token_ids", r->made, r->made_count);
  print_ids("prompt_ids", r->prompt, r->prompt_count);
  printf("\"finish_reason\": \"%s\", \"prompt_tokens_per_second\": %.1f, \"decode_tokens_per_second\": %.1f, "
         "\"seed\": %llu, \"level\": \"%s\", \"threads\": %d}\n",
         r->reason, prompt, decode, used, r->info.level, r->info.threads);
}

static void prepare(run *r, const settings *s) {
  check(dsv3c_open(s->artifact, &s->open, &r->model));
  r->info = dsv3c_info_of(r->model);
  dsv3c_sampling how = dsv3c_sampling_defaults(r->model);
  how.seed = s->seed;
  if (s->temperature >= 0) how.temperature = s->temperature;
  if (s->top_k >= 0) how.top_k = (int32_t)s->top_k;
  if (s->top_p >= 0) how.top_p = s->top_p;
  if (s->min_p >= 0) how.min_p = s->min_p;
  if (s->penalty >= 0) how.repetition_penalty = s->penalty;
  check(dsv3c_sampler_new(r->model, &how, &r->sampler));
  check(dsv3c_sequence_new(r->model, &r->sequence));
  r->logits = memory(malloc((size_t)r->info.vocab_size * sizeof *r->logits));
  r->made = memory(malloc((size_t)r->info.context * sizeof *r->made));
  r->text = memory(malloc(dsv3c_text_bytes(r->model) + 1));
  if (s->logits && !(r->dump = fopen(s->logits, "wb"))) fail(1, s->logits, strerror(errno));
}

static void finish(run *r) {
  if (r->dump && fclose(r->dump) != 0) fail(1, "--logits", strerror(errno));
  flush(stdout);
  flush(stderr);
  dsv3c_sampler_free(r->sampler);
  dsv3c_sequence_free(r->sequence);
  dsv3c_close(r->model);
  free(r->prompt);
  free(r->made);
  free(r->logits);
  free(r->text);
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);  // a call that fails says more than a signal
  signal(SIGXFSZ, SIG_IGN);
  take_closed_streams();
  settings s = parse(argc, argv);
  run r = {0};
  prepare(&r, &s);
  read_prompt(&r, &s);
  generate(&r, &s);
  report(&r, &s);
  finish(&r);
  return 0;
}
