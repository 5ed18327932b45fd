// libcuda over host memory, for tests: what the runtime calls, with the prototypes of NVIDIA's cuda.h, checked as the
// driver checks it and more strictly. Kernels are functions that a test registers.
//
//   * Work is done as late as a real device may do it: copies and kernels wait in the stream until somebody waits for
//     them. Of a graph's nodes that could run next the one added last runs first. What is used too early shows.
//   * Every call but the few that need none wants a current context; every handle must be alive; addresses must lie in
//     live memory of the right kind, between pages that nobody may touch.
//   * A test makes the n-th call of a function fail (fake_fail), or the n-th kernel (fake_fail_kernel), after which
//     every call fails, as after a fault of a real device.
#define _GNU_SOURCE
#include "fake_driver.h"

// --- the driver

PUBLIC CUresult cuInit(unsigned flags) {
    if (failure.countdown > 0 && strcmp(failure.function, "cuInit") == 0 && --failure.countdown == 0)
        return failure.code;
    if (device_count == 0) return CUDA_ERROR_NO_DEVICE;
    CHECK(flags == 0, CUDA_ERROR_INVALID_VALUE);
    initialized = 1;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDriverGetVersion(int* version) {
    *version = driver_version;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetCount(int* count) {
    BEGIN_WITHOUT_CONTEXT;
    *count = device_count;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN_WITHOUT_CONTEXT;
    CHECK(ordinal >= 0 && ordinal < device_count, CUDA_ERROR_INVALID_DEVICE);
    *device = 100 + ordinal;  // no number to be taken for the ordinal
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
    BEGIN_WITHOUT_CONTEXT;
    CHECK(device >= 100, CUDA_ERROR_INVALID_DEVICE);
    snprintf(name, size, "Fake GPU %c", 'A' + device - 100);
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    BEGIN_WITHOUT_CONTEXT;
    CHECK(device >= 100, CUDA_ERROR_INVALID_DEVICE);
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = 0x7FFFFFFF; break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: *value = 65535; break;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = 65535; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 1; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = compute_capability / 10; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = compute_capability % 10; break;
        default: return refuse(__func__, "the attribute is known", CUDA_ERROR_INVALID_VALUE);
    }
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) {
    BEGIN_WITHOUT_CONTEXT;
    CHECK(device >= 100, CUDA_ERROR_INVALID_DEVICE);
    *bytes = capacity;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDevicePrimaryCtxRetain(CUcontext* made, CUdevice device) {
    BEGIN_WITHOUT_CONTEXT;
    CHECK(device >= 100, CUDA_ERROR_INVALID_DEVICE);
    retained++;
    context.kind = CONTEXT, context.alive = 1;
    *made = (CUcontext)&context;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    CHECK(device >= 100 && retained > 0, CUDA_ERROR_INVALID_CONTEXT);
    context.alive = --retained > 0;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuCtxSetCurrent(CUcontext wanted) {
    if (lost) return lost;
    CHECK(is(wanted, CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
    current = (Object*)wanted;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemGetInfo(size_t* free_bytes, size_t* total) {
    BEGIN;
    *free_bytes = capacity - used, *total = capacity;
    return CUDA_SUCCESS;
}

static CUresult allocate(void** address, size_t bytes, int pinned) {
    CHECK(bytes > 0 && memory_count < MOST, CUDA_ERROR_INVALID_VALUE);
    if (!pinned && used + bytes > capacity) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    char* mapping = mmap(NULL, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    mprotect(mapping + PAGE, pages, PROT_READ | PROT_WRITE);
    char* data = mapping + PAGE;
    memset(data, 0xFF, bytes);  // NaN: what was there before
    memories[memory_count++] = (Memory){data, bytes, pinned, 1};
    if (!pinned) used += bytes;
    *address = data;
    return CUDA_SUCCESS;
}
static CUresult release(void* address, int pinned) {
    drain(NULL);
    for (int i = 0; i < memory_count; i++) {
        Memory* m = &memories[i];
        if (!m->alive || m->data != address || m->pinned != pinned) continue;
        m->alive = 0;
        if (!pinned) used -= m->bytes;
        munmap(m->data - PAGE, (m->bytes + PAGE - 1) / PAGE * PAGE + 2 * PAGE);
        return CUDA_SUCCESS;
    }
    return refuse(__func__, "the address was given out", CUDA_ERROR_INVALID_VALUE);
}

PUBLIC CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
    BEGIN;
    return allocate((void**)address, bytes, 0);
}
PUBLIC CUresult cuMemFree(CUdeviceptr address) { return release((void*)address, 0); }
PUBLIC CUresult cuMemAllocHost(void** address, size_t bytes) {
    BEGIN;
    return allocate(address, bytes, 1);
}
PUBLIC CUresult cuMemFreeHost(void* address) { return release(address, 1); }

static CUresult copy(void* target, int to_host, const void* source, int from_host, size_t bytes, CUstream on) {
    CHECK(is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    CHECK(lies_in(target, bytes, to_host) && lies_in(source, bytes, from_host), CUDA_ERROR_INVALID_VALUE);
    Work* work = add(COPY);
    work->target = target, work->source = (char*)source, work->bytes = bytes;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t bytes, CUstream on) {
    BEGIN;
    return copy((void*)target, 0, source, 1, bytes, on);
}
PUBLIC CUresult cuMemcpyDtoHAsync(void* target, CUdeviceptr source, size_t bytes, CUstream on) {
    BEGIN;
    return copy(target, 1, (void*)source, 0, bytes, on);
}
PUBLIC CUresult cuMemcpyDtoDAsync(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream on) {
    BEGIN;
    CHECK(target + bytes <= source || source + bytes <= target, CUDA_ERROR_INVALID_VALUE);
    return copy((void*)target, 0, (void*)source, 0, bytes, on);
}
PUBLIC CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream on) {
    BEGIN;
    CHECK(is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    CHECK(lies_in((void*)target, bytes, 0), CUDA_ERROR_INVALID_VALUE);
    Work* work = add(FILL);
    work->target = (char*)target, work->value = value, work->bytes = bytes;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamCreate(CUstream* made, unsigned flags) {
    BEGIN;
    (void)flags;
    *made = make(sizeof stream, STREAM);
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuStreamSynchronize(CUstream on) {
    BEGIN;
    CHECK(is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    return drain(NULL);
}
PUBLIC CUresult cuStreamDestroy(CUstream on) {
    CHECK(is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    return end(on);
}
PUBLIC CUresult cuEventCreate(CUevent* made, unsigned flags) {
    BEGIN;
    (void)flags;
    *made = make(sizeof(Event), EVENT);
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuEventRecord(CUevent event, CUstream on) {
    BEGIN;
    CHECK(is(event, EVENT) && is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    ((Event*)event)->pending++;
    add(RECORD)->event = (Event*)event;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuEventSynchronize(CUevent event) {
    BEGIN;
    CHECK(is(event, EVENT), CUDA_ERROR_INVALID_HANDLE);
    return drain((Event*)event);
}
PUBLIC CUresult cuEventElapsedTime(float* milliseconds, CUevent first, CUevent last) {
    BEGIN;
    CHECK(is(first, EVENT) && is(last, EVENT), CUDA_ERROR_INVALID_HANDLE);
    const Event *a = (Event*)first, *b = (Event*)last;
    CHECK(a->recorded && b->recorded, CUDA_ERROR_INVALID_HANDLE);
    CHECK(!a->pending && !b->pending, CUDA_ERROR_NOT_READY);
    *milliseconds = (float)(b->milliseconds - a->milliseconds);
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuEventDestroy(CUevent event) {
    CHECK(is(event, EVENT), CUDA_ERROR_INVALID_HANDLE);
    return end(event);
}

typedef struct {
    Object object;
    char* image;
    size_t bytes;
} Module;

typedef struct {
    const char* data;
    size_t bytes;
    int machine_code, architecture;
} Image;

static int runs(const Image* image) {
    const int built_for = image->architecture, own = compute_capability;
    return built_for <= own && (!image->machine_code || built_for / 10 == own / 10);
}

// A cubin, an ELF file that ends with the table of its sections, or PTX that ends with a zero byte.
static CUresult read_image(const char* data, Image* image) {
    *image = (Image){.data = data};
    if (memcmp(data, "\x7f" "ELF", 4) != 0) {
        const char* target = strstr(data, "\n.target sm_");
        CHECK(target, CUDA_ERROR_INVALID_IMAGE);
        image->architecture = atoi(target + 12), image->bytes = strlen(data);
        return CUDA_SUCCESS;
    }
    uint16_t machine, rows, row_bytes;
    uint64_t table;
    uint32_t flags;
    memcpy(&machine, data + 18, 2), memcpy(&flags, data + 48, 4);
    memcpy(&table, data + 40, 8), memcpy(&row_bytes, data + 58, 2), memcpy(&rows, data + 60, 2);
    CHECK(machine == 190, CUDA_ERROR_INVALID_IMAGE);
    image->machine_code = 1, image->architecture = flags >> 8 & 0xFF, image->bytes = table + (size_t)rows * row_bytes;
    return CUDA_SUCCESS;
}

// Of a fat binary (see tests/targets/cuda/fatbin.py) the newest machine code that the device runs, else such PTX.
static CUresult choose_image(const char* data, Image* best) {
    uint16_t header;
    uint64_t size;
    memcpy(&header, data + 6, 2), memcpy(&size, data + 8, 8);
    const char* end = data + header + size;
    int found = 0;
    for (data += header; data < end; data += size) {
        Image image;
        uint16_t kind;
        uint32_t before, architecture;
        memcpy(&kind, data, 2), memcpy(&before, data + 4, 4), memcpy(&size, data + 8, 8);
        memcpy(&architecture, data + 28, 4);
        data += before;
        CUresult read = read_image(data, &image);
        if (read != CUDA_SUCCESS) return read;
        CHECK(image.architecture == (int)architecture && image.machine_code == (kind == 2) && image.bytes <= size,
              CUDA_ERROR_INVALID_IMAGE);
        int better = !found || image.machine_code > best->machine_code ||
                     (image.machine_code == best->machine_code && image.architecture > best->architecture);
        if (runs(&image) && better) *best = image, found = 1;
    }
    CHECK(found, CUDA_ERROR_NO_BINARY_FOR_GPU);
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuModuleLoadData(CUmodule* made, const void* data) {
    BEGIN;
    Image image;
    CUresult read = memcmp(data, "\x50\xED\x55\xBA", 4) == 0 ? choose_image(data, &image) : read_image(data, &image);
    if (read != CUDA_SUCCESS) return read;
    CHECK(runs(&image), CUDA_ERROR_NO_BINARY_FOR_GPU);
    snprintf(loaded_image, sizeof loaded_image, "%s_%d", image.machine_code ? "sm" : "compute", image.architecture);
    Module* module = make(sizeof *module, MODULE);
    module->image = malloc(image.bytes);
    memcpy(module->image, image.data, image.bytes);
    module->bytes = image.bytes;
    *made = (CUmodule)module;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuModuleUnload(CUmodule module) {
    CHECK(is(module, MODULE), CUDA_ERROR_INVALID_HANDLE);
    free(((Module*)module)->image);
    return end(module);
}
PUBLIC CUresult cuModuleGetFunction(CUfunction* made, CUmodule handle, const char* name) {
    BEGIN;
    CHECK(is(handle, MODULE), CUDA_ERROR_INVALID_HANDLE);
    const Module* module = (Module*)handle;
    CHECK(memmem(module->image, module->bytes, name, strlen(name)), CUDA_ERROR_NOT_FOUND);
    for (int i = 0; i < kernel_count; i++) {
        if (strcmp(kernels[i].name, name)) continue;
        Function* function = make(sizeof *function, FUNCTION);
        live_objects--;  // it goes with its module
        function->kernel = &kernels[i];
        *made = (CUfunction)function;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}
PUBLIC CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                               unsigned shared, CUstream on, void** parameters, void** extra) {
    BEGIN;
    CHECK(is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    CUDA_KERNEL_NODE_PARAMS p = {f, gx, gy, gz, bx, by, bz, shared, parameters, extra, NULL, NULL};
    Launch launch;
    CUresult checked = check_launch(&p, &launch);
    if (checked == CUDA_SUCCESS) add(LAUNCH)->launch = launch;
    return checked;
}
PUBLIC CUresult cuGraphCreate(CUgraph* made, unsigned flags) {
    BEGIN;
    CHECK(flags == 0, CUDA_ERROR_INVALID_VALUE);
    *made = make(sizeof(Graph), GRAPH);
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphAddKernelNode(CUgraphNode* made, CUgraph handle, const CUgraphNode* needed, size_t count,
                                     const CUDA_KERNEL_NODE_PARAMS* p) {
    BEGIN;
    CHECK(is(handle, GRAPH), CUDA_ERROR_INVALID_HANDLE);
    Graph* graph = (Graph*)handle;
    CHECK(graph->count < MOST && count < MOST, CUDA_ERROR_INVALID_VALUE);
    Launch launch;
    CUresult checked = check_launch(p, &launch);
    if (checked != CUDA_SUCCESS) return checked;
    Node* node = make(sizeof *node, NODE);
    live_objects--;  // it goes with its graph
    node->launch = launch, node->graph = graph, node->number = graph->count;
    for (size_t i = 0; i < count; i++) {
        const Node* before = (Node*)needed[i];
        CHECK(is(before, NODE) && before->graph == graph, CUDA_ERROR_INVALID_HANDLE);
        node->dependencies[node->count++] = before->number;
    }
    graph->nodes[graph->count++] = node;
    *made = (CUgraphNode)node;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph handle, unsigned long long flags) {
    BEGIN;
    CHECK(is(handle, GRAPH), CUDA_ERROR_INVALID_HANDLE);
    CHECK(flags == 0, CUDA_ERROR_INVALID_VALUE);
    Executable* executable = make(sizeof *executable, EXECUTABLE);
    executable->graph = (Graph*)handle;
    for (int i = 0; i < executable->graph->count; i++) executable->launches[i] = executable->graph->nodes[i]->launch;
    *made = (CUgraphExec)executable;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphExecKernelNodeSetParams(CUgraphExec handle, CUgraphNode place,
                                               const CUDA_KERNEL_NODE_PARAMS* p) {
    BEGIN;
    CHECK(is(handle, EXECUTABLE) && is(place, NODE), CUDA_ERROR_INVALID_HANDLE);
    Executable* executable = (Executable*)handle;
    const Node* node = (Node*)place;
    CHECK(node->graph == executable->graph, CUDA_ERROR_INVALID_VALUE);
    changed_nodes++;
    return check_launch(p, &executable->launches[node->number]);
}
PUBLIC CUresult cuGraphLaunch(CUgraphExec handle, CUstream on) {
    BEGIN;
    CHECK(is(handle, EXECUTABLE) && is(on, STREAM), CUDA_ERROR_INVALID_HANDLE);
    const Executable* executable = (Executable*)handle;
    const Graph* graph = executable->graph;
    static char ran[MOST];
    memset(ran, 0, sizeof ran);
    launched_graphs++;
    for (int turn = 0; turn < graph->count; turn++) {
        int next = graph->count;
        for (int i = graph->count - 1; i >= 0 && next == graph->count; i--) {
            int ready = !ran[i];
            for (int j = 0; j < graph->nodes[i]->count; j++) ready &= ran[graph->nodes[i]->dependencies[j]];
            if (ready) next = i;
        }
        ran[next] = 1;
        add(LAUNCH)->launch = executable->launches[next];
    }
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuGraphExecDestroy(CUgraphExec handle) {
    CHECK(is(handle, EXECUTABLE), CUDA_ERROR_INVALID_HANDLE);
    return end(handle);
}
PUBLIC CUresult cuGraphDestroy(CUgraph handle) {
    CHECK(is(handle, GRAPH), CUDA_ERROR_INVALID_HANDLE);
    return end(handle);
}
PUBLIC CUresult cuGetErrorName(CUresult code, const char** text) {
    static char name[64];
    snprintf(name, sizeof name, "CUDA_ERROR_%d", code);
    *text = name;
    return CUDA_SUCCESS;
}
PUBLIC CUresult cuGetErrorString(CUresult code, const char** text) {
    (void)code;
    *text = last_message;
    return CUDA_SUCCESS;
}
