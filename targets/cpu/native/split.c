// The regular expressions of a pre-tokeniser, compiled to steps (regex.py) and run with backtracking.
//
// Steps only go forward, so a match tries each of them once a path, and as many alternatives wait as there are steps.

#include "tokenizer.h"

enum { STEPS_LIMIT = 256 };

typedef const unsigned char *place;

// Go on with `step` at `at`; after that, if low < at, one character earlier, and so on down to `low`.
typedef struct {
  uint32_t step;
  place at, low;
} alternative;

static uint32_t character(place at, place *next) {
  uint32_t c = *at++;
  int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
  if (more) c &= 0x3fu >> more;
  while (more-- > 0) c = c << 6 | (*at++ & 0x3fu);
  *next = at;
  return c;
}

static bool in_class(const tokenizer *t, uint32_t number, uint32_t c) {
  const split_class *set = &t->classes[number];
  if (c < 128) return set->ascii[c / 32] >> c % 32 & 1;
  uint32_t low = set->first, high = set->first + set->count;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    if (c > t->ranges[middle].last) low = middle + 1;
    else if (c < t->ranges[middle].first) high = middle;
    else return true;
  }
  return false;
}

static bool follows(const tokenizer *t, uint32_t number, place at, place end) {
  place next;
  return at < end && in_class(t, number, character(at, &next));
}

static place previous(place at) {
  do at--;
  while ((*at & 0xc0) == 0x80);
  return at;
}

// Take up to `most` characters; *low is the place behind the first `least`. NULL: there are fewer than those.
static place run(const tokenizer *t, const split_step *step, place at, place end, place *low) {
  uint32_t taken = 0;
  for (place next; taken < step->c && at < end && in_class(t, step->a, character(at, &next)); taken++, at = next)
    if (taken == step->b) *low = at;
  if (taken == step->b) *low = at;
  return taken < step->b ? 0 : at;
}

// End of the match at `at`, NULL for none.
static place match_at(const tokenizer *t, tokenizer_span stage, place at, place end) {
  const split_step *steps = t->program + stage.first;
  alternative waiting[STEPS_LIMIT];
  uint32_t count = 0, step = 0;
  while (steps[step].op != STEP_MATCH) {
    const split_step *s = &steps[step];
    place low = at, here = at;
    uint32_t next = step + 1;
    switch (s->op) {
      case STEP_RUN:
        at = run(t, s, at, end, &low);
        if (at && at > low) waiting[count++] = (alternative){next, previous(at), low};
        break;
      case STEP_ATOMIC: at = run(t, s, at, end, &low); break;
      case STEP_SPLIT: waiting[count++] = (alternative){s->b, at, at}; next = s->a; break;
      case STEP_JUMP: next = s->a; break;
      case STEP_AHEAD: at = follows(t, s->a, at, end) ? here : 0; break;
      case STEP_NOT_AHEAD: at = follows(t, s->a, at, end) ? 0 : here; break;
      default: at = at == end || *at == '\n' ? here : 0; break;  // STEP_LINE_END
    }
    step = next;
    if (at) continue;
    if (count == 0) return 0;
    alternative *last = &waiting[count - 1];
    step = last->step;
    at = last->at;
    if (last->at > last->low) last->at = previous(last->at);
    else count--;
  }
  return at;
}

bool split_find(const tokenizer *t, tokenizer_span stage, place from, place end, place *match, place *match_end) {
  for (place next; from < end; from = next) {
    place found = match_at(t, stage, from, end);
    *match = from;
    *match_end = found;
    if (found > from) return true;
    character(from, &next);
  }
  return false;
}

static bool step_valid(const tokenizer *t, const split_step *s, uint32_t number, uint32_t count) {
  bool forward_a = s->a > number && s->a < count, forward_b = s->b > number && s->b < count;
  switch (s->op) {
    case STEP_RUN:
    case STEP_ATOMIC: return s->a < t->count[CLASSES] && s->b <= s->c && number + 1 < count;
    case STEP_AHEAD:
    case STEP_NOT_AHEAD: return s->a < t->count[CLASSES] && number + 1 < count;
    case STEP_SPLIT: return forward_a && forward_b;
    case STEP_JUMP: return forward_a;
    case STEP_LINE_END: return number + 1 < count;
    default: return s->op == STEP_MATCH;
  }
}

bool split_valid(const tokenizer *t, tokenizer_span stage) {
  uint32_t all = t->count[PROGRAM];
  if (stage.count == 0 || stage.count > STEPS_LIMIT) return false;
  if (stage.first > all || stage.count > all - stage.first) return false;
  for (uint32_t i = 0; i < stage.count; i++)
    if (!step_valid(t, &t->program[stage.first + i], i, stage.count)) return false;
  return true;
}
