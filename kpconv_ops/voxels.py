"""Sparse voxels: the occupied cells of a grid, and which of them a kernel connects."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _native
from ._checks import COORDINATE_DTYPES, check_count, check_positive, check_size, check_tensor, offset_bounds
from ._csr import splits_of


@dataclass(frozen=True, eq=False)
class Voxels:
    """Occupied cells, each once; sample by sample, in a sample ordered by (z, y, x): x runs fastest."""

    coords: Tensor  # [V, 3] int64 (x, y, z)
    offsets: Tensor  # [B + 1] int64
    inverse: Tensor  # [N] int64, the row of each input's cell


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Which input row meets which output row at each tap of a kernel.

    Tap k owns the pairs `splits[k]:splits[k + 1]`; the offset of the input from the output runs through the kernel's
    taps with x fastest, then y, then z. Within a tap no input row and no output row occurs twice.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, a negative number of rows.
    """

    in_rows: Tensor  # [E] int32
    out_rows: Tensor  # [E] int32, ascending within a tap
    splits: Tensor  # [K + 1] int64, on the CPU, where the loop over taps runs
    num_in: int
    num_out: int

    def __post_init__(self):
        check_tensor("in_rows", self.in_rows, (None,), (torch.int32,))
        check_tensor("out_rows", self.out_rows, (len(self.in_rows),), (torch.int32,), like=self.in_rows)
        check_tensor("splits", self.splits, (None,), (torch.int64,))
        check_size("num_in", self.num_in)
        check_size("num_out", self.num_out)

    @property
    def transposed(self) -> "KernelMap":
        """Input and output swapped: the map of the transposed convolution. Its input rows ascend within a tap."""
        return KernelMap(self.out_rows, self.in_rows, self.splits, self.num_out, self.num_in)


def voxelize(points: Tensor, offsets: Tensor, voxel_size: float) -> Voxels:
    """The occupied voxels of packed point sets: the unique `floor(points / voxel_size)` of each sample.

    Args:
        points: `[N, 3]` float32 or float64; `voxel_size` is in the same unit.
        offsets: `[B + 1]` int64, rising from 0 to N; samples may be empty.
        voxel_size: edge length.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe N rows, a size that is not positive,
            coordinates that are not finite or span too many voxels to number them in 64 bits.
    """
    check_tensor("points", points, (None, 3), COORDINATE_DTYPES)
    check_tensor("offsets", offsets, (None,), (torch.int64,), like=points)
    voxel_size = check_positive("voxel_size", voxel_size)
    # A tensor as the divisor: CUDA multiplies by the reciprocal of a number, which may land in another cell.
    cells = torch.floor(points.detach() / points.new_tensor(voxel_size))
    return Voxels(*torch.ops.kpconv_ops.unique_voxels(cells, offsets, "points"))


def stride_coords(coords: Tensor, offsets: Tensor, stride: int) -> Voxels:
    """The occupied voxels of a coarser grid: the unique `floor(coords / stride) * stride` of each sample.

    Args:
        coords: `[V, 3]` int64.
        offsets: `[B + 1]` int64, rising from 0 to V; samples may be empty.
        stride: edge length of the coarser voxels, in units of `coords`.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe V rows, a stride below 1, coordinates that
            span too many voxels to number them in 64 bits.
    """
    check_tensor("coords", coords, (None, 3), (torch.int64,))
    check_tensor("offsets", offsets, (None,), (torch.int64,), like=coords)
    stride = check_count("stride", stride)
    cells = torch.div(coords, stride, rounding_mode="floor") * stride
    return Voxels(*torch.ops.kpconv_ops.unique_voxels(cells, offsets, "coords"))


def kernel_map(
    in_coords: Tensor,
    in_offsets: Tensor,
    out_coords: Tensor,
    out_offsets: Tensor,
    kernel_size: int,
    dilation: int = 1,
) -> KernelMap:
    """The pairs of voxels that each tap of a cubic kernel connects: `in_coords[i] = out_coords[o] + offset[k]`.

    As in MinkowskiEngine (Choy et al. 2019) the K = kernel_size^3 offsets run with x fastest, and along an axis are
    `(i - kernel_size // 2) * dilation` for an odd size and `i * dilation` for an even one. Samples never mix.

    Args:
        in_coords: `[Vin, 3]` int64, unique within a sample, in any order.
        in_offsets: `[B + 1]` int64.
        out_coords: `[Vout, 3]` int64, unique within a sample, in any order.
        out_offsets: `[B + 1]` int64.
        kernel_size: taps along an axis.
        dilation: step between taps in units of the coordinates; the tensor stride times the dilation of the layer.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, offsets that do not describe the rows, a size or dilation below 1,
            coordinates that span too many voxels to number them in 64 bits.
    """
    check_tensor("in_coords", in_coords, (None, 3), (torch.int64,))
    check_tensor("in_offsets", in_offsets, (None,), (torch.int64,), like=in_coords)
    check_tensor("out_coords", out_coords, (None, 3), (torch.int64,), like=in_coords)
    check_tensor("out_offsets", out_offsets, (len(in_offsets),), (torch.int64,), like=in_coords)
    kernel_size, dilation = check_count("kernel_size", kernel_size), check_count("dilation", dilation)
    pairs = torch.ops.kpconv_ops.kernel_map(in_coords, in_offsets, out_coords, out_offsets, kernel_size, dilation)
    return KernelMap(*pairs, len(in_coords), len(out_coords))


class _Box:
    """Numbers the voxels of a box, one box a sample: an int64 key that orders voxels by (sample, z, y, x).

    A step along an axis adds the same number to the key of any voxel, and no voxel within `reach` of the given ones
    shares its key with another.
    """

    def __init__(self, name: str, coords: Tensor, samples: Tensor, num_samples: int, reach: tuple[int, int] = (0, 0)):
        index = samples[:, None].expand(-1, 3)
        empty = coords.new_zeros(num_samples, 3)
        low = empty.scatter_reduce(0, index, coords, "amin", include_self=False) + reach[0]
        high = empty.scatter_reduce(0, index, coords, "amax", include_self=False) + reach[1]
        size = (high - low + 1).amax(0).tolist() if num_samples else [1, 1, 1]
        if min(size) < 1 or num_samples * size[0] * size[1] * size[2] > 2**63:
            raise ValueError(
                f"{name} must lie closer together: {num_samples} samples of up to {' x '.join(map(str, size))} voxels "
                "cannot be numbered in 64 bits"
            )
        self.low, self.size = low, size

    def keys(self, coords: Tensor, samples: Tensor) -> Tensor:
        x, y, z = (coords - self.low[samples]).unbind(1)
        return self.shift(x, y, samples * self.size[2] + z)

    def shift(self, x, y, z):
        return (z * self.size[1] + y) * self.size[0] + x


def _samples(offsets: Tensor, rows: int) -> Tensor:
    """The sample of each row."""
    return torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff(), output_size=rows)


torch.library.define(
    "kpconv_ops::unique_voxels",
    "(Tensor cells, Tensor offsets, str name) -> (Tensor coords, Tensor offsets, Tensor inverse)",
)
torch.library.define(
    "kpconv_ops::kernel_map",
    "(Tensor in_coords, Tensor in_offsets, Tensor out_coords, Tensor out_offsets, int kernel_size, int dilation) "
    "-> (Tensor in_rows, Tensor out_rows, Tensor splits)",
)


@torch.library.impl("kpconv_ops::unique_voxels", ("cpu", "cuda"))
def _unique_voxels(cells, offsets, name):
    offset_bounds("offsets", offsets, len(cells))
    if not ((cells > -(2**62)) & (cells < 2**62)).all():
        raise ValueError(f"{name} must be finite and within 2^62 voxels of the origin")
    coords = cells.long()
    samples = _samples(offsets, len(coords))
    box = _Box(name, coords, samples, len(offsets) - 1)
    keys, inverse = torch.unique(box.keys(coords, samples), return_inverse=True)
    unique = coords.new_empty(len(keys), 3)
    unique[inverse] = coords  # every input of a cell writes the same
    owners = samples.new_empty(len(keys))
    owners[inverse] = samples
    return unique, splits_of(torch.bincount(owners, minlength=len(offsets) - 1)), inverse


@torch.library.register_fake("kpconv_ops::unique_voxels")
def _unique_voxels_fake(cells, offsets, name):
    voxels = torch.library.get_ctx().new_dynamic_size()
    return offsets.new_empty(voxels, 3), torch.empty_like(offsets), offsets.new_empty(cells.shape[0])


@torch.library.impl("kpconv_ops::kernel_map", ("cpu", "cuda"))
def _kernel_map(in_coords, in_offsets, out_coords, out_offsets, kernel_size, dilation):
    offset_bounds("in_offsets", in_offsets, len(in_coords))
    offset_bounds("out_offsets", out_offsets, len(out_coords))
    axis = [(i - kernel_size // 2 * (kernel_size % 2)) * dilation for i in range(kernel_size)]
    in_samples, out_samples = _samples(in_offsets, len(in_coords)), _samples(out_offsets, len(out_coords))
    box = _Box(
        "in_coords and out_coords",
        torch.cat([in_coords, out_coords]),
        torch.cat([in_samples, out_samples]),
        len(in_offsets) - 1,
        reach=(min(axis[0], 0), max(axis[-1], 0)),
    )
    keys, order = box.keys(in_coords, in_samples).sort(stable=True)
    queries = box.keys(out_coords, out_samples)
    shifts = [box.shift(x, y, z) for z in axis for y in axis for x in axis]
    hits = in_coords.new_empty(len(shifts), len(queries), dtype=torch.int32)
    _native.call(
        "kp_find_keys", keys, keys, len(keys), queries, len(queries), keys.new_tensor(shifts), len(shifts), hits
    )
    taps, out_rows = (hits >= 0).nonzero(as_tuple=True)
    in_rows = order[hits[taps, out_rows]]
    splits = splits_of(torch.bincount(taps, minlength=len(shifts)))
    return in_rows.int(), out_rows.int(), splits.cpu()


@torch.library.register_fake("kpconv_ops::kernel_map")
def _kernel_map_fake(in_coords, in_offsets, out_coords, out_offsets, kernel_size, dilation):
    pairs = torch.library.get_ctx().new_dynamic_size()
    rows = in_coords.new_empty(pairs, dtype=torch.int32)
    return rows, torch.empty_like(rows), torch.empty(kernel_size**3 + 1, dtype=torch.int64)
