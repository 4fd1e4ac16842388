/* A CUDA runtime that computes nothing: device memory is host memory, kernels are counted and not run.

   What      ONNX Runtime's real CUDA provider opens real graphs over it, decides for each operator whether it has
             a kernel, packs weights, binds buffers, copies and records. No number it gives means anything.
   Layout    One source for libcudart, libcublas and libcublasLt: what is not defined here and the provider imports
             is made by run.py as a function that returns 0.
   Source    CUDA 13's public interface, as far as onnxruntime-gpu 1.31 imports it. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { COPIES_IN, COPIES_OUT, COPIES_WITHIN, BYTES_IN, BYTES_OUT, KERNELS, RECORDED, REPLAYED, COUNTERS };
static int64_t counters[COUNTERS];
static int capturing;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void count(int which, int64_t by) { __sync_fetch_and_add(&counters[which], by); }
int64_t standin_counter(int which) { return counters[which]; }

/* The beginning of cudaDeviceProp; a GPU of compute capability 8.9. */
struct properties {
  char name[256]; char uuid[16]; char luid[8]; unsigned mask;
  size_t total; size_t shared; int registers, warp; size_t pitch; int threads, block[3], grid[3];
  size_t constants; int major, minor; size_t alignment, pitch_alignment; int processors, integrated, maps;
  int textures[32 - 0 + 1]; /* maxTexture1D … maxSurfaceCubemapLayered */
};

int cudaGetDeviceProperties(void *given, int device) {
  struct properties p; memset(&p, 0, sizeof p);
  strcpy(p.name, "stand-in"); p.total = (size_t)40 << 30; p.shared = 49152; p.registers = 65536; p.warp = 32;
  p.threads = 1024; p.block[0] = p.block[1] = 1024; p.block[2] = 64;
  p.grid[0] = 2147483647; p.grid[1] = p.grid[2] = 65535; p.constants = 65536; p.major = 8; p.minor = 9;
  p.alignment = 512; p.pitch_alignment = 32; p.processors = 128; p.maps = 1;
  memset(given, 0, 700); memcpy(given, &p, sizeof p - sizeof p.textures);
  return 0;
}
int cudaDeviceGetAttribute(int *value, int what, int device) {
  switch (what) {
    case 75: *value = 8; break;       /* compute capability */
    case 76: *value = 9; break;
    case 16: *value = 128; break;     /* multiprocessors */
    case 97: *value = 101376; break;  /* shared memory of a block, opted in */
    case 81: *value = 102400; break;  /* of a multiprocessor */
    default: *value = 1;
  }
  return 0;
}
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *n) { *n = 0; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
int cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
const char *cudaGetErrorString(int e) { return "stand-in"; }
const char *cudaGetErrorName(int e) { return "stand-in"; }

int cudaMalloc(void **p, size_t n) { return posix_memalign(p, 256, n ? n : 1) ? 2 : (memset(*p, 0, n), 0); }
int cudaMallocHost(void **p, size_t n) { return cudaMalloc(p, n); }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { return cudaMalloc(p, n); }
int cudaMallocFromPoolAsync(void **p, size_t n, void *pool, void *stream) { return cudaMalloc(p, n); }
int cudaFree(void *p) { free(p); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaFreeAsync(void *p, void *stream) { free(p); return 0; }
int cudaMemGetInfo(size_t *left, size_t *total) { *left = *total = (size_t)40 << 30; return 0; }

static void copied(size_t n, int kind) {
  if (kind == 1) { count(COPIES_IN, 1); count(BYTES_IN, n); }
  else if (kind == 2) { count(COPIES_OUT, 1); count(BYTES_OUT, n); }
  else count(COPIES_WITHIN, 1);
}
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { copied(n, kind); memcpy(to, from, n); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
  return cudaMemcpy(to, from, n, kind);
}
int cudaMemcpy2DAsync(void *to, size_t tp, const void *from, size_t fp, size_t w, size_t h, int kind, void *s) {
  copied(w * h, kind);
  for (size_t row = 0; row < h; row++) memcpy((char *)to + row * tp, (const char *)from + row * fp, w);
  return 0;
}
int cudaMemset(void *p, int v, size_t n) { memset(p, v, n); return 0; }
int cudaMemsetAsync(void *p, int v, size_t n, void *stream) { memset(p, v, n); return 0; }
int cudaMemcpyFromSymbol(void *to, const void *s, size_t n, size_t o, int kind) { memset(to, 0, n); return 0; }
int cudaPointerGetAttributes(void *given, const void *p) {
  struct { int type, device; const void *on_device, *on_host; } found = {2, 0, p, 0};
  memcpy(given, &found, sizeof found);
  return 0;
}

static int handle(void **p) { *p = malloc(64); return 0; }
int cudaStreamCreate(void **p) { return handle(p); }
int cudaStreamCreateWithFlags(void **p, unsigned flags) { return handle(p); }
int cudaEventCreate(void **p) { return handle(p); }
int cudaEventCreateWithFlags(void **p, unsigned flags) { return handle(p); }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 1.0f; return 0; }
int cudaMemPoolCreate(void **p, const void *given) { return handle(p); }
int cudaLaunchHostFunc(void *stream, void (*f)(void *), void *data) { f(data); return 0; }

int cudaStreamBeginCapture(void *stream, int mode) { pthread_mutex_lock(&lock); capturing = 1; return 0; }
int cudaStreamEndCapture(void *stream, void **graph) {
  capturing = 0; pthread_mutex_unlock(&lock); count(RECORDED, 1);
  return handle(graph);
}
int cudaStreamIsCapturing(void *stream, int *status) { *status = capturing; return 0; }
int cudaGraphInstantiate(void **p, void *graph, unsigned long long flags) { return handle(p); }
int cudaGraphLaunch(void *graph, void *stream) { count(REPLAYED, 1); return 0; }

int cudaLaunchKernel(const void *f, ...) { count(KERNELS, 1); return 0; }
int __cudaLaunchKernel(const void *f, ...) { count(KERNELS, 1); return 0; }
int cudaLaunchKernelExC(const void *c, const void *f, void **a) { count(KERNELS, 1); return 0; }
int __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return 0; }
void **__cudaRegisterFatBinary(void *binary) { static void *one[4]; return one; }
int cudaFuncGetAttributes(void *given, const void *f) {
  struct { size_t shared, constant, local; int threads, registers; } found = {0, 0, 0, 1024, 32};
  memcpy(given, &found, sizeof found);
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) {
  *n = 2; return 0;
}
int cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned v, unsigned long long g, int *status) {
  *f = 0; if (status) *status = 1; return 0;
}

int cublasCreate_v2(void **p) { return handle(p); }
int cublasLtCreate(void **p) { return handle(p); }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(int status) { return "stand-in"; }
const char *cublasGetStatusString(int status) { return "stand-in"; }
int cudnnCreate(void **p) { return handle(p); }
size_t cudnnGetVersion(void) { return 91000; }
const char *cudnnGetErrorString(int status) { return "stand-in"; }
