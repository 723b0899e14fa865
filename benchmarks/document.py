"""`python -m benchmarks.document`: write the measured tables into docs/benchmarks.md.

A table stands between `<!-- NAME.json -->` and `<!-- end -->` and shows benchmarks/results/NAME.json.
"""

import json
import re
from pathlib import Path

from dsp_sparse.files import atomic_path

from . import table
from .__main__ import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def filled(page: str) -> str:
    """The page with every table as its JSON file has it."""

    def block(match: re.Match) -> str:
        report = json.loads((RESULTS / match[1]).read_text())
        return f"<!-- {match[1]} -->\n{table.markdown(report)}<!-- end -->"

    return re.sub(r"<!-- (\S+\.json) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


if __name__ == "__main__":
    text = filled(PAGE.read_text())
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text)
