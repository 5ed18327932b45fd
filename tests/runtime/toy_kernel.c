// The toy model of toy.py as kernels of a real library: entry points of the tvm_ffi ABI.
#include <stdint.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#ifndef FACTOR
#define FACTOR 7919
#endif

enum { VOCAB = 50, LATENT = 4, HIDDEN = 2, MARKER = 7, MODULUS = 65521, PAGE_SIZE = 4, PAGES = 16 };

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

// tokens, positions, sequence, page_table, rows, control, cache.0, cache.1, logits, hidden, scale
int __tvm_ffi_toy_step(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  if (count != 11) {
    TVMFFIErrorSetRaisedFromCStr("TypeError", "toy_step takes 11 operands");
    return -1;
  }
  const int32_t *tokens = data(args), *positions = data(args + 1), *sequence = data(args + 2);
  const int32_t *table = data(args + 3), *rows = data(args + 4), *control = data(args + 5);
  float *cache = data(args + 6), *logits = data(args + 8), *hidden = data(args + 9);
  const float* scale = data(args + 10);
  if ((uintptr_t)scale % 64 || (uintptr_t)cache % 64 || (uintptr_t)logits % 64) return -1;
  if (pause_us) usleep(pause_us);
  for (int t = 0; t < control[0]; ++t) {
    int p = positions[t];
    float* row = cache + (int64_t)(table[sequence[t] * PAGES + p / PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE) * LATENT;
    row[0] = tokens[t], row[1] = p, row[2] = MARKER, row[3] = 1;
    hidden[t * HIDDEN] = tokens[t], hidden[t * HIDDEN + 1] = p;
  }
  for (int r = 0; r < control[1]; ++r) {
    int t = rows[r];
    int64_t state = 0;
    for (int p = 0; p <= positions[t]; ++p) {
      int slot = table[sequence[t] * PAGES + p / PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE;
      state = (state * 31 + ((int64_t)cache[slot * LATENT] + 1) * (p + 5)) % MODULUS;
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
