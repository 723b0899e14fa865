// The C interface of both libraries: libkpconv_cpu (names end in _cpu) and libkpconv_cuda (names end in _cuda).
//
// Raw pointers and sizes, no torch and no Python. Arrays are dense, row-major and live on `device`; `stream` is a CUDA
// stream. Every function returns 0, or another number and a message from kp_last_error. kpconv_ops/_native.py reads this
// file to learn the signatures, so it is the only place that states them.
//
// dtype codes: 0 float32, 1 float64, 2 float16, 3 bfloat16. Coordinates are 0 or 1. Packed samples: sample b of B owns
// the rows offsets[b] to offsets[b + 1] (int64).
#pragma once
#include <cstdint>

#define KP_PASTE_(name, suffix) name##suffix
#define KP_PASTE(name, suffix) KP_PASTE_(name, suffix)
#define KP_API extern "C" __attribute__((visibility("default")))
#define KP_OP(name) KP_API int KP_PASTE(name, KP_SUFFIX)

// ---- geometry: subsampling and neighbours
