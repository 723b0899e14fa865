// Stands in for MinkowskiEngine's file of the same name: its copy of the NVTX C++ header declares what the CUDA toolkit's
// own declares, too. It only marks functions for a profiler's time line.
#pragma once

#define CUDF_FUNC_RANGE()
