// Run a compiled model from C: this header and one shared library, which needs the C library alone.
//
//   dsv3c_model *model;
//   if (dsv3c_open("artifact", NULL, &model) != DSV3C_OK) return puts(dsv3c_error());
//   dsv3c_sequence *text;
//   dsv3c_sequence_new(model, &text);
//   dsv3c_request request = {text, tokens, count, DSV3C_LAST, logits};  // logits: vocab_size floats
//   dsv3c_run(model, &request, 1);
//
// Every call that can fail returns a status; dsv3c_error() then says what happened, in the thread that called. A model,
// with its sequences, is used by one thread at a time. Memory is taken by dsv3c_open, *_new and dsv3c_encode only:
// running a step and drawing a token take none.
// NULL where a pointer is needed is DSV3C_BAD_ARGUMENT; calls without a status take it as nothing: they give 0 and
// free nothing.
#ifndef DSV3C_H
#define DSV3C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DSV3C_API __attribute__((visibility("default")))

typedef enum {
  DSV3C_OK = 0,
  DSV3C_BAD_ARGUMENT,      // a value out of range, or a sequence of another model
  DSV3C_FILE_MISSING,      // a file of the artifact cannot be opened
  DSV3C_FILE_DAMAGED,      // a file is not the one this library was built with, or lost bytes while it was in use
  DSV3C_ISA_UNKNOWN,       // DSV3C_ISA names no level of the artifact
  DSV3C_ISA_UNSUPPORTED,   // the CPU lacks what the level needs
  DSV3C_OUT_OF_MEMORY,     // the system refused memory
  DSV3C_OUT_OF_PAGES,      // the cache is full: free sequences, or open with a larger max_batch
  DSV3C_CONTEXT_EXCEEDED,  // the sequence would be longer than the context
  DSV3C_BAD_TOKEN,         // a token id is not below vocab_size
  DSV3C_BAD_TEXT,          // the text is not UTF-8
  DSV3C_NO_TOKENIZER,      // the library was built without a tokenizer: use token ids
  DSV3C_NOT_FINITE,        // logits with NaN or infinity
  DSV3C_KERNEL_FAILED      // a kernel refused its arguments: the files do not belong together
} dsv3c_status;

typedef struct dsv3c_model dsv3c_model;
typedef struct dsv3c_sequence dsv3c_sequence;
typedef struct dsv3c_sampler dsv3c_sampler;

// The message of the last call that failed in this thread.
DSV3C_API const char *dsv3c_error(void);

// ---- model

// Zero means: threads, one a physical core, fewer if the control group's quota is less; context, what the model was compiled for; max_batch, one sequence.
typedef struct {
  int32_t threads;
  int32_t context;    // tokens of one sequence
  int32_t max_batch;  // full sequences that the cache has room for
} dsv3c_options;

typedef struct {
  const char *level;   // of the kernels in use
  int32_t threads;     // of the kernels' pool
  int32_t vocab_size;  // floats of one row of logits
  int32_t context;
  int32_t has_tokenizer;
  const int32_t *end_tokens;  // ids that end an answer
  size_t end_token_count;
} dsv3c_info;

// Open the artifact folder that `native/` is part of. options may be NULL. DSV3C_ISA in the environment names the level
// to use, otherwise it is the best that this CPU can run. Each model has threads of its own. The first call takes the
// signal SIGBUS, and passes on what is not of the model's files: reading one that was made shorter is then an error.
DSV3C_API dsv3c_status dsv3c_open(const char *artifact, const dsv3c_options *options, dsv3c_model **model);
// Give everything back. Sequences and samplers are freed before. NULL is fine.
DSV3C_API void dsv3c_close(dsv3c_model *model);
// All zero for NULL.
DSV3C_API dsv3c_info dsv3c_info_of(const dsv3c_model *model);

// ---- sequences and steps

// An empty sequence. It takes pages of the cache as it grows.
DSV3C_API dsv3c_status dsv3c_sequence_new(dsv3c_model *model, dsv3c_sequence **sequence);
// A sequence that shares the first `length` tokens of another; shared pages are copied before one of both writes.
DSV3C_API dsv3c_status dsv3c_sequence_fork(const dsv3c_sequence *source, int32_t length, dsv3c_sequence **sequence);
// Forget all tokens from `length` on.
DSV3C_API dsv3c_status dsv3c_sequence_truncate(dsv3c_sequence *sequence, int32_t length);
DSV3C_API int32_t dsv3c_sequence_length(const dsv3c_sequence *sequence);
DSV3C_API void dsv3c_sequence_free(dsv3c_sequence *sequence);

typedef enum { DSV3C_NONE = 0, DSV3C_LAST, DSV3C_ALL } dsv3c_want;

// Append tokens to a sequence. logits receives the row of the last token, or the rows of all of them, in order.
typedef struct {
  dsv3c_sequence *sequence;
  const int32_t *tokens;
  size_t count;
  dsv3c_want want;
  float *logits;  // vocab_size floats a row; not read for DSV3C_NONE
} dsv3c_request;

// Run requests of unequal length together, in steps as large as the artifact allows. When it fails, every sequence is
// as it was before.
DSV3C_API dsv3c_status dsv3c_run(dsv3c_model *model, const dsv3c_request *requests, size_t count);

// ---- sampling: the filters apply in the order penalty, temperature, top-k, top-p, min-p

typedef struct {
  double temperature;  // 0: the likeliest token
  double top_p;        // 1: off
  double min_p;        // 0: off
  double repetition_penalty;  // 1: off
  int32_t top_k;       // 0: off
  uint64_t seed;
} dsv3c_sampling;

// What generation_config.json of the checkpoint says; seed 0. The model may be NULL: it is the library's.
DSV3C_API dsv3c_sampling dsv3c_sampling_defaults(const dsv3c_model *model);
DSV3C_API dsv3c_status dsv3c_sampler_new(const dsv3c_model *model, const dsv3c_sampling *how, dsv3c_sampler **sampler);
// Count tokens of the prompt or the answer as repeated from now on.
DSV3C_API dsv3c_status dsv3c_sampler_observe(dsv3c_sampler *sampler, const int32_t *tokens, size_t count);
// Draw the next token for one row of logits. The same parameters, seed and logits give the same tokens.
DSV3C_API dsv3c_status dsv3c_sample(dsv3c_sampler *sampler, const float *logits, int32_t *token);
DSV3C_API void dsv3c_sampler_free(dsv3c_sampler *sampler);

// ---- text

// What stands around a text: nothing; the tokens that begin and end a text, each once, also where the text brings it;
// the same without the BOS.
typedef enum { DSV3C_PLAIN = 0, DSV3C_SPECIAL, DSV3C_NO_BOS } dsv3c_special;

// Ids of a UTF-8 text of `size` bytes, which may be NULL when that is 0; `special`: a dsv3c_special. *tokens is from
// malloc, the caller frees it.
DSV3C_API dsv3c_status dsv3c_encode(const dsv3c_model *model, const char *text, size_t size, int special,
                                    int32_t **tokens, size_t *count);

// Text of tokens as they come. Bytes of a character that is not complete wait for the next token; what is no UTF-8
// becomes U+FFFD. Begin with a zeroed stream.
typedef struct {
  unsigned char held[4];
  uint32_t count;
} dsv3c_text;

// UTF-8 bytes that are certain after `token` (none for special tokens) go to `out`, at most `capacity` of them; *size
// says how many there are. dsv3c_text_bytes(model) is enough for any token.
DSV3C_API dsv3c_status dsv3c_text_push(const dsv3c_model *model, dsv3c_text *text, int32_t token, char *out,
                                       size_t capacity, size_t *size);
DSV3C_API size_t dsv3c_text_bytes(const dsv3c_model *model);
// What is left when no more tokens come: at most three bytes.
DSV3C_API size_t dsv3c_text_flush(dsv3c_text *text, char out[3]);

#ifdef __cplusplus
}
#endif
#endif
