// The kernel libraries of the artifact, as the Python runtime loads them: the same files, so the same numbers.
//
// Kernels follow the calling convention of TVM FFI (tvm/ffi/c_api.h, dlpack.h): arguments are DLTensors, an error is
// left with TVMFFIErrorSetRaisedFromCStrParts, which this library provides in place of libtvm_ffi.

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ffi.h"
#include "internal.h"

typedef struct {
  void *data;
  struct { int32_t type, id; } device;
  int32_t ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} dl_tensor;

enum { DL_CPU = 1, FFI_NONE = 0, FFI_DL_TENSOR = 7 };

typedef struct {
  ffi_function function;
  const ffi_any *arguments;
  int32_t count;
  uint32_t kernel;
} kernel_call;

struct kernel_table {
  void *library;
  int copy;  // the descriptor of its file, whose number is its name: kept as long as it
  ffi_function *functions;  // by kernel
  dl_tensor *tensors;       // by buffer
  int64_t *shapes;
  ffi_any *arguments;
  kernel_call *calls;  // of one entry behind the other, in the order of ENTRIES
};

static const plan_entry *const ENTRIES[] = {&dsv3c_plan.decode, &dsv3c_plan.prefill, &dsv3c_plan.mtp,
                                            &dsv3c_plan.short_decode, &dsv3c_plan.short_prefill};
enum { ENTRY_COUNT = sizeof ENTRIES / sizeof *ENTRIES };

static int64_t one = 1;  // the stride of every tensor: all are flat
static _Thread_local char raised[256];

// ---- what kernels call

DSV3C_API void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
DSV3C_API void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t used = (size_t)snprintf(raised, sizeof raised, "%s: ", kind);
  for (int32_t i = 0; i < count && used < sizeof raised; i++)
    used += (size_t)snprintf(raised + used, sizeof raised - used, "%s", parts[i] ? parts[i] : "");
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

// Kernel libraries look for these symbols in the program and in what it loaded globally; this library may have been
// loaded otherwise. And it stays: signals are handled by its code.
static void offer_symbols(void) {
  Dl_info self;
  if (dladdr((void *)&one, &self) && self.dli_fname)
    dlopen(self.dli_fname, RTLD_LAZY | RTLD_GLOBAL | RTLD_NOLOAD | RTLD_NODELETE);
}

// ---- loading

// The name of a file in memory is free again when its descriptor is closed.
static void remove_name(const char *name) {
  if (strncmp(name, "/proc/", 6) != 0) unlink(name);
}

// A file of its own with the bytes that were checked: the loader would give back the library it has of a path or a file,
// whatever is there now. In memory where the system has that, and /proc, by which it gets a name.
static int copy_file(const memory_block *content, char *name, size_t size) {
#ifdef __linux__
  int descriptor = access("/proc/self/fd", X_OK) == 0 ? memfd_create("dsv3c", MFD_CLOEXEC) : -1;
  if (descriptor >= 0) snprintf(name, size, "/proc/self/fd/%d", descriptor);
#else
  int descriptor = -1;
#endif
  if (descriptor < 0) {
    const char *folder = getenv("TMPDIR");
    snprintf(name, size, "%s/dsv3c-XXXXXX", folder && *folder ? folder : "/tmp");
    descriptor = mkstemp(name);
  }
  for (size_t done = 0; descriptor >= 0 && done < content->size;) {
    ssize_t count = write(descriptor, content->data + done, content->size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count > 0) {
      done += (size_t)count;
      continue;
    }
    int error = errno;
    close(descriptor);
    remove_name(name);
    errno = error;
    descriptor = -1;
  }
  return descriptor;
}

static dsv3c_status load_library(int artifact, const plan_file *file, kernel_table *table) {
  char name[512] = "";
  memory_block content = {0};
  TRY(memory_read(artifact, file, &content));
  table->copy = copy_file(&content, name, sizeof name);
  memory_free(&content);
  if (table->copy < 0) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no place for a copy of the kernels: %s", strerror(errno));
  offer_symbols();
  table->library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
  remove_name(name);
  return table->library ? DSV3C_OK : dsv3c_fail(DSV3C_FILE_DAMAGED, "%s cannot be loaded: %s", file->path, dlerror());
}

static dsv3c_status find_functions(kernel_table *table) {
  char name[256];
  for (size_t i = 0; i < dsv3c_plan.kernel_count; i++) {
    snprintf(name, sizeof name, "__tvm_ffi_%s", dsv3c_plan.kernels[i]);
    void *found = dlsym(table->library, name);
    if (!found) return dsv3c_fail(DSV3C_FILE_DAMAGED, "the kernel library has no kernel %s", dsv3c_plan.kernels[i]);
    memcpy(&table->functions[i], &found, sizeof found);
  }
  return DSV3C_OK;
}

static dsv3c_status set_threads(void *library, int32_t *threads) {
  int (*set)(int) = 0;
  void *found = dlsym(library, "dsv3c_threads");
  if (!found) return dsv3c_fail(DSV3C_FILE_DAMAGED, "the kernel library has no thread pool");
  memcpy(&set, &found, sizeof found);
  *threads = set(*threads);
  return DSV3C_OK;
}

int kernels_divide(const kernel_table *table, uint64_t weight_bytes) {
  int (*divide)(uint64_t) = 0;
  void *found = dlsym(table->library, "dsv3c_nodes");
  memcpy(&divide, &found, sizeof found);
  return divide ? divide(weight_bytes) : 1;
}

void kernels_spread(const kernel_table *table, const void *data, uint64_t bytes) {
  void (*spread)(const void *, uint64_t) = 0;
  void *found = dlsym(table->library, "dsv3c_spread");
  memcpy(&spread, &found, sizeof found);
  if (spread) spread(data, bytes);
}

static void fill_tensors(kernel_table *table, void *const *data, const int64_t *sizes) {
  for (size_t i = 0; i < dsv3c_plan.buffer_count; i++) {
    const plan_buffer *buffer = &dsv3c_plan.buffers[i];
    table->shapes[i] = sizes[i];
    table->tensors[i] = (dl_tensor){.data = data[i], .device = {DL_CPU, 0}, .ndim = 1,
                                    .dtype = {buffer->code, buffer->bits, 1},
                                    .shape = &table->shapes[i], .strides = &one};
  }
}

// Calls of `entry` into `calls`, their arguments into `arguments`; both have room for them.
static void bind(kernel_table *table, const plan_entry *entry, kernel_call *calls, ffi_any *arguments) {
  for (const uint32_t *at = entry->steps, *end = at + entry->words; at < end; calls++) {
    uint32_t kernel = *at++, count = *at++;
    *calls = (kernel_call){table->functions[kernel], arguments, (int32_t)count, kernel};
    for (uint32_t i = 0; i < count; i++)
      *arguments++ = (ffi_any){.type_index = FFI_DL_TENSOR, .value.pointer = &table->tensors[*at++]};
  }
}

dsv3c_status kernels_load(int artifact, const plan_level *level, void *const *data, const int64_t *sizes,
                          int32_t *threads, kernel_table **out) {
  size_t all_calls = 0, all_arguments = 0;
  for (int i = 0; i < ENTRY_COUNT; i++) all_calls += ENTRIES[i]->calls, all_arguments += ENTRIES[i]->arguments;
  kernel_table *table = calloc(1, sizeof *table);
  if (!table) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for the table of kernels");
  *out = table;
  table->copy = -1;
  table->functions = calloc(dsv3c_plan.kernel_count, sizeof *table->functions);
  table->tensors = calloc(dsv3c_plan.buffer_count, sizeof *table->tensors);
  table->shapes = calloc(dsv3c_plan.buffer_count, sizeof *table->shapes);
  table->arguments = calloc(all_arguments, sizeof *table->arguments);
  table->calls = calloc(all_calls, sizeof *table->calls);
  if (!table->functions || !table->tensors || !table->shapes || !table->arguments || !table->calls)
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for the table of kernels");
  TRY(load_library(artifact, &level->library, table));
  TRY(find_functions(table));
  TRY(set_threads(table->library, threads));
  fill_tensors(table, data, sizes);
  kernel_call *calls = table->calls;
  ffi_any *arguments = table->arguments;
  for (int i = 0; i < ENTRY_COUNT; i++) {
    bind(table, ENTRIES[i], calls, arguments);
    calls += ENTRIES[i]->calls;
    arguments += ENTRIES[i]->arguments;
  }
  return DSV3C_OK;
}

dsv3c_status kernels_run(const kernel_table *table, const plan_entry *entry) {
  const kernel_call *call = table->calls;
  for (int i = 0; ENTRIES[i] != entry; i++) call += ENTRIES[i]->calls;
  for (const kernel_call *end = call + entry->calls; call < end; call++) {
    ffi_any result = {.type_index = FFI_NONE};
    if (call->function(0, call->arguments, call->count, &result) == 0) continue;
    return dsv3c_fail(DSV3C_KERNEL_FAILED, "the kernel %s failed: %s", dsv3c_plan.kernels[call->kernel], raised);
  }
  return DSV3C_OK;
}

void kernels_free(kernel_table *table) {
  if (!table) return;
  if (table->library) dlclose(table->library);
  if (table->copy >= 0) close(table->copy);
  free(table->functions);
  free(table->tensors);
  free(table->shapes);
  free(table->arguments);
  free(table->calls);
  free(table);
}
