// Opening an artifact: everything is mapped, allocated and resolved here, so that a step only runs kernels.

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

enum { THREADS_LIMIT = 256 };

static const plan_table *const plan = &dsv3c_plan;

static void *place(const dsv3c_model *model, const plan_buffer *buffer) {
  switch (buffer->place) {
    case IN_INPUTS: return model->inputs.data + buffer->at;
    case IN_ARENA: return model->arena.data + buffer->at;
    case IN_CACHE: return model->caches.data + model->cache_starts[buffer->at];
    case IN_WEIGHTS: return model->weights.data + buffer->at;
  }
  return 0;
}

// Among several nodes weights are read by the threads of each, when a kernel first meets them; else from now on.
static void divide(dsv3c_model *model, dsv3c_numa numa) {
  if (numa == DSV3C_NUMA_OFF || kernels_divide(model->kernels, model->weights.size) == 1) {
    memory_read_ahead(&model->weights);
    return;
  }
  kernels_spread(model->kernels, model->arena.data, model->arena.size);
  kernels_spread(model->kernels, model->caches.data, model->caches.size);
}

static dsv3c_status load_kernels(dsv3c_model *model, int artifact, dsv3c_numa numa) {
  void **data = calloc(plan->buffer_count, sizeof *data);
  int64_t *sizes = calloc(plan->buffer_count, sizeof *sizes);
  dsv3c_status status = data && sizes ? DSV3C_OK : dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for the buffers");
  for (size_t i = 0; status == DSV3C_OK && i < plan->buffer_count; i++) {
    const plan_buffer *buffer = &plan->buffers[i];
    data[i] = place(model, buffer);
    sizes[i] = buffer->place == IN_CACHE ? (int64_t)model->page_count * plan->page_size * buffer->size : buffer->size;
  }
  if (status == DSV3C_OK) status = kernels_load(artifact, model->level, data, sizes, &model->threads, &model->kernels);
  if (status == DSV3C_OK) divide(model, numa);
  free(data);
  free(sizes);
  return status;
}

static void find_inputs(dsv3c_model *model) {
  int32_t **inputs[PLAN_INPUTS] = {&model->tokens,     &model->positions, &model->sequence,
                                   &model->page_table, &model->rows,      &model->control};
  for (int i = 0; i < PLAN_INPUTS; i++) *inputs[i] = place(model, &plan->buffers[plan->inputs[i]]);
  if (plan->mtp.steps) model->hidden = place(model, &plan->buffers[plan->hidden_input]);
}

const float *model_output(const dsv3c_model *model, uint32_t buffer) { return place(model, &plan->buffers[buffer]); }

// One cache behind the other, as far as that is memory that could be had.
static dsv3c_status allocate_caches(dsv3c_model *model) {
  model->cache_starts = calloc((size_t)plan->cache_count + 1, sizeof *model->cache_starts);
  if (!model->cache_starts) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for %u caches", plan->cache_count);
  uint64_t end = 0, slots = (uint64_t)model->page_count * (uint64_t)plan->page_size;
  for (uint32_t i = 0; i < plan->cache_count && end < 1ull << 47; i++) {
    end += (slots * plan->cache_bytes[i] + PLAN_ALIGNMENT - 1) / PLAN_ALIGNMENT * PLAN_ALIGNMENT;
    model->cache_starts[i + 1] = end;
  }
  return memory_allocate(end, "the cache", &model->caches);
}

static dsv3c_status make_pages(dsv3c_model *model) {
  model->references = calloc((size_t)model->page_count, sizeof *model->references);
  model->free_pages = calloc((size_t)model->page_count, sizeof *model->free_pages);
  model->pieces = calloc((size_t)plan->sequences, sizeof *model->pieces);
  if (!model->references || !model->free_pages || !model->pieces)
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for %d pages", model->page_count);
  for (int32_t i = 0; i < model->page_count; i++) model->free_pages[i] = model->page_count - 1 - i;
  model->free_count = model->page_count;
  return DSV3C_OK;
}

static dsv3c_status within(const char *name, int32_t value, int32_t limit) {
  if (value >= 0 && value <= limit) return DSV3C_OK;
  return dsv3c_fail(DSV3C_BAD_ARGUMENT, "%s is %d, it must be from 1 to %d, or 0 for the default", name, value, limit);
}

static dsv3c_status open_tokenizer(dsv3c_model *model, int artifact) {
  if (!plan->tokenizer.path) return DSV3C_OK;
  TRY(memory_read(artifact, &plan->tokenizer, &model->table));
  return tokenizer_open(model->table.data, model->table.size, &model->tokenizer);
}

static dsv3c_status open_model(dsv3c_model *model, int artifact, const dsv3c_options *options) {
  TRY(within("threads", options->threads, THREADS_LIMIT));
  TRY(within("context", options->context, plan->pages * plan->page_size));
  TRY(within("max_batch", options->max_batch, plan->sequences));
  if (options->numa != DSV3C_NUMA_AUTO && options->numa != DSV3C_NUMA_OFF)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "numa is %d, it must be DSV3C_NUMA_AUTO or DSV3C_NUMA_OFF", (int)options->numa);
  TRY(cpu_choose(plan->levels, plan->level_count, &model->level));
  int threads = options->threads ? options->threads : cpu_threads();
  model->threads = threads < THREADS_LIMIT ? threads : THREADS_LIMIT;
  model->context = options->context ? options->context : plan->context;
  int64_t pages = (model->context + plan->page_size - 1) / plan->page_size;
  pages *= options->max_batch ? options->max_batch : 1;
  if (pages * plan->page_size > INT32_MAX)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "max_batch is %d: the cache would pass 2^31 tokens", options->max_batch);
  model->page_count = (int32_t)pages;
  TRY(memory_map(artifact, &plan->weights, &model->weights));
  TRY(memory_allocate(plan->arena_bytes, "the activations", &model->arena));
  TRY(memory_allocate(plan->input_bytes, "the inputs", &model->inputs));
  TRY(allocate_caches(model));
  TRY(make_pages(model));
  find_inputs(model);
  TRY(load_kernels(model, artifact, options->numa));
  return open_tokenizer(model, artifact);
}

dsv3c_status dsv3c_open(const char *artifact, const dsv3c_options *options, dsv3c_model **out) {
  if (!artifact || !out) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_open needs a folder and a place for the model");
  *out = 0;
  // All files are opened in it, so that none is of an artifact that takes its place meanwhile.
  int folder = open(artifact, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0)
    return dsv3c_fail(DSV3C_FILE_MISSING, "cannot open %s/%s: %s", artifact, plan->weights.path, strerror(errno));
  dsv3c_model *model = calloc(1, sizeof *model);
  dsv3c_status status = model ? open_model(model, folder, options ? options : &(dsv3c_options){0})
                              : dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for the model");
  close(folder);
  if (status == DSV3C_OK) *out = model;
  else dsv3c_close(model);
  return status;
}

void dsv3c_close(dsv3c_model *model) {
  if (!model) return;
  tokenizer_close(model->tokenizer);
  kernels_free(model->kernels);
  memory_free(&model->table);
  memory_free(&model->caches);
  memory_free(&model->inputs);
  memory_free(&model->arena);
  memory_free(&model->weights);
  free(model->cache_starts);
  free(model->references);
  free(model->free_pages);
  free(model->pieces);
  free(model);
}

dsv3c_info dsv3c_info_of(const dsv3c_model *model) {
  if (!model) return (dsv3c_info){0};
  return (dsv3c_info){model->level->name, model->threads, plan->vocab_size, model->context, model->tokenizer != 0,
                      plan->chat.head != 0, plan->mtp.steps != 0, plan->end_tokens, plan->end_token_count};
}
