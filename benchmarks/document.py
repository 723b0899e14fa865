"""`python -m benchmarks.document`: write the measured tables into docs/benchmarks.md.

A table stands between `<!-- NAME.json -->` and `<!-- end -->` and shows benchmarks/results/NAME.json.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from dsp_sparse.errors import UserError
from dsp_sparse.files import atomic_path

from . import table
from .__main__ import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def filled(page: str) -> str:
    """The page with every table as its JSON file has it. UserError if one cannot be read."""

    def block(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{table.markdown(report(match[1]))}<!-- end -->"

    return re.sub(r"<!-- (\S+\.json) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def report(name: str) -> dict:
    try:
        return json.loads((RESULTS / name).read_text())
    except (OSError, ValueError) as error:
        suite = name.split("-")[0]
        raise UserError(
            f"{PAGE.name} has a table of {RESULTS / name}, which cannot be read ({error}): "
            f"`python -m benchmarks {suite}` writes the file of this machine"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__.partition(": ")[2])
    parser.parse_args(arguments)
    try:
        text = filled(PAGE.read_text())
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
