#include "cuda/cuda.h"

KP_API const char* kp_last_error_cuda() { return kp::last_error.c_str(); }

// 1000 * major + 10 * minor of the CUDA runtime inside this library.
KP_API int kp_runtime_version_cuda() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}
