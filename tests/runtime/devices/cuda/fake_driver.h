// What the functions of fake_driver.c share: objects with handles, memory, the stream, and the test's side.
#pragma once

#include <cuda.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#undef cuEventElapsedTime

#define MOST 4096
#define MOST_ARGUMENTS 32
#define PAGE 4096

typedef int (*ShimLaunch)(void (*)(void* const*), void* const*, unsigned, const unsigned*, unsigned, int, int, unsigned,
                          unsigned, char*, size_t);

typedef enum { CONTEXT = 1, STREAM, EVENT, MODULE, FUNCTION, GRAPH, NODE, EXECUTABLE } Kind;

typedef struct {
    Kind kind;
    int alive;
} Object;

typedef struct {
    char name[128];
    void (*entry)(void* const*);
    ShimLaunch launch;
    unsigned parameters, threads;
} Kernel;

typedef struct {
    Object object;
    const Kernel* kernel;
} Function;

typedef struct {
    const Kernel* kernel;
    unsigned grid[3];
    void* arguments[MOST_ARGUMENTS];
} Launch;

typedef struct {
    Object object;
    Launch launch;
    int dependencies[MOST], count;  // nodes of the graph by number
    struct Graph* graph;
    int number;
} Node;

typedef struct Graph {
    Object object;
    Node* nodes[MOST];
    int count;
} Graph;

typedef struct {
    Object object;
    Graph* graph;
    Launch launches[MOST];
} Executable;

typedef struct {
    Object object;
    int recorded, pending;
    double milliseconds;
} Event;

typedef struct {
    char* data;
    size_t bytes;
    int pinned, alive;
} Memory;

typedef struct {
    enum { COPY, FILL, LAUNCH, RECORD } kind;
    char *target, *source;
    size_t bytes;
    unsigned char value;
    Launch launch;
    Event* event;
} Work;

static int device_count, compute_capability, driver_version, initialized, retained;
static size_t capacity, used;
static Object context, stream;
static __thread Object* current;
static Memory memories[MOST];
static int memory_count, live_objects;
static Kernel kernels[MOST];
static int kernel_count, kernel_runs, launched_graphs, changed_nodes;
static Work* queue;
static size_t queued, room, done;
static CUresult lost;
static struct {
    char function[64];
    int countdown;
    CUresult code;
} failure;
static int kernel_countdown;
static CUresult kernel_failure;
static char last_message[512], loaded_image[32];

#define PUBLIC __attribute__((visibility("default")))
#define CHECK(condition, code) \
    if (!(condition)) return refuse(__func__, #condition, code)

static CUresult refuse(const char* function, const char* condition, CUresult code) {
    snprintf(last_message, sizeof last_message, "%s: not so: %s", function, condition);
    return code;
}

// What every call does first: a failure that was asked for, or the fault that the device had.
static CUresult begin(const char* function, int needs_context) {
    if (failure.countdown > 0 && strcmp(function, failure.function) == 0 && --failure.countdown == 0)
        return failure.code;
    if (lost) return lost;
    CHECK(initialized, CUDA_ERROR_NOT_INITIALIZED);
    CHECK(!needs_context || (current == &context && context.alive), CUDA_ERROR_INVALID_CONTEXT);
    return CUDA_SUCCESS;
}
#define BEGIN                                  \
    do {                                       \
        CUresult begun = begin(__func__, 1);   \
        if (begun != CUDA_SUCCESS) return begun; \
    } while (0)
#define BEGIN_WITHOUT_CONTEXT                  \
    do {                                       \
        CUresult begun = begin(__func__, 0);   \
        if (begun != CUDA_SUCCESS) return begun; \
    } while (0)

static void* make(size_t bytes, Kind kind) {
    Object* object = calloc(1, bytes);  // never freed: a handle used after its end is recognised
    object->kind = kind;
    object->alive = 1;
    live_objects++;
    return object;
}

static int is(const void* handle, Kind kind) {
    const Object* object = handle;
    return object && object->kind == kind && object->alive;
}

static CUresult end(void* handle) {
    ((Object*)handle)->alive = 0;
    live_objects--;
    return CUDA_SUCCESS;
}

static int lies_in(const void* address, size_t bytes, int pinned) {
    for (int i = 0; i < memory_count; i++) {
        const Memory* m = &memories[i];
        const char* at = address;
        if (m->alive && m->pinned == pinned && at >= m->data && at + bytes <= m->data + m->bytes) return 1;
    }
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

// --- the test's side

PUBLIC void fake_reset(int devices, int capability, size_t bytes, int version) {
    device_count = devices, compute_capability = capability, capacity = bytes, driver_version = version;
    initialized = retained = 0, used = 0, memory_count = 0, live_objects = 0, kernel_count = 0;
    kernel_runs = launched_graphs = changed_nodes = 0, queued = done = 0, lost = 0;
    failure.countdown = kernel_countdown = 0, current = NULL, context.alive = 0, last_message[0] = loaded_image[0] = 0;
}
PUBLIC void fake_kernel(const char* name, void (*entry)(void* const*), ShimLaunch launch, unsigned parameters,
                        unsigned threads) {
    Kernel* kernel = &kernels[kernel_count++];
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    kernel->entry = entry, kernel->launch = launch, kernel->parameters = parameters, kernel->threads = threads;
}
PUBLIC void fake_fail(const char* function, int countdown, CUresult code) {
    snprintf(failure.function, sizeof failure.function, "%s", function);
    failure.countdown = countdown, failure.code = code;
}
PUBLIC void fake_fail_kernel(int countdown, CUresult code) { kernel_countdown = countdown, kernel_failure = code; }
PUBLIC int fake_kernel_runs(void) { return kernel_runs; }
PUBLIC int fake_graph_launches(void) { return launched_graphs; }
PUBLIC int fake_changed_nodes(void) { return changed_nodes; }
PUBLIC const char* fake_message(void) { return last_message; }
PUBLIC const char* fake_loaded(void) { return loaded_image; }  // sm_XX or compute_XX, of the last module
// Handles and allocations that were not given back.
PUBLIC int fake_live(void) {
    int live = live_objects + retained;
    for (int i = 0; i < memory_count; i++) live += memories[i].alive;
    return live;
}

// --- the stream

static Work* add(int kind) {
    if (queued == room) {
        room = room ? 2 * room : 1024;
        queue = realloc(queue, room * sizeof *queue);
    }
    Work* work = &queue[queued++];
    memset(work, 0, sizeof *work);
    work->kind = kind;
    return work;
}

static void run_kernel(const Launch* launch) {
    kernel_runs++;
    if (kernel_countdown > 0 && --kernel_countdown == 0) {
        lost = kernel_failure;
        return;
    }
    const Kernel* kernel = launch->kernel;
    char message[256] = "";
    int order = kernel_runs % 2;  // forward and reverse
    if (kernel->launch(kernel->entry, launch->arguments, kernel->parameters, launch->grid, kernel->threads, order, order,
                       0, 0, message, sizeof message)) {
        snprintf(last_message, sizeof last_message, "%s: %s", kernel->name, message);
        lost = CUDA_ERROR_ILLEGAL_ADDRESS;
    }
}

static CUresult drain(const Event* until) {
    while (done < queued && !lost && !(until && !until->pending)) {
        Work* work = &queue[done++];
        if (work->kind == COPY) memmove(work->target, work->source, work->bytes);
        if (work->kind == FILL) memset(work->target, work->value, work->bytes);
        if (work->kind == LAUNCH) run_kernel(&work->launch);
        if (work->kind == RECORD) {
            work->event->pending--;
            work->event->recorded = 1;
            work->event->milliseconds = now();
        }
    }
    if (done == queued) done = queued = 0;
    return lost;
}

static CUresult check_launch(const CUDA_KERNEL_NODE_PARAMS* p, Launch* launch) {
    CHECK(is(p->func, FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    const Kernel* kernel = ((Function*)p->func)->kernel;
    CHECK(p->gridDimX >= 1 && p->gridDimX <= 0x7FFFFFFF, CUDA_ERROR_INVALID_VALUE);
    CHECK(p->gridDimY >= 1 && p->gridDimY <= 65535, CUDA_ERROR_INVALID_VALUE);
    CHECK(p->gridDimZ >= 1 && p->gridDimZ <= 65535, CUDA_ERROR_INVALID_VALUE);
    CHECK(p->blockDimX == kernel->threads && p->blockDimY == 1 && p->blockDimZ == 1, CUDA_ERROR_INVALID_VALUE);
    CHECK(p->sharedMemBytes == 0 && p->extra == NULL && p->kernelParams, CUDA_ERROR_INVALID_VALUE);
    launch->kernel = kernel;
    launch->grid[0] = p->gridDimX, launch->grid[1] = p->gridDimY, launch->grid[2] = p->gridDimZ;
    for (unsigned i = 0; i < kernel->parameters; i++) {
        memcpy(&launch->arguments[i], p->kernelParams[i], sizeof(CUdeviceptr));
        CHECK(lies_in(launch->arguments[i], 4, 0), CUDA_ERROR_INVALID_VALUE);
        CHECK((uintptr_t)launch->arguments[i] % 16 == 0, CUDA_ERROR_MISALIGNED_ADDRESS);
    }
    return CUDA_SUCCESS;
}
