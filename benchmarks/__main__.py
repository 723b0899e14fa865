"""`python -m benchmarks SUITE`: run it, print its table, write its JSON."""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import torch

from dsp_sparse.errors import UserError
from dsp_sparse.files import write_json

from . import suites
from .run import device_name, run

RESULTS = Path(__file__).parent / "results"
POINTS, REPEATS = 1_000_000, 6


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help ends with the rows of every suite. They are only made when help is asked for."""

    def format_help(self) -> str:
        lines = ["rows (with --device cuda there are more, in bfloat16):"]
        for suite in suites.NAMES:
            lines += ["", *(f"  {suite:9} {name}" for name in suites.row_names(suite, "cpu"))]
        self.epilog = "\n".join(lines)
        return super().format_help()


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks",
        description=sys.modules["benchmarks"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=suites.NAMES)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cpu, or cuda: the current GPU of torch; what has no code for a GPU stays on the CPU (default: cpu)",
    )
    parser.add_argument("--peers", action="store_true", help="measure other installed libraries too")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="JSON file to write (default: benchmarks/results/SUITE-DEVICE.json, DEVICE being the name of the CPU or "
        "GPU, as in ops-amd-epyc.json; only a run with all rows and the default --points and --repeats writes it)",
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="measurements of each implementation (default: %(default)s)"
    )
    parser.add_argument("--points", type=int, default=POINTS, help=f"raw points of the room (default: {POINTS:,})")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows, listed below")
    options = parser.parse_args(arguments)
    try:
        check(options)
        out = output(options)
    except UserError as error:
        parser.error(str(error))
    if out is None:
        print(
            "no file will be written: results are published with all rows and the default --points and --repeats; "
            "--out FILE writes these",
            file=sys.stderr,
        )
    try:
        report = run(options.suite, options.device, options.points, options.repeats, options.peers, options.rows)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    if out is not None:
        write_json(out, report)
        print(f"written to {out}")
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise UserError, naming the option, for one that cannot be followed."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    for name, least in (("repeats", 1), ("points", 1000)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if options.rows:
        known = suites.row_names(options.suite, options.device)
        unknown = [name for name in options.rows if name not in known]
        if unknown:
            raise UserError(f"--rows must be among {', '.join(known)}; got {', '.join(unknown)}")


def output(options: argparse.Namespace) -> Path | None:
    """Where the report goes, None for nowhere. UserError if it cannot be written: better now than after the run."""
    if options.out is not None:
        path = Path(options.out)
    elif options.rows or (options.points, options.repeats) != (POINTS, REPEATS):
        return None
    else:
        device = re.sub(r"[^a-z0-9]+", "-", device_name(options.device).lower()).strip("-")
        path = RESULTS / f"{options.suite}-{device}.json"
    try:
        if options.out == "" or (path.exists() and not path.is_file()):
            raise UserError(f"--out must name a file, got {options.out!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written: {error}") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
