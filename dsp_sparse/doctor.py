"""What works on this machine, found out by trying it."""

import importlib
import importlib.metadata
import platform
from collections.abc import Callable

from . import __version__

REQUIRED = ("torch", "numpy", "pandas", "pyyaml", "jsonargparse", "docstring-parser", "tqdm")
OPTIONAL = {"laspy": "las", "matplotlib": "report", "tensorboard": "tensorboard"}  # package: extra


def diagnose() -> int:
    """Print one line a part: name, `ok` or `no`, and a detail or the reason. Returns 1 if a CPU part is broken."""
    print(f"dsp-sparse {__version__}, Python {platform.python_version()}, {platform.platform()}")
    broken = False
    for package in REQUIRED:
        broken |= not attempt(package, lambda p=package: find_working(p))
    for package in OPTIONAL:
        attempt(package, lambda p=package: find_version(p))
    if broken:
        print("nothing else can be tried before these are installed")
        return 1
    import torch

    from .backbones import BACKBONES
    from .backbones.engines import ENGINES

    broken = not attempt("kernels on cpu", lambda: try_kernels("cpu"))
    attempt("kernels on cuda", lambda: try_kernels("cuda"))
    for index in range(torch.cuda.device_count()):
        attempt(f"cuda:{index}", lambda i=index: torch.cuda.get_device_name(i))
    for engine in ENGINES:
        attempt(f"engine {engine}", lambda e=engine: try_backbone("minkunet", engine=e, planes=(8,) * 8))
    for backbone in BACKBONES:
        broken |= not attempt(f"backbone {backbone}", lambda b=backbone: try_backbone(b))
    return int(broken)


def attempt(name: str, trial: Callable[[], str]) -> bool:
    """Run one trial and print its outcome; any exception is a `no` with its message."""
    try:
        detail, works = trial(), True
    except Exception as error:  # the very question is what fails, and how
        detail, works = " ".join(str(error).split()) or type(error).__name__, False
    print(f"{name:18} {'ok' if works else 'no':3} {detail}", flush=True)
    return works


def find_working(package: str) -> str:
    """The version of a package that is needed, after it was imported: it may be there and not work."""
    version = find_version(package)
    importlib.import_module({"pyyaml": "yaml"}.get(package, package.replace("-", "_")))
    return version


def find_version(package: str) -> str:
    """The version installed, or how to install it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        extra = OPTIONAL.get(package)
        way = f"optional: pip install 'dsp-sparse[{extra}]'" if extra else "but required"
        raise RuntimeError(f"not installed, {way}") from None


def try_kernels(device: str) -> str:
    """Search, convolve and differentiate on a small cloud, against the plain-torch oracle."""
    import torch

    import kpconv_ops
    from kpconv_ops import reference

    if device == "cuda" and not torch.cuda.is_available():
        built = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise RuntimeError(f"torch sees no GPU (this torch is {built})")
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=generator).to(device)
    features = torch.rand(500, 8, generator=generator).to(device).requires_grad_()
    weights = torch.rand(15, 8, 4, generator=generator).to(device)
    offsets = torch.tensor([0, 500], device=device)
    neighbors = kpconv_ops.radius_search(points, offsets, points, offsets, 0.2)
    kernel = kpconv_ops.kernel_points(15, 0.2).to(device)
    arguments = (features, points, points, neighbors, kernel, weights, 0.1)
    ours = kpconv_ops.kpconv(*arguments)
    torch.testing.assert_close(ours, reference.kpconv(*arguments), rtol=1e-4, atol=1e-4)
    ours.sum().backward()
    return "radius search and KPConv agree with the oracle"


def try_backbone(name: str, **options) -> str:
    """One forward and backward pass of a default network on a random cloud."""
    import torch

    from .backbones import build_backbone
    from .ragged import Ragged

    generator = torch.Generator().manual_seed(0)
    coord = torch.rand(400, 3, generator=generator)
    batch = Ragged(torch.ones(400, 5), coord, torch.tensor([0, 400]))
    network = build_backbone(name, in_channels=5, num_classes=13, **options)
    network(batch).sum().backward()
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return f"forward and backward, {parameters:,} parameters"
