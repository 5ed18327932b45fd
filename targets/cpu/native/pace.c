// How many drafts are worth their time. A step over the tokens of several drafts takes longer than a plain one, of a
// mixture of experts much longer: each token has experts of its own. So the gain is reckoned from what steps did take
// and how many drafts came true, and drafts are left off where there is none.

#include <math.h>

#include "generate.h"

enum { PLAIN_FIRST = 3, PRIOR_TESTS = 4 };

// Before anything is measured.
static const double TRUTH[SOURCES] = {0.7, 0.3, 0.5, 0.8};
static const double FURTHER_ROW = 0.35, FURTHER_DRAFT = 0.15;  // of a plain step
static const double SLOWER = 0.05, FASTER = 0.7;  // weights of a new value in a running mean: noise only adds to a time
static const double LEAST_NEWS = 0.05;            // the same of a draft that came true or not
static const double WORTH = 1.04;                 // what drafts have to gain
static const double TRIALS = 0.01;                // of all time
static const double CHEAPEST = 0.2, DEAREST = 2.5;  // what a trial is reckoned to lose, in plain steps: it may be wrong
static const double HOPELESS = 0.25;              // drafts that come true as seldom are not tried for their time

void pace_begin(pace *p) {
  *p = (pace){0};
  for (int i = 0; i < SOURCES; i++) p->truth[i] = TRUTH[i];
}

// An outlier, such as a step during which another program ran, counts twice the mean at most.
static void learn_time(double *mean, double seconds) {
  if (*mean == 0) *mean = seconds;
  *mean += (seconds < *mean ? FASTER : SLOWER) * (fmin(seconds, 2 * *mean) - *mean);
}

void pace_took(pace *p, int32_t rows, double seconds) {
  p->plain += rows == 1;
  p->budget += TRIALS * seconds;
  learn_time(&p->step[rows], seconds);
}

void pace_took_drafts(pace *p, int32_t count, double seconds) { learn_time(&p->draft[count], seconds); }

void pace_caught_up(pace *p, int32_t rows, double seconds) { learn_time(&p->row, seconds / rows); }

void pace_learn(pace *p, int source, bool came_true) {
  double news = fmax(LEAST_NEWS, 1.0 / (++p->tested[source] + PRIOR_TESTS));
  p->truth[source] += news * (came_true - p->truth[source]);
}

// Seconds of a step of so many rows, by those nearest to it that were measured.
static double step_seconds(const pace *p, int32_t rows) {
  int32_t low = rows, high = rows;
  while (p->step[low] == 0) low--;
  while (high < MOST_DRAFTS + 1 && p->step[high] == 0) high++;
  if (low == rows) return p->step[rows];
  double slope = FURTHER_ROW * p->step[1];
  if (p->step[high] > 0) slope = (p->step[high] - p->step[low]) / (high - low);
  else if (low > 1) slope = fmax((p->step[low] - p->step[1]) / (low - 1), 0);
  return p->step[low] + slope * (rows - low);
}

static double draft_seconds(const pace *p, int32_t count) {
  int32_t known = count;
  while (known > 0 && p->draft[known] == 0) known--;
  return known > 0 ? p->draft[known] * count / known : FURTHER_DRAFT * p->step[1] * count;
}

static double step_tokens(const pace *p, int source, int32_t drafts) {
  double tokens = 1, likely = 1;
  for (int32_t i = 0; i < drafts; i++) tokens += likely *= p->truth[source];
  return tokens;
}

static double all_seconds(const pace *p, int source, int32_t drafts) {
  return step_seconds(p, drafts + 1) + (source == FROM_MTP && drafts ? draft_seconds(p, drafts) : 0);
}

static double rate(const pace *p, int source, int32_t drafts) {
  return step_tokens(p, source, drafts) / all_seconds(p, source, drafts);
}

static int32_t best(const pace *p, int source, int32_t most) {
  int32_t found = 1;
  for (int32_t i = 2; i <= most; i++)
    if (rate(p, source, i) > rate(p, source, found)) found = i;
  return found;
}

// Nothing is learned of the way that is not taken, so it is tried now and then, as the budget allows. Whether drafts out
// of the text come true is seen without trying them.
static bool is_tried(pace *p, int source, int32_t drafts, bool drafting, int32_t rows) {
  double tokens = step_tokens(p, source, drafts), seconds = all_seconds(p, source, drafts);
  double loss = drafting ? p->step[1] - seconds / tokens : seconds - tokens * p->step[1];
  bool from_text = source != FROM_MTP, hopeless = from_text && p->truth[source] < HOPELESS;
  if (!drafting && !from_text) loss += rows * (p->row > 0 ? p->row : FURTHER_DRAFT * p->step[1]);
  loss = fmin(fmax(loss, CHEAPEST * p->step[1]), DEAREST * p->step[1]);
  if (p->budget < loss || (!drafting && hopeless)) return false;
  p->budget -= loss;
  return true;
}

int32_t pace_choose(pace *p, int source, int32_t most, int32_t rows) {
  if (most < 1 || p->plain < PLAIN_FIRST) return 0;
  int32_t drafts = best(p, source, most);
  bool drafting = rate(p, source, drafts) > WORTH * rate(p, source, 0);
  if (is_tried(p, source, drafts, drafting, rows)) drafting = !drafting;
  return drafting ? drafts : 0;
}
