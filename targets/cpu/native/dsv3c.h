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
// with its sequences, samplers and generations, is used by one thread at a time. Memory is taken by dsv3c_open, *_new,
// *_fork, dsv3c_encode and dsv3c_chat only: running a step and drawing a token take none.
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
  DSV3C_ISA_UNKNOWN,       // DSV3C_ISA names no level of the artifact, or DSV3C_WITHOUT no feature
  DSV3C_ISA_UNSUPPORTED,   // the CPU lacks what the level needs
  DSV3C_OUT_OF_MEMORY,     // the system refused memory
  DSV3C_OUT_OF_PAGES,      // the cache is full: free sequences, or open with a larger max_batch
  DSV3C_CONTEXT_EXCEEDED,  // the sequence would be longer than the context
  DSV3C_BAD_TOKEN,         // a token id is not below vocab_size
  DSV3C_BAD_TEXT,          // the text is not UTF-8
  DSV3C_NO_TOKENIZER,      // the library was built without a tokenizer: use token ids
  DSV3C_NOT_FINITE,        // logits with NaN or infinity
  DSV3C_NO_TOKEN_ALLOWED,  // the parameters forbid every token
  DSV3C_NO_CHAT_TEMPLATE,  // the library was built without one; the message says why
  DSV3C_KERNEL_FAILED      // a kernel refused its arguments: the files do not belong together
} dsv3c_status;

typedef struct dsv3c_model dsv3c_model;
typedef struct dsv3c_sequence dsv3c_sequence;
typedef struct dsv3c_sampler dsv3c_sampler;
typedef struct dsv3c_generation dsv3c_generation;

// The message of the last call that failed in this thread.
DSV3C_API const char *dsv3c_error(void);

// ---- model

typedef enum { DSV3C_NUMA_AUTO = 0, DSV3C_NUMA_OFF } dsv3c_numa;

// Zero means: threads, one a performance core, fewer if the control group's quota is less; context, what the model was
// compiled for; max_batch, one sequence; numa, that threads and weights are divided among the memory nodes of the
// machine, if it has several.
typedef struct {
  int32_t threads;
  int32_t context;    // tokens of one sequence
  int32_t max_batch;  // full sequences that the cache has room for
  dsv3c_numa numa;
} dsv3c_options;

typedef struct {
  const char *level;   // of the kernels in use
  int32_t threads;     // of the kernels' pool
  int32_t vocab_size;  // floats of one row of logits
  int32_t context;
  int32_t has_tokenizer, has_chat_template, has_mtp;
  const int32_t *end_tokens;  // ids that end an answer
  size_t end_token_count;
} dsv3c_info;

// Open the artifact folder that `native/` is part of. options may be NULL. DSV3C_ISA in the environment names the level
// to use, otherwise it is the best that this CPU can run. Each model has threads of its own. The first call takes the
// signal SIGBUS, and passes on what is not of the model's files: reading one that was made shorter is then an error.
DSV3C_API dsv3c_status dsv3c_open(const char *artifact, const dsv3c_options *options, dsv3c_model **model);
// Give everything back. Sequences, samplers and generations are freed before, in any order. NULL is fine.
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

// ---- sampling: what changes a row of logits applies in the order of the fields, as in Hugging Face transformers

typedef struct {
  const int32_t *ids;
  size_t count;
} dsv3c_ids;

typedef struct {
  int32_t token;
  double bias;  // -INFINITY forbids it
} dsv3c_bias;

typedef struct {
  double repetition_penalty;                    // of all tokens of the text; 1: off
  double frequency_penalty, presence_penalty;   // of the answer's tokens, each time and once; 0: off
  const dsv3c_bias *logit_bias;                 // what logits of some ids gain
  size_t logit_bias_count;
  int32_t no_repeat_ngram_size;                 // so many tokens in a row stand once in the text; 0: off
  const dsv3c_ids *bad_words_ids;               // runs of tokens that do not come up
  size_t bad_words_count;
  int32_t min_length, min_new_tokens;           // no end before the text, or the answer, has so many tokens
  dsv3c_ids suppress_tokens;                    // ids that do not come up
  double temperature;                           // 0: the likeliest token
  int32_t top_k;                                // 0: off
  double top_p;                                 // 1: off
  double min_p;                                 // 0: off
  double typical_p;                             // 1: off
  dsv3c_ids eos_token_id;                       // ids that end an answer
  int32_t ignore_eos;                           // 1: none of them does
  uint64_t seed;
} dsv3c_sampling;

// What generation_config.json of the checkpoint says; seed 0. The model may be NULL: it is the library's.
DSV3C_API dsv3c_sampling dsv3c_sampling_defaults(const dsv3c_model *model);
// Lists are copied.
DSV3C_API dsv3c_status dsv3c_sampler_new(const dsv3c_model *model, const dsv3c_sampling *how, dsv3c_sampler **sampler);

// The tokens of a text so far, of which the first are its prompt.
typedef struct {
  const int32_t *tokens;
  size_t count, prompt_count;
} dsv3c_history;

// Draw the next token of a text for one row of logits; history may be NULL where nothing was. The same parameters, seed
// and logits give the same tokens. A token that is drawn takes one random number, the likeliest takes none.
DSV3C_API dsv3c_status dsv3c_sample(dsv3c_sampler *sampler, const float *logits, const dsv3c_history *history,
                                    int32_t *token);
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

// A text of `size` bytes, in UTF-8.
typedef struct {
  const char *text;
  size_t size;
} dsv3c_string;

// The prompt of a conversation, by the checkpoint's chat template: `turns` are the user's and the assistant's in turn,
// the user's first and last. system.text is NULL where there is none. *text is from malloc, the caller frees it; encode
// it as DSV3C_PLAIN.
DSV3C_API dsv3c_status dsv3c_chat(const dsv3c_model *model, dsv3c_string system, const dsv3c_string *turns,
                                  size_t count, char **text, size_t *size);

// ---- generation: the answer to one prompt, token by token

// Drafts cost time and never change the answer: each token of it is drawn as it would be without. They are made as long
// as that is faster than doing without, by what steps have taken and how many drafts came true.
typedef enum {
  DSV3C_PLAIN_STEPS = 0,
  DSV3C_NGRAM,  // what followed the last tokens when they stood in the text before
  DSV3C_MTP     // what the model's own layer for multi-token prediction says
} dsv3c_speculation;

enum { DSV3C_MAX_NEW_TOKENS = 256 };  // where nothing says how long the answer may be

typedef struct {
  dsv3c_sampling sampling;
  int32_t max_new_tokens;    // of the answer; 0: by max_length
  int32_t max_length;        // of the prompt and the answer; 0: DSV3C_MAX_NEW_TOKENS new ones, or the least
  const dsv3c_string *stop;  // strings that end the answer and are no part of it
  size_t stop_count;
  double max_time;           // seconds from dsv3c_generation_new on, after which no step begins; 0: no limit
  dsv3c_speculation speculation;
} dsv3c_parameters;

// What generation_config.json of the checkpoint says. The model may be NULL: it is the library's.
DSV3C_API dsv3c_parameters dsv3c_parameters_defaults(const dsv3c_model *model);
// The answer to `count` tokens, in a sequence of its own. Lists and strings are copied.
DSV3C_API dsv3c_status dsv3c_generation_new(dsv3c_model *model, const int32_t *prompt, size_t count,
                                            const dsv3c_parameters *how, dsv3c_generation **generation);

typedef enum {
  DSV3C_RUNNING = 0,
  DSV3C_STOP,    // an end token, or a stop string
  DSV3C_LENGTH,  // max_new_tokens, max_length or the context is used up
  DSV3C_TIME     // max_time is over
} dsv3c_finish;

typedef struct {
  int32_t token;       // -1: none, the end of the answer
  const char *text;    // UTF-8 that became certain; good until the next call
  size_t size;
  const float *logits; // the row that the token, or an end token, was drawn by; good until the next call; NULL: none was
  dsv3c_finish finish;
} dsv3c_event;

// The next token of the answer, end tokens left out. The last event has the reason for it, the text that was held back,
// and no token; after it the same comes again, without text. A generation that failed can only be freed.
DSV3C_API dsv3c_status dsv3c_generation_next(dsv3c_generation *generation, dsv3c_event *event);

typedef struct {
  size_t prompt_tokens, tokens;  // tokens: of the answer
  size_t decoded, steps;         // tokens drawn after the first one, steps of the model that it took
  size_t drafted, accepted;      // tokens that drafts proposed, and that came true
  double prompt_seconds, decode_seconds;
} dsv3c_statistics;

// All zero for NULL.
DSV3C_API dsv3c_statistics dsv3c_generation_statistics(const dsv3c_generation *generation);
DSV3C_API void dsv3c_generation_free(dsv3c_generation *generation);

#ifdef __cplusplus
}
#endif
#endif
