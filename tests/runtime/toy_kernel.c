// The toy model of toy.py as kernels of a real library: entry points of the tvm_ffi ABI.
#include <stdint.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#ifndef FACTOR
#define FACTOR 7919
#endif

enum { VOCAB = 50, LATENT = 4, CODES = 3, LAYERS = 2, REMAINDER = 100, HIDDEN = 2, MARKER = 7, MODULUS = 65521, PAGE_SIZE = 4, PAGES = 16 };

static int threads;

void dsv3c_threads(int count) { threads = count; }
int toy_threads(void) { return threads; }

#ifdef DSV3C_PLAN
const char dsv3c_plan[] = DSV3C_PLAN;
#endif

static int pause_us;

void toy_pause(int us) { pause_us = us; }  // of each step

static const DLTensor* tensor(const TVMFFIAny* argument) {
  if (argument->type_index == kTVMFFIDLTensorPtr) return (const DLTensor*)argument->v_ptr;
  return (const DLTensor*)((const char*)argument->v_obj + sizeof(TVMFFIObject));
}

static void* data(const TVMFFIAny* argument) {
  return (char*)tensor(argument)->data + tensor(argument)->byte_offset;
}

static void write_logits(float* out, int64_t mixed, float scale) {
  for (int64_t v = 0; v < VOCAB; ++v) out[v] = scale * (float)((v + 1) * (mixed + 3) * FACTOR % 1009) / 64;
}

// Whether an operand is a cache of rows as wide as those, of elements of so many bits.
static int is_cache(const TVMFFIAny* argument, int64_t slots, int width, int bits) {
  const DLTensor* cache = tensor(argument);
  return cache->shape[0] == slots * width && cache->dtype.bits == bits && (uintptr_t)cache->data % 64 == 0;
}

// tokens, positions, sequence, page_table, rows, control, rows and codes of layer 0, logits, hidden, scale, rows and
// codes of layer 1
int __tvm_ffi_toy_step(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  if (count != 13) {
    TVMFFIErrorSetRaisedFromCStr("TypeError", "toy_step takes 13 operands");
    return -1;
  }
  int64_t slots = tensor(args + 6)->shape[0] / LATENT;
  for (int layer = 0; layer < LAYERS; ++layer) {
    if (is_cache(args + (layer ? 11 : 6), slots, LATENT, 32) && is_cache(args + (layer ? 12 : 7), slots, CODES, 8)) continue;
    TVMFFIErrorSetRaisedFromCStr("TypeError", "toy_step wants caches of float32[4] and int8[3]");
    return -1;
  }
  const int32_t *tokens = data(args), *positions = data(args + 1), *sequence = data(args + 2);
  const int32_t *table = data(args + 3), *rows = data(args + 4), *control = data(args + 5);
  float *caches[] = {data(args + 6), data(args + 11)}, *logits = data(args + 8), *hidden = data(args + 9);
  int8_t* codes[] = {data(args + 7), data(args + 12)};
  const float* scale = data(args + 10);
  if ((uintptr_t)scale % 64 || (uintptr_t)logits % 64) return -1;
  if (pause_us) usleep(pause_us);
  for (int t = 0; t < control[0]; ++t) {
    int p = positions[t];
    int64_t slot = table[sequence[t] * PAGES + p / PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE;
    for (int layer = 0; layer < LAYERS; ++layer) {
      float* row = caches[layer] + slot * LATENT;
      int8_t* code = codes[layer] + slot * CODES;
      row[0] = tokens[t], row[1] = p, row[2] = MARKER, row[3] = 1;
      code[0] = tokens[t], code[1] = p % REMAINDER, code[2] = layer;
    }
    hidden[t * HIDDEN] = tokens[t], hidden[t * HIDDEN + 1] = p;
  }
  for (int r = 0; r < control[1]; ++r) {
    int t = rows[r];
    int64_t state = 0;
    for (int p = 0; p <= positions[t]; ++p) {
      int64_t slot = table[sequence[t] * PAGES + p / PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE;
      int64_t token = (int64_t)caches[0][slot * LATENT];
      for (int layer = 0; layer < LAYERS; ++layer) {
        const float* row = caches[layer] + slot * LATENT;
        const int8_t* code = codes[layer] + slot * CODES;
        int stale = row[0] != token || row[1] != p || row[2] != MARKER || row[3] != 1;
        if (stale || code[0] != token || code[1] != p % REMAINDER || code[2] != layer) token = VOCAB;
      }
      state = (state * 31 + (token + 1) * (p + 5)) % MODULUS;
    }
    write_logits(logits + r * VOCAB, state, *scale);
  }
  return 0;
}

// tokens, control, logits, hidden of the tokens before
int __tvm_ffi_toy_mtp(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  const int32_t *tokens = data(args), *control = data(args + 1);
  float *logits = data(args + 2), *before = data(args + 3);
  for (int t = 0; t < control[0]; ++t)
    write_logits(logits + t * VOCAB, (int64_t)before[t * HIDDEN] * 100 + tokens[t], 1);
  return 0;
}
