"""Kernel maps: which sparse voxels the taps of a kernel connect."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _native
from ._boxes import Box, extents_of
from ._checks import check_count, check_size, check_tensor
from ._csr import splits_of
from .neighbors import Neighbors

_MAX_TAPS, _MAX_ENTRIES = 2**20, 2**31  # a table of 8 GB: more is a mistake, and would end the process


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Which input row each output row reads at each tap of a kernel: `rows[k, o]`, -1 where there is none.

    The offset of the input from the output runs through the kernel's taps with x fastest, then y, then z. Within a tap
    no input row occurs twice.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, a negative number of rows. What uses it raises it, on the CPU, for rows outside
            [-1, num_in); `transposed`, which gradients need, also for a tap that reads a row twice.
    """

    rows: Tensor  # [K, num_out] int32
    num_in: int
    # What is computed once. The transposed map has the same, swapped: not the map itself, since maps that hold each
    # other free their memory late.
    _transposed: list[Tensor] = field(default_factory=list, repr=False)
    _neighbors: tuple[list[Neighbors], list[Neighbors]] = field(default_factory=lambda: ([], []), repr=False)

    def __post_init__(self):
        check_tensor("rows", self.rows, (None, None), (torch.int32,))
        check_size("num_in", self.num_in)

    @property
    def num_out(self) -> int:
        return self.rows.shape[1]

    @property
    def transposed(self) -> "KernelMap":
        """Input and output swapped: the map of the transposed convolution. Computed once."""
        if not self._transposed:
            self._transposed.append(torch.ops.kpconv_ops.transpose_map(self.rows, self.num_in))
        return KernelMap(self._transposed[0], self.num_out, [self.rows], self._neighbors[::-1])

    @property
    def neighbors(self) -> Neighbors:
        """For every output row the input rows that it reads, tap by tap: what pooling takes. Computed once."""
        own, _ = self._neighbors
        if not own:
            own.append(Neighbors(*torch.ops.kpconv_ops.map_neighbors(self.rows, self.num_in), self.num_in))
        return own[0]


def kernel_map(
    in_coords: Tensor,
    in_offsets: Tensor,
    out_coords: Tensor,
    out_offsets: Tensor,
    kernel_size: int | tuple[int, int, int],
    dilation: int = 1,
) -> KernelMap:
    """The voxels that each tap of a kernel connects: `in_coords[rows[k, o]] = out_coords[o] + offset[k]`.

    As in MinkowskiEngine (Choy et al. 2019) the offsets run with x fastest, and along an axis are
    `(i - size // 2) * dilation` for an odd size and `i * dilation` for an even one. Samples never mix.

    Args:
        in_coords: `[Vin, 3]` int64, unique within a sample, in any order. Of coordinates given twice, here on CUDA or
            in `out_coords`, a convolution can be computed, but no gradient.
        in_offsets: `[B + 1]` int64.
        out_coords: `[Vout, 3]` int64, unique within a sample, in any order.
        out_offsets: `[B + 1]` int64.
        kernel_size: taps along every axis, or a tuple of those along (x, y, z).
        dilation: step between taps in units of the coordinates; the tensor stride times the dilation of the layer.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe the rows, a size or dilation below 1, more
            than 2^20 taps, 2^31 or more pairs of a tap and an output voxel, coordinates that span too many voxels to
            number them in 64 bits or, on the CPU, come twice in `in_coords`.
    """
    check_tensor("in_coords", in_coords, (None, 3), (torch.int64,))
    check_tensor("in_offsets", in_offsets, (None,), (torch.int64,), like=in_coords)
    check_tensor("out_coords", out_coords, (None, 3), (torch.int64,), like=in_coords)
    check_tensor("out_offsets", out_offsets, (len(in_offsets),), (torch.int64,), like=in_coords)
    sizes, dilation = check_kernel_size(kernel_size), check_count("dilation", dilation)
    rows = torch.ops.kpconv_ops.kernel_map(in_coords, in_offsets, out_coords, out_offsets, sizes, dilation)
    return KernelMap(rows, len(in_coords))


def check_kernel_size(kernel_size: int | tuple[int, int, int]) -> list[int]:
    """Taps along x, y and z."""
    if isinstance(kernel_size, list) or (isinstance(kernel_size, tuple) and len(kernel_size) != 3):
        raise ValueError(f"kernel_size must be a size or three in a tuple, got {kernel_size}")
    sizes = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * 3
    return [check_count("kernel_size", size) for size in sizes]


torch.library.define(
    "kpconv_ops::kernel_map",
    "(Tensor in_coords, Tensor in_offsets, Tensor out_coords, Tensor out_offsets, int[] kernel_size, int dilation) "
    "-> Tensor",
)
torch.library.define("kpconv_ops::transpose_map", "(Tensor rows, SymInt num_in) -> Tensor")
torch.library.define("kpconv_ops::map_neighbors", "(Tensor rows, SymInt num_in) -> (Tensor indices, Tensor splits)")


@torch.library.impl("kpconv_ops::kernel_map", ("cpu", "cuda"))
def _kernel_map(in_coords, in_offsets, out_coords, out_offsets, kernel_size, dilation):
    taps = math.prod(kernel_size)
    if taps > _MAX_TAPS or taps * len(out_coords) >= _MAX_ENTRIES:
        raise ValueError(
            f"kernel_size must give at most 2^20 taps, and with {len(out_coords)} output voxels fewer than 2^31 "
            f"entries, got {taps} taps"
        )
    in_coords, in_offsets = in_coords.contiguous(), in_offsets.contiguous()
    out_coords, out_offsets = out_coords.contiguous(), out_offsets.contiguous()
    extents = [
        extents_of("in_coords", in_coords, 1, "in_offsets", in_offsets),
        extents_of("out_coords", out_coords, 1, "out_offsets", out_offsets),
    ]
    first = [-(size // 2) * (size % 2) * dilation for size in kernel_size]
    last = [start + (size - 1) * dilation for start, size in zip(first, kernel_size, strict=True)]
    box = Box("in_coords and out_coords", extents, (first, last), in_coords.device)
    keys, order = box.ascending_keys("in_coords", in_coords, 1, in_offsets)
    queries = box.keys(out_coords, 1, out_offsets)
    # The taps of a run along x have keys that follow each other.
    y_steps, z_steps = (range(first[axis], last[axis] + 1, dilation) for axis in (1, 2))
    runs = keys.new_tensor([box.step(first[0], y, z) for z in z_steps for y in y_steps])
    rows = keys.new_empty(taps, len(queries), dtype=torch.int32)
    searches = queries, len(queries), runs, len(runs), kernel_size[0], dilation
    _native.call("kp_find_keys", keys, keys, order, len(in_coords), *searches, rows)
    return rows


@torch.library.register_fake("kpconv_ops::kernel_map")
def _kernel_map_fake(in_coords, in_offsets, out_coords, out_offsets, kernel_size, dilation):
    return in_coords.new_empty(math.prod(kernel_size), out_coords.shape[0], dtype=torch.int32)


@torch.library.impl("kpconv_ops::transpose_map", ("cpu", "cuda"))
def _transpose_map(rows, num_in):
    rows = rows.contiguous()
    transposed = torch.full((len(rows), num_in), -1, dtype=torch.int32, device=rows.device)
    _native.call("kp_transpose_map", rows, rows, *rows.shape, num_in, transposed)
    return transposed


@torch.library.register_fake("kpconv_ops::transpose_map")
def _transpose_map_fake(rows, num_in):
    return rows.new_empty(rows.shape[0], num_in)


@torch.library.impl("kpconv_ops::map_neighbors", ("cpu", "cuda"))
def _map_neighbors(rows, num_in):
    if not _native.on_cuda(rows) and rows.numel():
        low, high = rows.aminmax()
        if low < -1 or high >= num_in:
            raise ValueError(f"rows of kernel_map must be in [-1, {num_in})")
    by_output = rows.t().contiguous()
    occupied = by_output >= 0
    return by_output[occupied], splits_of(occupied.sum(1))


@torch.library.register_fake("kpconv_ops::map_neighbors")
def _map_neighbors_fake(rows, num_in):
    edges = torch.library.get_ctx().new_dynamic_size()
    return rows.new_empty(edges), rows.new_empty(rows.shape[1] + 1, dtype=torch.int64)
