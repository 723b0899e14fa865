"""What is installed is what is here."""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed():
    """An editable installation, which tests run from, would work without."""
    found = {path.parent for top in ("dsp_sparse", "kpconv_ops") for path in (ROOT / top).rglob("*.py")}
    assert sorted(SETUPTOOLS["packages"]) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in found)


def test_every_file_of_another_kind_is_listed():
    """But for the sources of the operators, which are compiled, and what comes out of that."""
    listed = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns:
            matched = set(folder.glob(pattern))
            assert matched, f"{package}: {pattern}"
            listed |= matched
    found = {path for top in ("dsp_sparse", "kpconv_ops") for path in (ROOT / top).rglob("*") if path.is_file()}
    compiled = {path for path in found if path.suffix in (".py", ".pyc", ".so") or "csrc" in path.parts}
    assert found - compiled <= listed
