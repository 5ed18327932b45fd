// What dsv3c-run is told, and how it ends.

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef __APPLE__
#include <limits.h>
#include <mach-o/dyld.h>
#endif

#include "options.h"

static const char USAGE[] =
  "Usage: dsv3c-run [OPTIONS] [ARTIFACT]\n"
  "\n"
  "Generate from a compiled model. ARTIFACT is the folder that holds this program's folder, unless given.\n"
  "\n"
  "  -p, --prompt TEXT       text to go on with; - reads it from standard input\n"
  "      --no-bos            leave out the BOS, the token that begins a text, before the prompt\n"
  "      --ids \"1 2 3\"       token ids to go on with; - reads them from standard input\n"
  "      --chat              put the prompt as a user's message, by the model's chat template\n"
  "      --system TEXT       what the chat begins with\n"
  "\n"
  "  -n, --max-new-tokens N  stop after so many tokens (200)\n"
  "      --max-length N      the same, prompt included\n"
  "      --max-time S        stop after so many seconds\n"
  "      --stop TEXT         end before this text; can be given several times\n"
  "      --eos-token-id IDS  tokens that end the answer\n"
  "      --ignore-eos        go on behind the end of the answer\n"
  "      --min-new-tokens N, --min-length N  no end before the answer, or the text, has so many\n"
  "\n"
  "  What of these is not given is the model's default.\n"
  "      --temperature X     0 takes the likeliest token\n"
  "      --top-k N           draw from the N likeliest; 0 is off\n"
  "      --top-p X           draw from the likeliest that make up this share; 1 is off\n"
  "      --min-p X           draw from those with at least this share of the likeliest; 0 is off\n"
  "      --typical-p X       draw from the most typical that make up this share; 1 is off\n"
  "      --repetition-penalty X  of tokens that the text has; 1 is off\n"
  "      --frequency-penalty X, --presence-penalty X  of tokens that the answer has, each time or once; 0 is off\n"
  "      --no-repeat-ngram-size N  so many tokens in a row do not come again; 0 is off\n"
  "      --suppress-tokens IDS   tokens that do not come up\n"
  "      --bad-words-ids IDS     a run of tokens that does not come up; can be given several times\n"
  "      --logit-bias ID=X       what the logit of a token gains; can be given several times\n"
  "      --seed N            the same seed gives the same tokens\n"
  "      --speculate KIND    mtp, ngram or off: drafts, as long as they are faster; the tokens are the same\n"
  "\n"
  "  -j, --threads N         the default is one a performance core\n"
  "      --numa auto|off     on machines with several memory nodes: divide threads and weights among them, or not (auto)\n"
  "      --context N         tokens to have room for; the default is what the model can hold\n"
  "      --show-ids          print token ids, not text\n"
  "      --logits FILE       write the float32 logits of each token that was drawn\n"
  "      --json              print one JSON object with the ids and the speed, nothing else\n"
  "  -h, --help\n"
  "\n"
  "DSV3C_ISA in the environment names the kernel level to use. Exit codes: 0 done, 1 the input or the machine is at\n"
  "fault, 2 wrong usage.\n";

// ---- the end of the program

void fail(int code, const char *what, const char *detail) {
  fprintf(stderr, "dsv3c-run: %s%s%s\n", what, *detail ? ": " : "", detail);
  exit(code);
}

// A pipe that nobody reads any more ends the program quietly.
static void output_lost(void) {
  if (errno == EPIPE) exit(1);
  fail(1, "cannot write the output", strerror(errno));
}

void flush_output(FILE *stream) {
  // The error of an earlier write is kept by the stream, its errno is not.
  if (fflush(stream) != 0 || ferror(stream)) output_lost();
}

void *memory(void *pointer) {
  if (!pointer) fail(1, "out of memory", "");
  return pointer;
}

// ---- values

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

static const char BETWEEN[] = " ,\t\r\n";  // of ids

id_list options_ids(const char *what, const char *text, size_t size) {
  id_list list = {memory(malloc((size / 2 + 1) * sizeof *list.ids)), 0};
  if (strlen(text) != size) fail(2, what, "not a list of token ids");
  for (const char *at = text + strspn(text, BETWEEN); *at; at += strspn(at, BETWEEN)) {
    char *end;
    errno = 0;
    long id = strtol(at, &end, 10);
    if (*at < '0' || *at > '9' || !strchr(BETWEEN, *end) || errno || id > INT32_MAX)
      fail(2, what, "not a list of token ids");
    list.ids[list.count++] = (int32_t)id;
    at = end;
  }
  return list;
}

static dsv3c_ids ids_of(const char *what, const char *text, id_list *kept) {
  free(kept->ids);
  *kept = options_ids(what, text, strlen(text));
  if (kept->count == 0) fail(2, what, "not a list of token ids");
  return (dsv3c_ids){kept->ids, kept->count};
}

static void add_word(settings *s, const char *text) {
  id_list word = {0};
  dsv3c_ids ids = ids_of("--bad-words-ids", text, &word);
  size_t count = s->words ? s->how.sampling.bad_words_count : 0;
  s->words = memory(realloc(s->words, (count + 1) * sizeof *s->words));
  s->words[count] = ids;
  s->how.sampling.bad_words_ids = s->words;
  s->how.sampling.bad_words_count = count + 1;
}

static void add_bias(settings *s, const char *text) {
  const char *equals = strchr(text, '=');
  char id[16] = "";
  if (!equals || (size_t)(equals - text) >= sizeof id) fail(2, "--logit-bias", "not ID=X");
  memcpy(id, text, (size_t)(equals - text));
  dsv3c_bias bias = {(int32_t)integer("--logit-bias", id, 0, INT32_MAX), 0};
  bias.bias = strcmp(equals + 1, "-inf") == 0 ? -INFINITY : number("--logit-bias", equals + 1, -1e300, 1e300);
  size_t count = s->biases ? s->how.sampling.logit_bias_count : 0;
  for (size_t i = 0; i < count; i++)
    if (s->biases[i].token == bias.token) fail(2, "--logit-bias", "given twice for a token");
  s->biases = memory(realloc(s->biases, (count + 1) * sizeof *s->biases));
  s->biases[count] = bias;
  s->how.sampling.logit_bias = s->biases;
  s->how.sampling.logit_bias_count = count + 1;
}

static void add_stop(settings *s, const char *text) {
  if (!*text) fail(2, "--stop", "an empty text stands everywhere");
  size_t count = s->stops ? s->how.stop_count : 0;
  s->stops = memory(realloc(s->stops, (count + 1) * sizeof *s->stops));
  s->stops[count] = (dsv3c_string){text, strlen(text)};
  s->how.stop = s->stops;
  s->how.stop_count = count + 1;
}

static dsv3c_speculation speculation(const char *text) {
  static const char *const KINDS[] = {[DSV3C_PLAIN_STEPS] = "off", [DSV3C_NGRAM] = "ngram", [DSV3C_MTP] = "mtp"};
  for (int i = 0; i < 3; i++)
    if (strcmp(text, KINDS[i]) == 0) return (dsv3c_speculation)i;
  fail(2, "--speculate", "not mtp, ngram or off");
  return DSV3C_PLAIN_STEPS;
}

static dsv3c_numa numa(const char *text) {
  if (strcmp(text, "auto") != 0 && strcmp(text, "off") != 0) fail(2, "--numa", "not auto or off");
  return strcmp(text, "off") == 0 ? DSV3C_NUMA_OFF : DSV3C_NUMA_AUTO;
}

// ---- options

enum {
  TEMPERATURE = 256, TOP_K, TOP_P, MIN_P, TYPICAL_P, REPETITION, FREQUENCY, PRESENCE, NGRAMS, SUPPRESS, BAD_WORDS, BIAS,
  SEED, SPECULATE, MAX_LENGTH, MAX_TIME, STOP, EOS, IGNORE_EOS, MIN_NEW, MIN_LENGTH, CHAT, SYSTEM, CONTEXT, IDS, SHOW_IDS,
  LOGITS, JSON, NO_BOS, NUMA
};

static const struct option OPTIONS[] = {
  {"prompt", 1, 0, 'p'}, {"ids", 1, 0, IDS}, {"no-bos", 0, 0, NO_BOS}, {"chat", 0, 0, CHAT}, {"system", 1, 0, SYSTEM},
  {"max-new-tokens", 1, 0, 'n'}, {"max-length", 1, 0, MAX_LENGTH}, {"max-time", 1, 0, MAX_TIME}, {"stop", 1, 0, STOP},
  {"eos-token-id", 1, 0, EOS}, {"ignore-eos", 0, 0, IGNORE_EOS}, {"min-new-tokens", 1, 0, MIN_NEW},
  {"min-length", 1, 0, MIN_LENGTH}, {"temperature", 1, 0, TEMPERATURE}, {"top-k", 1, 0, TOP_K}, {"top-p", 1, 0, TOP_P},
  {"min-p", 1, 0, MIN_P}, {"typical-p", 1, 0, TYPICAL_P}, {"repetition-penalty", 1, 0, REPETITION},
  {"frequency-penalty", 1, 0, FREQUENCY}, {"presence-penalty", 1, 0, PRESENCE}, {"no-repeat-ngram-size", 1, 0, NGRAMS},
  {"suppress-tokens", 1, 0, SUPPRESS}, {"bad-words-ids", 1, 0, BAD_WORDS}, {"logit-bias", 1, 0, BIAS},
  {"seed", 1, 0, SEED}, {"speculate", 1, 0, SPECULATE}, {"threads", 1, 0, 'j'}, {"context", 1, 0, CONTEXT},
  {"numa", 1, 0, NUMA},
  {"show-ids", 0, 0, SHOW_IDS}, {"logits", 1, 0, LOGITS}, {"json", 0, 0, JSON}, {"help", 0, 0, 'h'}, {0, 0, 0, 0},
};

static int32_t count(const char *option, const char *text, long low) {
  return (int32_t)integer(option, text, low, INT32_MAX);
}

// The options that say how a token is drawn. Returns whether it is one of them.
static bool set_sampling(settings *s, int option, const char *text) {
  dsv3c_sampling *how = &s->how.sampling;
  switch (option) {
    case TEMPERATURE: how->temperature = number("--temperature", text, 0, 1e300); return true;
    case TOP_K: how->top_k = count("--top-k", text, 0); return true;
    case TOP_P: how->top_p = number("--top-p", text, 5e-324, 1); return true;
    case MIN_P: how->min_p = number("--min-p", text, 0, 1); return true;
    case TYPICAL_P: how->typical_p = number("--typical-p", text, 5e-324, 1); return true;
    case REPETITION: how->repetition_penalty = number("--repetition-penalty", text, 5e-324, 1e300); return true;
    case FREQUENCY: how->frequency_penalty = number("--frequency-penalty", text, -1e300, 1e300); return true;
    case PRESENCE: how->presence_penalty = number("--presence-penalty", text, -1e300, 1e300); return true;
    case NGRAMS: how->no_repeat_ngram_size = count("--no-repeat-ngram-size", text, 0); return true;
    case SUPPRESS: how->suppress_tokens = ids_of("--suppress-tokens", text, &s->suppressed); return true;
    case BAD_WORDS: add_word(s, text); return true;
    case BIAS: add_bias(s, text); return true;
    case EOS: how->eos_token_id = ids_of("--eos-token-id", text, &s->ends); return true;
    case IGNORE_EOS: how->ignore_eos = true; return true;
    case MIN_NEW: how->min_new_tokens = count("--min-new-tokens", text, 0), s->min_new = true; return true;
    case MIN_LENGTH: how->min_length = count("--min-length", text, 0), s->min_length = true; return true;
    case SEED: how->seed = seed(text), s->seeded = true; return true;
    default: return false;
  }
}

static void set(settings *s, int option, const char *text) {
  if (set_sampling(s, option, text)) return;
  switch (option) {
    case 'p': s->prompt = text; break;
    case IDS: s->ids = text; break;
    case NO_BOS: s->no_bos = true; break;
    case CHAT: s->chat = true; break;
    case SYSTEM: s->system = text; break;
    case 'n': s->how.max_new_tokens = count("--max-new-tokens", text, 1), s->max_new = true; break;
    case MAX_LENGTH: s->how.max_length = count("--max-length", text, 1), s->max_length = true; break;
    case MAX_TIME: s->how.max_time = number("--max-time", text, 5e-324, 1e300); break;
    case STOP: add_stop(s, text); break;
    case SPECULATE: s->how.speculation = speculation(text); break;
    case 'j': s->open.threads = (int32_t)integer("--threads", text, 1, 256); break;
    case NUMA: s->open.numa = numa(text); break;
    case CONTEXT: s->open.context = count("--context", text, 1); break;
    case SHOW_IDS: s->show_ids = true; break;
    case LOGITS: s->logits = text; break;
    case JSON: s->json = true; break;
    case 'h': fputs(USAGE, stdout), flush_output(stdout); exit(0);
    default: fputs("try dsv3c-run --help\n", stderr); exit(2);
  }
}

// Where a default goes against what was given, it gives way.
static void settle(settings *s) {
  dsv3c_sampling *how = &s->how.sampling;
  if (!s->max_new) s->how.max_new_tokens = s->max_length ? 0 : 200;
  if (!s->min_new && s->how.max_new_tokens && how->min_new_tokens > s->how.max_new_tokens) how->min_new_tokens = 0;
  if (!s->min_new && !s->how.max_new_tokens && how->min_new_tokens >= s->how.max_length) how->min_new_tokens = 0;
  if (!s->min_length && s->how.max_length && how->min_length > s->how.max_length) how->min_length = 0;
  if (!s->max_new && !s->max_length && how->min_new_tokens > s->how.max_new_tokens)
    s->how.max_new_tokens = how->min_new_tokens;
}

static void check_prompt(const settings *s) {
  if (!s->prompt == !s->ids) fail(2, "give either --prompt or --ids", "");
  if (s->chat && s->ids) fail(2, "--chat needs a text, not --ids", "");
  if (s->system && !s->chat) fail(2, "--system is for --chat", "");
  if (s->no_bos && (s->chat || s->ids))
    fail(2, "--no-bos is for plain prompts: a chat's template, and --ids, say what begins a text", "");
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

settings options_parse(int argc, char **argv) {
  settings s = {.how = dsv3c_parameters_defaults(0)};
  for (int option; (option = getopt_long(argc, argv, "p:n:j:h", OPTIONS, 0)) != -1;) set(&s, option, optarg);
  if (argc - optind > 1) fail(2, "more than one artifact", argv[optind + 1]);
  s.artifact = optind < argc ? argv[optind] : own_artifact();
  if (!s.artifact) fail(2, "no artifact given", "");
  check_prompt(&s);
  settle(&s);
  if (!s.seeded) s.how.sampling.seed = ((uint64_t)time(0) * 1000003 + (uint64_t)getpid()) & 0xffffffff;  // easily typed
  return s;
}

void options_free(settings *s) {
  for (size_t i = 0; s->words && i < s->how.sampling.bad_words_count; i++) free((void *)s->words[i].ids);
  free(s->suppressed.ids);
  free(s->ends.ids);
  free(s->words);
  free(s->biases);
  free(s->stops);
}
