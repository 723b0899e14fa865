#include "cpu/cpu.h"

KP_API const char* kp_last_error_cpu() { return kp::last_error.c_str(); }

KP_API void kp_set_parallel_for_cpu(void* function) {
  kp::torch_parallel_for = reinterpret_cast<kp::ParallelFor>(function);
}
