// What the files that generate share: generation.c, ngram.c, mtp.c, pace.c, stop.c.
#ifndef DSV3C_GENERATE_H
#define DSV3C_GENERATE_H

#include "sampler.h"
#include "sequence.h"

enum { MOST_DRAFTS = 7, LONGEST_MATCH = 3 };

// ---- ngram.c

// What followed the latest of the longest runs, up to LONGEST_MATCH, that the text ends with and had before: `most`
// drafts. Returns the length of the run, 0 where there is none.
int32_t ngram_propose(const int32_t *tokens, size_t count, int32_t most, int32_t *drafts);

// ---- mtp.c

// The model's layer for multi-token prediction beside a sequence. It reads the state of each position with the token
// after it, in a text of its own that begins with a page of the sequence: it drafts as well by the last tokens alone, so
// that nothing is computed for a prompt, or while no drafts are made. Its cache has the rows that the pages have for it.
typedef struct {
  const dsv3c_sequence *sequence;
  const int32_t *tokens;  // of the text: one more than the sequence has
  float *states;          // of the last positions that are not read yet, up to two pages
  int32_t begin, filled, waiting;  // where its text begins; positions that were read, and that have a state
  int32_t rows;           // of the last step
} mtp_layer;

dsv3c_status mtp_new(mtp_layer *layer, const dsv3c_sequence *sequence, const int32_t *tokens);
void mtp_free(mtp_layer *layer);
// Take up states of the sequence's next positions, each of whose tokens is settled. A step_watcher's `see`.
dsv3c_status mtp_see(void *layer, int32_t first, int32_t count, const float *hidden);
// Read all states that wait but the last few, which a step on the way reads as well. *rows: how many these are.
dsv3c_status mtp_catch_up(mtp_layer *layer, int32_t *rows);
// `count` drafts of the tokens behind the last one. The pages for them are reserved. -1 stands for one that could not be
// made.
dsv3c_status mtp_propose(mtp_layer *layer, dsv3c_sampler *sampler, int32_t count, int32_t *drafts);

// ---- pace.c: how many drafts are worth their time

enum { FROM_MTP = 0, SOURCES = LONGEST_MATCH + 1 };  // of drafts: the MTP layer, runs of 1, 2, 3 tokens

typedef struct {
  double step[MOST_DRAFTS + 2];   // seconds of a step of so many rows; 0: not measured
  double draft[MOST_DRAFTS + 1];  // seconds that the MTP layer took for so many drafts; 0: not measured
  double row;                     // seconds that it takes to catch up with one
  double truth[SOURCES];          // how often a draft comes true when those before it did
  uint32_t tested[SOURCES], plain;  // drafts of each source; plain steps
  double budget;                  // seconds that trials may cost
} pace;

void pace_begin(pace *p);
// The number of drafts for the next step, at most `most`; 0 is a plain step. rows: that the MTP layer has to catch up
// with.
int32_t pace_choose(pace *p, int source, int32_t most, int32_t rows);
void pace_took(pace *p, int32_t rows, double seconds);
void pace_took_drafts(pace *p, int32_t count, double seconds);
void pace_caught_up(pace *p, int32_t rows, double seconds);
void pace_learn(pace *p, int source, bool came_true);

// ---- stop.c

// Ends a text before the first stop string; holds back what may be the beginning of one.
typedef struct {
  dsv3c_string *stops;
  size_t count, held, capacity;
  char *text;  // what is held back, and room for a push
  bool stopped;
} stop_filter;

dsv3c_status stop_new(stop_filter *filter, const dsv3c_string *stops, size_t count, size_t push_bytes);
void stop_free(stop_filter *filter);
// Text that is certainly no part of a stop string goes to `out`, which has room for all there can be: stop_bytes.
size_t stop_push(stop_filter *filter, const char *text, size_t size, char *out);
size_t stop_flush(stop_filter *filter, char *out);
size_t stop_bytes(const stop_filter *filter);

#endif
