"""What is special about MinkowskiEngine as an engine: finding it, its limits, its row order, its memory."""

import collections
import gc
import os
import sys
import weakref

import pytest
import torch

from dsp_sparse import UserError, doctor
from dsp_sparse.backbones.engines import build_engine, minkowski
from dsp_sparse.testing import engines, random_ragged, tiny_backbone

installed = pytest.mark.skipif("minkowski" not in engines(), reason="MinkowskiEngine not installed")


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not imported MinkowskiEngine; what a test imports under its name is gone after it."""

    def modules():  # its compiled part stays: it can be loaded once
        return [name for name in sys.modules if name.startswith("Minkowski") and "Backend" not in name]

    for name in modules():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    minkowski.load.cache_clear()
    yield monkeypatch
    for name in modules():
        del sys.modules[name]
    minkowski.load.cache_clear()


def package(folder, text):
    """A MinkowskiEngine that holds `text`, found before any other."""
    (folder / "MinkowskiEngine.py").write_text(text)
    return str(folder)


# ------------------------------------------------------------------------------------------------------ finding it


def test_missing(fresh):
    """Without MinkowskiEngine the message says so, and how to get it; nothing stays changed."""
    fresh.setitem(sys.modules, "MinkowskiEngine", None)  # how Python notes that there is none
    with pytest.raises(UserError, match="MinkowskiEngine is not installed; `dsp-sparse doctor --install-minkowski`"):
        build_engine("minkowski")
    assert not hasattr(collections, "Sequence")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise OSError('libopenblas.so.0:\\nno such file')", "OSError: libopenblas.so.0: no such file"),
        ("import torch_of_old", "ModuleNotFoundError: No module named 'torch_of_old'"),
    ],
)
def test_broken(fresh, tmp_path, text, reason):
    """A MinkowskiEngine that fails to import is told from none: the message is one line with the reason."""
    fresh.syspath_prepend(package(tmp_path, text))
    with pytest.raises(UserError, match=r"MinkowskiEngine cannot be imported .*--install-minkowski") as caught:
        build_engine("minkowski")
    assert f"({reason})" in str(caught.value) and "\n" not in str(caught.value)
    assert not hasattr(collections, "Sequence"), "undone after a failure too"


def test_import_cure_is_undone(fresh, tmp_path, recwarn):
    """The package sees `collections.Sequence` while it is imported, and nobody after; its warnings are not shown."""
    text = "from collections import Sequence\nimport warnings\nwarnings.warn('compiled with CPU_ONLY flag')"
    fresh.syspath_prepend(package(tmp_path, text))
    assert minkowski.load().Sequence is collections.abc.Sequence
    assert not hasattr(collections, "Sequence")
    assert len(recwarn) == 0


@pytest.mark.parametrize("threads", [None, "3"])
def test_import_leaves_path_and_environment(fresh, tmp_path, threads):
    """MinkowskiEngine adds its folder to `sys.path` and, on more than 16 cores, sets `OMP_NUM_THREADS` where it is not;
    children of this process and later imports see neither."""
    fresh.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        fresh.setenv("OMP_NUM_THREADS", threads)
    text = "import os, sys; sys.path.append('its folder'); os.environ.setdefault('OMP_NUM_THREADS', '16')"
    fresh.syspath_prepend(package(tmp_path, text))
    before = list(sys.path)
    minkowski.load()
    assert sys.path == before and os.environ.get("OMP_NUM_THREADS") == threads


def test_import_cure_leaves_anothers_alone(fresh, tmp_path):
    """Where `collections.Sequence` is there already, it stays."""
    fresh.setattr(collections, "Sequence", "another's", raising=False)
    fresh.syspath_prepend(package(tmp_path, "from collections import Sequence"))
    assert minkowski.load().Sequence == collections.Sequence == "another's"


def test_doctor_without_it(fresh, capsys):
    """`dsp-sparse doctor` tries every engine as itself: with the reason and the remedy where one is missing, which is
    no defect."""
    fresh.setitem(sys.modules, "MinkowskiEngine", None)
    assert doctor.diagnose() == 0
    native, missing = (line for line in capsys.readouterr().out.splitlines() if line.startswith("engine "))
    assert native.startswith("engine native      ok ")
    assert missing.startswith("engine minkowski   no ") and "not installed; `dsp-sparse doctor --install" in missing


@installed
def test_the_real_one_imports(fresh, recwarn):
    fresh.delenv("OMP_NUM_THREADS", raising=False)
    fresh.setattr(os, "cpu_count", lambda: 64)
    before = list(sys.path)
    assert minkowski.load().__version__ == "0.5.4"
    assert not hasattr(collections, "Sequence")
    assert sys.path == before and "OMP_NUM_THREADS" not in os.environ
    assert len(recwarn) == 0


# ---------------------------------------------------------------------------------------------------------- limits


@installed
@pytest.mark.parametrize("sign", [1, -1])
def test_coordinates_beyond_32_bits(sign):
    """MinkowskiEngine would wrap them around; the message names the setting and the engine that takes them. At the
    limit a kernel that reaches 2^20 voxels farther does not meet the other end."""
    limit = 2**31 - 2**20
    points = torch.tensor([[0.0, -sign * limit, 0], [0, sign * limit, 0]], dtype=torch.float64)
    offsets = torch.tensor([0, 2])
    engine, native = build_engine("minkowski"), build_engine("native")
    grid, _ = engine.quantize(points, offsets, 1.0)
    kernel_map = engine.kernel_map(grid, grid, 3, dilation=2**20)
    assert torch.equal(engine.conv(torch.eye(2), torch.eye(2).expand(27, 2, 2), kernel_map), torch.eye(2))
    points[1, 1] += sign
    with pytest.raises(UserError, match=r"voxel_size 1.0 does not fit .*32 bits.*±2146435072, got .*; engine native"):
        engine.quantize(points, offsets, 1.0)
    assert native.quantize(points, offsets, 1.0)[0].coords.abs().amax() == limit + 1


@installed
@pytest.mark.skipif(torch.cuda.is_available(), reason="for a MinkowskiEngine without CUDA")
def test_points_on_a_gpu_need_a_build_for_it():
    with pytest.raises(UserError, match=r"CPU only, the points are on cuda:1; `dsp-sparse doctor --install-minkowski"):
        minkowski.new_manager(torch.device("cuda:1"))


@installed
def test_grids_of_two_clouds_have_no_kernel_map():
    engine = build_engine("minkowski")
    batch = random_ragged((20,), 1)
    one, two = (engine.quantize(batch.coord, batch.offsets, 0.1)[0] for _ in range(2))
    with pytest.raises(ValueError, match="the same quantize"):
        engine.kernel_map(one, two, 3)


@installed
@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads_is_torchs(threads):
    """MinkowskiEngine sets the number of threads of the process; torch's setting is what it sets."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        minkowski.new_manager(torch.device("cpu"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ order and memory


@installed
@pytest.mark.parametrize("lengths", [(60, 0, 40), (1,)], ids=str)
def test_any_row_order(monkeypatch, lengths):
    """On a GPU MinkowskiEngine orders rows in its own way; ours stay ours."""
    batch = random_ragged(lengths, 3, size=0.5, dtype=torch.float64)
    net = tiny_backbone("minkunet", 3, 4, engine="minkowski").double().eval()
    expected = net(batch)
    manager = minkowski.load().CoordinateManager
    insert = manager.insert_and_map
    generator = torch.Generator().manual_seed(0)

    def shuffled(self, coordinates, *arguments):
        order = torch.randperm(len(coordinates), generator=generator)
        key, (rows, _) = insert(self, coordinates[order], *arguments)
        assert torch.equal(rows, torch.arange(len(rows)))
        return key, (order.int(), order.argsort().int())

    monkeypatch.setattr(manager, "insert_and_map", shuffled)
    torch.testing.assert_close(net(batch), expected, rtol=1e-10, atol=1e-10)
    engine = net.engine
    grid, inverse = engine.quantize(batch.coord, batch.offsets, 0.1)
    assert len(grid.coords) == 1 or grid.order is not None
    wanted = build_engine("native").quantize(batch.coord, batch.offsets, 0.1)
    assert torch.equal(grid.coords, wanted[0].coords) and torch.equal(inverse, wanted[1])
    coarse = engine.downsample(grid)
    for kernel_size in (1, 2):  # 1: some target voxels have nothing to pool
        kernel_map = engine.kernel_map(grid, coarse, kernel_size)
        native = build_engine("native").kernel_map(grid, coarse, kernel_size)
        pooled = (
            e.pool(grid.coords.double(), m, "max") for e, m in ((engine, kernel_map), (build_engine("native"), native))
        )
        assert torch.equal(*pooled)


@installed
def test_memory_ends_with_the_geometry():
    """The coordinate manager lives while the geometry, or a graph that convolved along it, does, and no longer; no
    cycle of references waits for the garbage collector."""
    net = tiny_backbone("minkunet", 3, 4, engine="minkowski")
    batch = random_ragged((60,), 3)
    gc.disable()
    try:
        geometry = net.geometry(batch)
        geometry.grids[0].coords.sum()
        net.engine.pool(torch.randn(len(geometry.grids[0].coords), 2), geometry.down[0], "max")
        manager = weakref.ref(geometry.grids[0].manager)
        logits = net(batch, geometry)
        del geometry
        assert manager() is not None
        logits.sum().backward()
        del logits
        assert manager() is None
    finally:
        gc.enable()
