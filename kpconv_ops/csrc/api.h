// The C interface of both libraries: libkpconv_cpu (names end in _cpu) and libkpconv_cuda (names end in _cuda).
//
// Raw pointers and sizes, no torch and no Python. Arrays are dense, row-major and live on `device`; `stream` is a CUDA
// stream. Every function returns 0, or another number and a message from kp_last_error. kpconv_ops/_native.py reads
// this file to learn the signatures, so it is the only place that states them.
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

// A grid (kpconv_ops/_grid.py) has for each sample boxes [batch, 4]: the origin and the edge length of a cell; and
// cells [batch, 4]: their number along x, y and z, and the key of the first.

// Writes the key of the cell of each of n points; a point outside the grid counts to the nearest cell.
KP_OP(kp_cell_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, const double* boxes,
                    const int64_t* cells, int64_t batch, int64_t* keys, int device, void* stream);

// Segment s holds the rows order[splits[s]] to order[splits[s + 1]] (not included) of values [*, channels]; no segment
// is empty. Writes the mean [segments, channels] of each, summed in float64.
KP_OP(kp_segment_mean)(int dtype, const void* values, int64_t channels, const int64_t* order, const int64_t* splits,
                       int64_t segments, void* means, int device, void* stream);

// Writes the most frequent of the labels of each segment, of equally frequent ones the smallest. scratch: as many
// values as there are rows in the segments.
KP_OP(kp_segment_mode)(const int64_t* labels, const int64_t* order, const int64_t* splits, int64_t segments,
                       int64_t* scratch, int64_t* modes, int device, void* stream);

// Searches take supports sorted by cell: their coordinates [3, num_supports], rows in the caller's order, and keys.
// query_order lists the queries in the order in which they are worked on.

// Writes how many supports lie within `radius` of each query. No cell edge is shorter than 1.001 * radius.
KP_OP(kp_radius_count)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                       const int64_t* query_order, const void* supports, const int64_t* support_rows,
                       const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                       int64_t batch, double radius, int64_t* counts, int device, void* stream);

// Writes the rows of the nearest splits[q + 1] - splits[q] supports within `radius` of each query q to
// indices[splits[q]...], ordered by distance, then row. hits: 8 (float32) or 16 (float64) bytes for every index.
KP_OP(kp_radius_fill)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                      const int64_t* query_order, const void* supports, const int64_t* support_rows,
                      const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                      int64_t batch, double radius, const int64_t* splits, void* hits, int32_t* indices, int device,
                      void* stream);

// Writes the row of the nearest support of each query (of equally near ones the smallest) and its distance. Every
// sample with queries has supports.
KP_OP(kp_nearest)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                  const int64_t* query_order, const void* supports, const int64_t* support_rows, const int64_t* keys,
                  int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, int64_t* indices,
                  void* distances, int device, void* stream);
