"""`python -m benchmarks SUITE`: run it, print its table, write its JSON."""

import argparse
import re
import sys
from pathlib import Path

import torch

from dsp_sparse.errors import UserError
from dsp_sparse.files import write_json

from . import suites, table
from .run import run

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("suite", choices=suites.NAMES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", action="store_true", help="measure other installed libraries too")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/SUITE-DEVICE.json)")
    parser.add_argument("--repeats", type=int, default=6, help="measurements of each implementation (default: 6)")
    parser.add_argument("--points", type=int, default=1_000_000, help="raw points of the room (default: 1,000,000)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows; writes JSON only with --out")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    for name, least in (("repeats", 1), ("points", 1000)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    try:
        report = run(
            options.suite,
            options.device,
            options.points,
            options.repeats,
            options.peers,
            options.rows,
            show=lambda row: print(table.plain(row), flush=True),
        )
    except UserError as error:
        parser.error(str(error))
    print(table.heading(report))
    device = re.sub(r"[^a-z0-9]+", "-", report["device"]["name"].lower()).strip("-")
    out = options.out or (None if options.rows else RESULTS / f"{options.suite}-{device}.json")
    if out:
        write_json(out, report)
        print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
