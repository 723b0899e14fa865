"""Other libraries, each imported when it is measured: a missing one shows as not installed, a failing one as failed.

Their inputs are converted beforehand; what they return is as close to ours as they offer, and where that is a list of
arrays the conversion to CSR is part of the call.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import textbook
from .row import Contender

# The packages whose versions a report states; the distributions they come in are named after their builds, too.
PACKAGES = (
    "scipy", "sklearn", "open3d", "torch_pointcloud", "torch_geometric", "torch_points_kernels", "MinkowskiEngine",
    "spconv",
)  # fmt: skip


def threads() -> int:
    return torch.get_num_threads()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def tensors(result) -> tuple[Tensor, ...]:
    """Arrays of a library as tensors."""
    return tuple(each if isinstance(each, Tensor) else torch.from_numpy(np.asarray(each)) for each in result)


def on_cpu(name: str, setup: Callable, plain: Callable) -> Contender:
    return Contender(name, setup, plain, on_cpu=True)


# ---- convolution


def torch_pointcloud_kpconv(layer, leaves: list[Tensor], finish: Callable) -> Contender:
    """KPConv of torch-pointcloud with our kernel points and weights; with offsets when `leaves` has them."""

    def setup():
        from torch_pointcloud.layers.kpconv_blocks import KPConv

        convolution = KPConv(3, *layer.weights.shape[1:], len(layer.kernel_points), layer.radius, layer.extent)
        convolution.to(layer.points.device).kernel.copy_(layer.kernel_points)
        rows = torch.arange(len(layer.points), device=layer.points.device).repeat_interleave(layer.nb.splits.diff())
        edges = torch.stack([layer.nb.indices.long(), rows])

        def convolve(features, weights, offsets=None):
            del convolution.weight
            convolution.weight = weights
            convolution._compute_offsets = lambda *_: (offsets, None)
            return convolution(features, layer.points, edges)

        return finish(convolve, leaves)

    return Contender("torch-pointcloud", setup)


def scatter_max_pool(features: Tensor, nb, finish: Callable) -> Contender:
    """The scatter of torch-geometric, with which torch-pointcloud pools."""

    def setup():
        from torch_geometric.utils import scatter

        num_queries = len(nb.splits) - 1
        rows = torch.arange(num_queries, device=features.device).repeat_interleave(nb.splits.diff())
        return finish(lambda x: scatter(x[nb.indices], rows, dim=0, dim_size=num_queries, reduce="max"), [features])

    return Contender("torch-geometric", setup)


# ---- searches


def scipy_radius_search(points: Tensor, radius: float) -> Contender:
    x = array(points)
    return on_cpu("scipy cKDTree", lambda: lambda: textbook.scipy_radius_search(x, x, radius, threads()), tensors)


def sklearn_radius_search(points: Tensor, radius: float) -> Contender:
    def setup():
        from sklearn.neighbors import NearestNeighbors

        x = array(points)

        def call():
            model = NearestNeighbors(radius=radius, algorithm="kd_tree", n_jobs=threads()).fit(x)
            hoods = model.radius_neighbors(x, return_distance=False)
            splits = np.zeros(len(x) + 1, np.int64)
            np.cumsum([len(hood) for hood in hoods], out=splits[1:])
            return np.concatenate(hoods).astype(np.int32), splits

        return call

    return on_cpu("scikit-learn", setup, tensors)


def open3d_radius_search(points: Tensor, radius: float) -> Contender:
    def setup():
        from open3d import core

        x = core.Tensor.from_numpy(array(points))

        def call():
            search = core.nns.NearestNeighborSearch(x)
            search.fixed_radius_index(radius)
            return search.fixed_radius_search(x, radius, sort=False)

        return call

    return on_cpu("Open3D", setup, lambda found: tensors([found[0].numpy(), found[2].numpy()]))


def torch_points_kernels_radius_search(points: Tensor, radius: float, most: int) -> Contender:
    """`most`: the largest number of neighbours, which its padded result has to be told."""

    def setup():
        from torch_points_kernels import ball_query

        samples = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        return lambda: ball_query(radius, most, points, points, mode="partial_dense", batch_x=samples, batch_y=samples)[
            0
        ]

    def plain(matrix):
        found = matrix >= 0
        splits = torch.cat([found.new_zeros(1, dtype=torch.int64), found.sum(dim=1).cumsum(0)])
        return matrix[found].int(), splits

    return Contender("torch-points-kernels", setup, plain)


def torch_pointcloud_radius_search(points: Tensor, radius: float, most: int) -> Contender:
    def setup():
        from torch_pointcloud.ops.cluster import radius as search

        return lambda: search(points, points, radius, max_num_neighbors=most)

    def plain(pairs):
        counts = pairs[0].bincount(minlength=len(points))
        order = pairs[0].sort(stable=True).indices
        return pairs[1][order].int(), torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    return Contender("torch-pointcloud", setup, plain)


def scipy_nearest(queries: Tensor, supports: Tensor) -> Contender:
    q, s = array(queries), array(supports)
    return on_cpu(
        "scipy cKDTree", lambda: lambda: textbook.scipy_nearest(q, s, threads()), lambda rows: tensors([rows])
    )


def sklearn_nearest(queries: Tensor, supports: Tensor) -> Contender:
    def setup():
        from sklearn.neighbors import NearestNeighbors

        q, s = array(queries), array(supports)

        def call():
            model = NearestNeighbors(n_neighbors=1, algorithm="kd_tree", n_jobs=threads()).fit(s)
            return model.kneighbors(q, return_distance=False)

        return call

    return on_cpu("scikit-learn", setup, lambda rows: tensors([rows[:, 0]]))


def open3d_nearest(queries: Tensor, supports: Tensor) -> Contender:
    def setup():
        from open3d import core

        q, s = (core.Tensor.from_numpy(array(x)) for x in (queries, supports))

        def call():
            search = core.nns.NearestNeighborSearch(s)
            search.knn_index()
            return search.knn_search(q, 1)[0]

        return call

    return on_cpu("Open3D", setup, lambda rows: tensors([rows.numpy()[:, 0].astype(np.int64)]))


def torch_points_kernels_nearest(queries: Tensor, supports: Tensor) -> Contender:
    def setup():
        from torch_points_kernels import knn

        return lambda: knn(supports[None], queries[None], 1)[0]

    return Contender("torch-points-kernels", setup, plain=lambda rows: (rows[0, :, 0],))


def scipy_transpose(nb) -> Contender:
    def setup():
        from scipy.sparse import csr_array

        indices, splits, shape = array(nb.indices), array(nb.splits), (len(nb.splits) - 1, nb.num_supports)
        values = np.ones(len(indices), np.int8)
        return lambda: csr_array((values, indices, splits), shape).tocsc()

    return on_cpu(
        "scipy.sparse",
        setup,
        lambda matrix: tensors([matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64)]),
    )


# ---- subsampling


def open3d_subsample(points: Tensor, colours: Tensor, cell: float) -> Contender:
    """Points and colours; it does not vote on labels, and its grid lies elsewhere."""

    def setup():
        from open3d import core, t

        cloud = t.geometry.PointCloud(core.Tensor.from_numpy(array(points)))
        cloud.point.colors = core.Tensor.from_numpy(array(colours))
        return lambda: cloud.voxel_down_sample(cell)

    return on_cpu("Open3D, no labels", setup, lambda _: None)


# ---- sparse convolution: spconv

SPCONV = "spconv"


def on_one_thread(call: Callable) -> Callable:
    """The call with one thread: on the CPU spconv gives wrong results with more."""

    def alone():
        before = threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(before)

    return alone


def spconv_indices(coords: Tensor) -> tuple[Tensor, list[int]]:
    """Coordinates `[V, 4]` as spconv takes them, (sample, z, y, x), and the size of the box, which starts at 0."""
    indices = torch.nn.functional.pad(coords.flip(1), (1, 0)).int()
    return indices, [size + 1 for size in coords.amax(dim=0).flip(0).tolist()]


def spconv_map(coords: Tensor, kernel_size: int, canonical: Callable) -> Contender:
    """The pairs of a submanifold convolution. Of two opposite taps it finds one; the other's are the same, swapped."""
    on_cpu = not coords.is_cuda

    def setup():
        from spconv.core import ConvAlgo
        from spconv.pytorch.ops import get_indice_pairs

        indices, shape = spconv_indices(coords)
        ones, half = [1] * 3, [kernel_size // 2] * 3

        def call():
            return get_indice_pairs(
                indices, 1, shape, ConvAlgo.Native, [kernel_size] * 3, ones, half, ones, [0] * 3, subm=True
            )

        return on_one_thread(call) if on_cpu else call

    def plain(found):
        _, pairs, counts = found
        parts, middle = [], kernel_size**3 // 2
        for tap in range(middle):
            in_rows, out_rows = pairs[:, tap, : counts[tap]].long()
            parts += [(tap, in_rows, out_rows), (2 * middle - tap, out_rows, in_rows)]
        parts.append((middle, *[torch.arange(len(coords), device=coords.device)] * 2))
        taps = torch.cat([torch.full_like(rows, tap) for tap, rows, _ in parts])
        in_rows, out_rows = (torch.cat([part[i] for part in parts]) for i in (1, 2))
        return canonical(coords[in_rows], coords[out_rows], taps)

    return Contender(f"{SPCONV}, 1 thread" if on_cpu else SPCONV, setup, plain)


def spconv_convolution(layer, finish: Callable, leaves: list[Tensor]) -> Contender:
    """Submanifold convolution, with its pairs cached."""
    features, weights = leaves
    size, on_cpu = layer.kernel_size, not features.is_cuda

    def setup():
        import spconv.pytorch as spconv

        if on_cpu and finish.__name__ != "forward":
            raise RuntimeError("its backward pass needs a torch with CUDA")
        indices, shape = spconv_indices(layer.fine.coords // layer.fine.stride)
        algorithm = {"algo": spconv.ConvAlgo.Native} if on_cpu else {}
        module = spconv.SubMConv3d(*weights.shape[1:], size, bias=False, indice_key="layer", **algorithm)
        cached = {}

        def convolve(features, kernel):
            x = spconv.SparseConvTensor(features, indices, shape, 1, indice_dict=cached)
            return torch.func.functional_call(module, {"weight": kernel}, (x,)).features

        kernel = weights.unflatten(0, (size,) * 3).permute(4, 0, 1, 2, 3).contiguous()
        call = finish(convolve, [features, kernel])
        call = on_one_thread(call) if on_cpu else call
        call()  # finds the pairs and keeps them
        return call

    def plain(results):
        result, *grads = results
        if grads:
            grads[1] = grads[1].permute(1, 2, 3, 4, 0).flatten(0, 2)
        return result, *grads

    return Contender(f"{SPCONV}, 1 thread" if on_cpu else SPCONV, setup, plain)
