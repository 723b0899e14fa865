#!/usr/bin/env bash
# Compiles the CUDA library on a machine that needs no GPU and no CUDA build of torch: four GPU generations,
# warnings and register spills are errors. Then links it and loads it without a driver.
set -euo pipefail
cd "$(dirname "$0")/../kpconv_ops/csrc"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags=(-std=c++17 -O3 -I . -Werror all-warnings -Xptxas -warn-spills,-Werror -Xcompiler -fPIC,-fvisibility=hidden,-Wall)
for arch in 80 90 100 120; do flags+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
for source in cuda/*.cu; do
  echo "$source" "$out/$(basename "$source").o"
done | xargs -P "${MAX_JOBS:-$(nproc)}" -L 1 bash -c '"${NVCC:-nvcc}" "${@:1:$#-2}" -c "${@: -2:1}" -o "${@: -1}"' _ "${flags[@]}"
"${NVCC:-nvcc}" -shared -cudart static "$out"/*.o -o "$out/libkpconv_cuda.so" -Xlinker --no-undefined
python3 - "$out/libkpconv_cuda.so" <<'PY'
import ctypes, sys
print("CUDA library: compiles for sm_80 90 100 120 and loads; CUDA runtime", ctypes.CDLL(sys.argv[1]).kp_runtime_version_cuda())
PY
