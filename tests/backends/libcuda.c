/* A stand-in for libcuda.so.1, for tests/backends/test_rtx_cuda.py: what the package cuda-bindings
 * really passes to the driver shows here, on a machine without one. Memory is that of the host. It
 * says what it was asked on stderr.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long pointer;
#define SAY(...) fprintf(stderr, __VA_ARGS__)
static void *const CONTEXT = (void *)0x77, *const STREAM = (void *)0x55;

int cuInit(unsigned flags) { SAY("init %u\n", flags); return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Card %d", device);
    return 0;
}
int cuDeviceGetUuid_v2(unsigned char uuid[16], int device) {
    for (int i = 0; i < 16; i++) uuid[i] = 16 * device + i;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? (device == 0 ? 9 : 6) : -1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    SAY("retain %d\n", device);
    *context = CONTEXT;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { SAY("release %d\n", device); return 0; }
int cuCtxSetCurrent(void *context) {
    SAY("current %s\n", context == CONTEXT ? "ours" : context ? "unknown" : "none");
    return 0;
}
int cuStreamCreate(void **stream, unsigned flags) {
    SAY("stream %u\n", flags);
    *stream = STREAM;
    return 0;
}
int cuStreamDestroy_v2(void *stream) { SAY("destroy %d\n", stream == STREAM); return 0; }
int cuStreamSynchronize(void *stream) { SAY("synchronize %d\n", stream == STREAM); return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 900000; *total = 8000000; return 0; }
int cuMemAlloc_v2(pointer *address, size_t size) {
    SAY("allocate %zu\n", size);
    if (size > 900000) return 2; /* CUDA_ERROR_OUT_OF_MEMORY */
    *address = (pointer)malloc(size);
    memset((void *)*address, 255, size);
    return 0;
}
int cuMemFree_v2(pointer address) { SAY("free\n"); free((void *)address); return 0; }
int cuMemsetD8Async(pointer address, unsigned char value, size_t size, void *stream) {
    SAY("set %d %zu %d\n", value, size, stream == STREAM);
    memset((void *)address, value, size);
    return 0;
}
int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t size, void *stream) {
    SAY("in %zu %d\n", size, stream == STREAM);
    memcpy((void *)to, from, size);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t size, void *stream) {
    SAY("out %zu %d\n", size, stream == STREAM);
    memcpy(to, (void *)from, size);
    return 0;
}

/* how the package finds the others: by name, of the newest version there is */
int cuGetProcAddress_v2(const char *name, void **found, int version, pointer flags, int *status) {
    char newer[128];
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW);
    snprintf(newer, sizeof newer, "%s_v2", name);
    *found = dlsym(library, newer);
    if (!*found) *found = dlsym(library, name);
    if (status) *status = *found ? 0 : 1;
    return 0;
}
