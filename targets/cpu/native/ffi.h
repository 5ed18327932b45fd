// The calling convention of kernels, TVM FFI's (tvm/ffi/c_api.h).
#ifndef DSV3C_FFI_H
#define DSV3C_FFI_H

#include <stdint.h>

typedef struct {
  int32_t type_index;
  uint32_t padding;
  union { int64_t integer; void *pointer; } value;
} ffi_any;

typedef int (*ffi_function)(void *self, const ffi_any *arguments, int32_t count, ffi_any *result);

#endif
