/* Functions of TVM's calling convention that hand their arguments, with their name before, on to the function LAUNCH. */
#include <string.h>
#include <tvm/ffi/c_api.h>

#define MOST 64

static int forward(const char* name, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  static TVMFFIObjectHandle launch;
  const TVMFFIByteArray key = {LAUNCH, sizeof LAUNCH - 1};
  TVMFFIAny all[MOST] = {{.type_index = kTVMFFIRawStr, .v_c_str = name}};
  if (count >= MOST || (launch == NULL && TVMFFIFunctionGetGlobal(&key, &launch) != 0)) return -1;
  memcpy(all + 1, arguments, (size_t)count * sizeof *all);
  return TVMFFIFunctionCall(launch, all, count + 1, result);
}

#define FUNCTION(name)                                                                              \
  int __tvm_ffi_##name(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) { \
    (void)self;                                                                                     \
    return forward(#name, arguments, count, result);                                                \
  }
