// The C interface of both libraries: libkpconv_cpu (names end in _cpu) and libkpconv_cuda (names end in _cuda).
//
// Raw pointers and sizes, no torch and no Python. Arrays are dense, row-major and live on `device`; `stream` is a CUDA
// stream. Every function returns 0, or another number and a message from kp_last_error. kpconv_ops/_native.py reads
// this file to learn the signatures, so it is the only place that states them.
//
// dtype codes: 0 float32, 1 float64, 2 float16, 3 bfloat16, 4 int64; any other is an error. Features are 0 to 3,
// coordinates 0 or 1 or, where it is said, 4. Packed samples: sample b of B owns the rows offsets[b] to offsets[b + 1]
// (int64).
//
// Neighbourhoods are CSR: query i sees the supports indices[splits[i]] to indices[splits[i + 1]] (not included). splits
// may be a slice of a longer array; num_indices is the length of all of `indices`. No function that takes num_indices
// reads or writes out of bounds, whatever splits and indices hold. On the CPU, splits that do not rise within
// [0, num_indices] and indices that are no row of the supports are an error, and results are unspecified. On CUDA an
// error would have to wait for the device: splits are clamped to [0, num_indices], such indices count for nothing.
// What functions read otherwise is trusted, unless they say more: other functions here made it, or Python checks it.
#pragma once
#include <cstdint>

#define KP_PASTE_(name, suffix) name##suffix
#define KP_PASTE(name, suffix) KP_PASTE_(name, suffix)
#define KP_API extern "C" __attribute__((visibility("default")))
#define KP_OP(name) KP_API int KP_PASTE(name, KP_SUFFIX)
#define KP_CPU_OP(name) KP_OP(name)  // not in the CUDA library
#define KP_CUDA_OP(name) KP_OP(name)  // not in the CPU library

// ---- geometry: subsampling and neighbours

// The smallest and largest coordinates (also int64) low and high [pieces, batch, 3] of the pieces that each sample is
// cut into; NaN where a coordinate is not finite, where there is no point +-infinity or the largest int64 and its
// negative. On both devices offsets are clamped to [0, n].
KP_OP(kp_bounds)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, int64_t pieces,
                 void* low, void* high, int device, void* stream);

// A grid (kpconv_ops/_grid.py) has for each sample boxes [batch, 4]: the origin and the edge length of a cell; and
// cells [batch, 4]: their number along x, y and z, and the key of the first.

// Writes the key of the cell of each of n points; a point outside the grid counts to the nearest cell.
KP_OP(kp_cell_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, const double* boxes,
                    const int64_t* cells, int64_t batch, int64_t* keys, int device, void* stream);

// Sorts n keys in [0, num_keys); order: where each was, ascending among equal ones. On CUDA torch sorts.
KP_CPU_OP(kp_sort_keys)(const int64_t* keys, int64_t n, int64_t num_keys, int64_t* sorted, int32_t* order, int device,
                        void* stream);

// Of n points in the order of their cells, ranks [n + 1] says how many cells begin before each. Writes where each cell
// begins, splits [ranks[n] + 1], and the cell of each point in the caller's order, inverse [n].
KP_OP(kp_cells)(const int64_t* keys, const int32_t* order, const int64_t* ranks, int64_t n, int64_t* splits,
                int64_t* inverse, int device, void* stream);

// Segment s holds the rows order[splits[s]] to order[splits[s + 1]] (not included) of values [*, channels]. Writes the
// mean [segments, channels] of each, summed in float64; 0 for an empty segment.
KP_OP(kp_segment_mean)(int dtype, const void* values, int64_t channels, const int32_t* order, const int64_t* splits,
                       int64_t segments, void* means, int device, void* stream);

// Writes the sum [segments, channels] of each segment, formed in float32, or in float64 when dtype is.
KP_OP(kp_segment_sum)(int dtype, const void* values, int64_t channels, const int32_t* order, const int64_t* splits,
                      int64_t segments, void* sums, int device, void* stream);

// Writes the most frequent of the labels of each segment, of equally frequent ones the smallest. scratch: as many
// values as there are rows in the segments.
KP_OP(kp_segment_mode)(const int64_t* labels, const int32_t* order, const int64_t* splits, int64_t segments,
                       int64_t* scratch, int64_t* modes, int device, void* stream);

// Searches take supports sorted by cell: their coordinates [num_supports, 3], rows in the caller's order, and keys.
// query_order lists the queries in the order in which they are worked on; null: as they are.

// Writes how many supports lie within `radius` of each query. No cell edge is shorter than 1.001 * radius.
KP_OP(kp_radius_count)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                       const int32_t* query_order, const void* supports, const int32_t* support_rows,
                       const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                       int64_t batch, double radius, int64_t* counts, int device, void* stream);

// Writes the rows of the nearest splits[q + 1] - splits[q] supports within `radius` of each query q to
// indices[splits[q]...], ordered by distance, then row. hits, on CUDA and only when a query keeps more than 224: 8
// (float32) or 16 (float64) bytes for every index.
KP_OP(kp_radius_fill)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                      const int32_t* query_order, const void* supports, const int32_t* support_rows,
                      const int64_t* keys, int64_t num_supports, const double* boxes, const int64_t* cells,
                      int64_t batch, double radius, const int64_t* splits, void* hits, int32_t* indices, int device,
                      void* stream);

// Writes the row of the nearest support of each query (of equally near ones the smallest) and its distance. Every
// sample with queries has supports.
KP_OP(kp_nearest)(int dtype, const void* queries, int64_t num_queries, const int64_t* query_offsets,
                  const int32_t* query_order, const void* supports, const int32_t* support_rows, const int64_t* keys,
                  int64_t num_supports, const double* boxes, const int64_t* cells, int64_t batch, int64_t* indices,
                  void* distances, int device, void* stream);

// The neighbourhoods of the queries, transposed. `tasks` (1 on CUDA) share the queries evenly. Adds to counts [tasks,
// num_supports], zeros before, how many pairs a task has with each support. CUDA counts all indices: it reads no splits.
KP_OP(kp_transpose_count)(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t num_queries,
                          int64_t num_supports, int64_t tasks, int32_t* counts, int device, void* stream);

// Writes to out[out_splits[s]...] for each support the queries that see it, ascending. places [tasks, num_supports]:
// where the first pair of a task with a support goes; overwritten. On CUDA, where splits overlap, pairs beyond those
// counted find no place; where splits leave indices out, elements of `out` are not written.
KP_OP(kp_transpose_fill)(const int32_t* indices, int64_t num_indices, const int64_t* splits, int64_t num_queries,
                         int64_t num_supports, int64_t tasks, int64_t* places, const int64_t* out_splits, int32_t* out,
                         int device, void* stream);

// ---- convolution

// aggregate [num_queries, num_kernel_points, channels] of `dtype`: for each kernel point the sum of the neighbours'
// features times its influence (0 linear, 1 constant, 2 gaussian) on them. Coordinates and modulations are of
// `geometry`; queries and supports [., 3]. points_of: 0 kernel_points [num_kernel_points, 3] serve everywhere; 1 each
// query, 2 each support has its own [., num_kernel_points, 3]. modulations, null or [., num_kernel_points] as the kernel
// points, multiply the influence.
KP_OP(kp_aggregate)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                    int64_t num_supports, const void* kernel_points, int64_t num_kernel_points, int points_of,
                    const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                    const void* features, int64_t channels, double extent, int influence, int closest, void* aggregate,
                    int device, void* stream);

// The gradients of `aggregate` with respect to the kernel points, 0 where a neighbour lies on one, and modulations (null
// like them) of the queries. With `closest` only the nearest kernel point of a neighbour has one.
KP_OP(kp_deform_backward)(int geometry, int dtype, const void* queries, int64_t num_queries, const void* supports,
                          int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                          const void* modulations, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                          const void* features, int64_t channels, double extent, int influence, int closest,
                          const void* grad_aggregate, void* grad_points, void* grad_modulations, int device,
                          void* stream);

// nearest [num_queries, num_kernel_points]: the neighbour, a support row, nearest to each kernel point of a query, the
// first one in a tie, -1 without neighbours.
KP_OP(kp_kernel_point_neighbors)(int geometry, const void* queries, int64_t num_queries, const void* supports,
                                 int64_t num_supports, const void* kernel_points, int64_t num_kernel_points,
                                 const int32_t* indices, int64_t num_indices, const int64_t* splits, int32_t* nearest,
                                 int device, void* stream);

// values [num_queries, channels]: maximum over each neighbourhood (0 if empty; NaN wins); winners: the support row it
// comes from, the first in a tie, -1 if empty.
KP_OP(kp_max_pool)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                   int64_t num_indices, const int64_t* splits, int64_t num_queries, void* values, int32_t* winners,
                   int device, void* stream);

// out [num_supports, channels]: the gradients of the queries that a support won. The neighbourhoods are the transposed
// ones: splits are the supports', indices rows of the queries. winners are compared only, and may hold anything.
KP_OP(kp_max_pool_backward)(int dtype, const void* gradient, const int32_t* winners, int64_t num_queries,
                            int64_t channels, const int32_t* indices, int64_t num_indices, const int64_t* splits,
                            int64_t num_supports, void* out, int device, void* stream);

// out [num_queries, channels]: the sum over each neighbourhood of the features times the weights [num_indices] (null:
// 1), formed in float32, or in float64 when dtype is; the weights have that type.
KP_OP(kp_weighted_sum)(int dtype, const void* features, int64_t num_supports, int64_t channels, const int32_t* indices,
                       int64_t num_indices, const int64_t* splits, const void* weights, int64_t num_queries, void* out,
                       int device, void* stream);

// ---- sparse voxels

// A kernel map `rows` [num_taps, num_out]: the input row that a tap reads for an output row, -1 for none.

// Voxel floor(point / size) of sample b is numbered by ((b * nz + z) * ny + y) * nx + x, where x, y and z count from
// low[b] [batch, 3] and stay below nx, ny and nz.

// Writes the key of the voxel of each of n points (also int64 ones).
KP_OP(kp_voxel_keys)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, double size,
                     const int64_t* low, int64_t nx, int64_t ny, int64_t nz, int64_t* keys, int device, void* stream);

// coords [num_voxels, 3]: the voxels of keys[first[0]], keys[first[1]]..., times `scale`.
KP_OP(kp_voxel_coords)(const int64_t* keys, const int64_t* first, int64_t num_voxels, int64_t scale, const int64_t* low,
                       int64_t nx, int64_t ny, int64_t nz, int64_t* coords, int device, void* stream);

// Tap j of run r looks for queries[i] + shifts[r] + j * step in the ascending `keys` [num_keys + 1], the last of which
// is larger than all. rows [num_runs, run, num_queries]: the row of the key, order[p] for position p (null: p), or -1.
KP_OP(kp_find_keys)(const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* queries,
                    int64_t num_queries, const int64_t* shifts, int64_t num_runs, int64_t run, int64_t step,
                    int32_t* rows, int device, void* stream);

// For each of n points the rows [n, 8] of the eight voxels whose centres surround it, x fastest, and their trilinear
// weights [n, 8], which sum to 1; -1 and 0 for a voxel that is not there or has no weight. Voxels are `stride` times
// `size` long; their ascending `keys` [num_keys + 1] as above, in boxes with room for one more on every side.
KP_OP(kp_trilinear)(int dtype, const void* points, int64_t n, const int64_t* offsets, int64_t batch, double size,
                    int64_t stride, const int64_t* keys, const int32_t* order, int64_t num_keys, const int64_t* low,
                    int64_t nx, int64_t ny, int64_t nz, int32_t* rows, void* weights, int device, void* stream);

// transposed [num_taps, num_in], all -1 before: the output row that reads an input row at a tap. An input row that a tap
// reads twice, and one outside [-1, num_in), is an error on the CPU; on CUDA one of the two stays, the other is passed
// over.
KP_OP(kp_transpose_map)(const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t num_in, int32_t* transposed,
                        int device, void* stream);

// out [num_out, out_channels] = the sum over the taps of the features [num_in, in_channels] that they read times their
// weights [num_taps, in_channels, out_channels], or `transposed` [num_taps, out_channels, in_channels]. float32 or
// float64; the same bits for every number of threads. Rows outside [-1, num_in) are an error, results are unspecified.
KP_CPU_OP(kp_sparse_conv)(int dtype, const void* features, int64_t num_in, int64_t in_channels, const void* weights,
                          int transposed, const int32_t* rows, int64_t num_taps, int64_t num_out, void* out,
                          int64_t out_channels, int device, void* stream);

// Adds to grad_weights [num_taps, in_channels, out_channels] what kp_sparse_conv's weights get for a gradient [num_out,
// out_channels] of `out`.
KP_CPU_OP(kp_sparse_conv_weights)(int dtype, const void* features, int64_t num_in, int64_t in_channels,
                                  const void* gradient, const int32_t* rows, int64_t num_taps, int64_t num_out,
                                  int64_t out_channels, void* grad_weights, int device, void* stream);

// gathered [num_rows, num_taps, channels]: the features that the taps read for the output rows from `first` on, zeros
// where there are none or a row is outside [-1, num_features).
KP_CUDA_OP(kp_gather_taps)(int dtype, const void* features, int64_t num_features, int64_t channels,
                           const int32_t* rows, int64_t num_taps, int64_t num_out, int64_t first, int64_t num_rows,
                           void* gathered, int device, void* stream);
