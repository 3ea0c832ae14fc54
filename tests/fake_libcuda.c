/* A libcuda.so.1 whose device is the host: shows that the project's calls pass through the real cuda-bindings.
 *
 * Two kernels: `add` stores source[i] + value in target; `shape` stores what it was launched with. Streams have no delay;
 * the Python stand-in (fake_cuda.py) has. REE_FAKE_LOG=1 prints which function was asked for, and of which version.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
enum { LAUNCHES_MAX = 8, ARGS_MAX = 64 };

typedef struct {
    int kernel; /* 0: add, 1: shape */
    unsigned shape[5];
    char args[ARGS_MAX];
} launch;

typedef struct {
    int count;
    launch launches[LAUNCHES_MAX];
} graph;

static graph captured;
static int is_capturing, kernels[2], module_object, context_object;
static int current_contexts;
static uintptr_t pinned_start, pinned_end;

static void run(const launch *l)
{
    uint64_t a[4];
    memcpy(a, l->args, sizeof a);
    if (l->kernel == 1)
        memcpy((void *)a[0], l->shape, sizeof l->shape);
    else
        for (uint64_t i = 0; i < a[2]; i++)
            ((uint8_t *)a[0])[i] = (uint8_t)(((uint8_t *)a[1])[i] + a[3]);
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 12040, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "Host %d", device), SUCCESS; }
int cuDeviceTotalMem(size_t *n, int device) { return *n = (size_t)5 << 30, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    /* as cuda.h numbers them: multiprocessors, clock, L2, shared memory, capability, f32 : f64 */
    const int known[][2] = {{16, 132}, {13, 1980000}, {38, 50 << 20}, {97, 227 << 10}, {75, 9}, {76, 0}, {87, 2}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute)
            return *value = known[i][1], SUCCESS;
    return INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &context_object, SUCCESS; }
int cuDevicePrimaryCtxRelease(int device) { return SUCCESS; }
int cuCtxPushCurrent(void *context) { return current_contexts++, context == &context_object ? SUCCESS : INVALID_VALUE; }
int cuCtxPopCurrent(void **context)
{
    *context = &context_object;
    return current_contexts-- ? SUCCESS : INVALID_VALUE;
}

int cuStreamCreate(void **stream, unsigned flags) { return *stream = malloc(1), flags == 1 ? SUCCESS : INVALID_VALUE; }
int cuStreamDestroy(void *stream) { return free(stream), SUCCESS; }
int cuStreamSynchronize(void *stream) { return stream ? SUCCESS : INVALID_VALUE; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return event && !flags ? SUCCESS : INVALID_VALUE; }
int cuEventCreate(void **event, unsigned flags)
{
    int *made = malloc(sizeof *made);
    *made = (int)flags;
    return *event = made, flags == 0 || flags == 2 ? SUCCESS : INVALID_VALUE;
}
int cuEventDestroy(void *event) { return free(event), SUCCESS; }
int cuEventRecord(void *event, void *stream) { return event ? SUCCESS : INVALID_VALUE; }
int cuEventSynchronize(void *event) { return event ? SUCCESS : INVALID_VALUE; }
int cuEventElapsedTime(float *ms, int *start, int *end)
{
    return *ms = 1.5f, *start == 0 && *end == 0 ? SUCCESS : INVALID_VALUE; /* 2: made without timing */
}

int cuMemAllocAsync(uint64_t *address, size_t n, void *stream)
{
    if (n > (size_t)4 << 30)
        return OUT_OF_MEMORY;
    *address = (uintptr_t)aligned_alloc(256, (n + 255) / 256 * 256);
    return stream ? SUCCESS : INVALID_VALUE;
}
int cuMemFreeAsync(uint64_t address, void *stream) { return free((void *)address), SUCCESS; }
int cuMemHostAlloc(void **address, size_t n, unsigned flags)
{
    *address = malloc(n);
    pinned_start = (uintptr_t)*address;
    pinned_end = pinned_start + n;
    return SUCCESS;
}
int cuMemFreeHost(void *address) { return free(address), SUCCESS; }
int cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t n, void *stream)
{
    return memcpy((void *)to, from, n), stream ? SUCCESS : INVALID_VALUE;
}
int cuMemcpyDtoHAsync(void *to, uint64_t from, size_t n, void *stream)
{
    return memcpy(to, (void *)from, n), stream ? SUCCESS : INVALID_VALUE;
}
int cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t n, void *stream)
{
    return memcpy((void *)to, (void *)from, n), stream ? SUCCESS : INVALID_VALUE;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void *stream)
{
    return memset((void *)to, value, n), stream ? SUCCESS : INVALID_VALUE;
}
int cuPointerGetAttribute(void *value, int attribute, uint64_t address)
{
    const int is_pinned = pinned_start <= address && address < pinned_end;
    if (address == 0)
        return INVALID_VALUE;
    if (attribute == 2) /* the kind of memory: 1 host, 2 device */
        *(unsigned *)value = is_pinned ? 1 : 2;
    else if (attribute == 9)
        *(int *)value = 0;
    else
        return INVALID_VALUE;
    return SUCCESS;
}

int cuModuleLoadData(void **module, const char *image)
{
    *module = &module_object;
    return strcmp(image, "image") == 0 ? SUCCESS : 209; /* no binary for this device */
}
int cuModuleUnload(void *module) { return module == &module_object ? SUCCESS : INVALID_VALUE; }
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    const int kernel = strcmp(name, "add") == 0 ? 0 : strcmp(name, "shape") == 0 ? 1 : -1;
    if (kernel < 0)
        return NOT_FOUND;
    *function = &kernels[kernel];
    return SUCCESS;
}
int cuFuncGetAttribute(int *value, int attribute, int *function)
{
    *value = attribute == 1 ? 16 : attribute == 8 ? (*function ? *function : 48 << 10) : -1;
    return *value < 0 ? INVALID_VALUE : SUCCESS;
}
int cuFuncSetAttribute(int *function, int attribute, int value)
{
    return *function = value, attribute == 8 ? SUCCESS : INVALID_VALUE;
}
int cuLaunchKernel(int *function, unsigned x, unsigned y, unsigned z, unsigned block, unsigned block_y, unsigned block_z,
                   unsigned shared, void *stream, void **params, void **extra)
{
    launch l = {(int)(function - kernels), {x, y, z, block, shared}, {0}};
    if (params || !stream || block_y != 1 || block_z != 1 || shared > (unsigned)(*function ? *function : 48 << 10))
        return INVALID_VALUE;
    if (extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4] != 0)
        return INVALID_VALUE;
    memcpy(l.args, extra[1], *(size_t *)extra[3]);
    if (is_capturing)
        captured.launches[captured.count++] = l;
    else
        run(&l);
    return SUCCESS;
}
int cuStreamBeginCapture(void *stream, int mode)
{
    captured.count = 0;
    return is_capturing = 1, mode == 2 ? SUCCESS : INVALID_VALUE; /* relaxed */
}
int cuStreamEndCapture(void *stream, void **made)
{
    is_capturing = 0;
    *made = memcpy(malloc(sizeof captured), &captured, sizeof captured);
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void **made, void *from, uint64_t flags)
{
    *made = memcpy(malloc(sizeof captured), from, sizeof captured);
    return flags ? INVALID_VALUE : SUCCESS;
}
int cuGraphDestroy(void *g) { return free(g), SUCCESS; }
int cuGraphExecDestroy(void *g) { return free(g), SUCCESS; }
int cuGraphLaunch(graph *g, void *stream)
{
    for (int i = 0; i < g->count; i++)
        run(&g->launches[i]);
    return SUCCESS;
}

/* NVRTC asks for it, wherever a driver is. */
int cuGetExportTable(const void **table, const void *id) { return *table = 0, NOT_FOUND; }

#define FUNCTIONS(F)                                                                                                   \
    F(cuInit) F(cuDriverGetVersion) F(cuDeviceGetCount) F(cuDeviceGet) F(cuDeviceGetName) F(cuDeviceTotalMem)          \
    F(cuDeviceGetAttribute) F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxRelease) F(cuCtxPushCurrent)               \
    F(cuCtxPopCurrent) F(cuStreamCreate) F(cuStreamDestroy) F(cuStreamSynchronize) F(cuStreamWaitEvent)                \
    F(cuEventCreate) F(cuEventDestroy) F(cuEventRecord) F(cuEventSynchronize) F(cuEventElapsedTime)                    \
    F(cuMemAllocAsync) F(cuMemFreeAsync) F(cuMemHostAlloc) F(cuMemFreeHost) F(cuMemcpyHtoDAsync) F(cuMemcpyDtoHAsync)  \
    F(cuMemcpyDtoDAsync) F(cuMemsetD8Async) F(cuPointerGetAttribute) F(cuModuleLoadData) F(cuModuleUnload)             \
    F(cuModuleGetFunction) F(cuFuncGetAttribute) F(cuFuncSetAttribute) F(cuLaunchKernel) F(cuStreamBeginCapture)       \
    F(cuStreamEndCapture) F(cuGraphInstantiateWithFlags) F(cuGraphDestroy) F(cuGraphExecDestroy) F(cuGraphLaunch)

/* How the bindings find functions: by name and least version of CUDA. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    *function = 0;
#define FIND(known)                                                                                                    \
    if (strcmp(name, #known) == 0)                                                                                     \
        *function = (void *)known;
    FUNCTIONS(FIND)
    if (strcmp(name, "cuGraphInstantiate") == 0)
        *function = (void *)cuGraphInstantiateWithFlags;
    if (strcmp(name, "cuGetProcAddress") == 0 || strcmp(name, "cuGetProcAddress_v2") == 0)
        *function = (void *)cuGetProcAddress_v2;
    if (*function && getenv("REE_FAKE_LOG"))
        printf("%s %d\n", name, version);
    if (status)
        *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
