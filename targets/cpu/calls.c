// A step in one call from Python: the kernels of an entry one after the other. runtime/devices/cpu/calls.py fills the
// structures.

#include "native/ffi.h"

typedef struct {
  ffi_function function;
  const ffi_any *arguments;
  int32_t count;
} kernel_call;

// Makes the calls until one fails; returns how many did not.
__attribute__((visibility("default"))) int32_t dsv3c_calls(const kernel_call *calls, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    ffi_any result = {0};
    if (calls[i].function(0, calls[i].arguments, calls[i].count, &result) != 0) return i;
  }
  return count;
}
