"""A report of a run or a comparison: one HTML file that needs nothing beside it."""

import re
import sys
from importlib import resources
from pathlib import Path

from ...files import atomic_path, require_writable
from .confusion import confusion_section
from .curves import curve_section, time_section
from .evidence import Evidence
from .html import text
from .order import order_section
from .scores import class_section, score_section
from .settings import heading, settings_section
from .sources import read_subject


def write_report(path: str | Path, out: str | Path | None = None, full: str | Path | None = None) -> Path:
    """Write the report of what is in a folder: tables, curves, pictures, a scene in 3D.

    Unfinished runs are reported as far as they are. Pictures need the run folders, their store and matplotlib; what is
    missing is told in their place.

    Args:
        path: a run folder, or the folder of a comparison.
        out: file to write; `report.html` in the folder by default.
        full: run folder of full supervision to stand beside weak supervision in pictures; by default the comparison's
            own baseline with all labels, if it has one.

    Returns:
        The file.

    Raises:
        UserError: no such folder, or one that cannot be read, or `out` cannot be written.
    """
    subject = read_subject(path)
    file = Path(out) if out is not None else Path(path) / "report.html"
    require_writable("out", file, folder=False)
    evidence = Evidence(subject, full)
    steps = [
        ("scores", lambda: score_section(subject)),
        ("order", lambda: order_section(subject)),
        ("classes", lambda: class_section(subject)),
        ("curves", lambda: curve_section(subject)),
        ("time", lambda: time_section(subject)),
        ("confusion", lambda: confusion_section(subject, evidence.shown)),
        *evidence.steps(),
        ("settings", lambda: settings_section(subject)),
    ]
    body = ""
    for number, (name, make) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {name}", file=sys.stderr, flush=True)
        body += make()
    files = resources.files(__name__)
    page = PAGE.format(
        title=text(subject.title),
        style=files.joinpath("report.css").read_text(),
        heading=heading(subject),
        links="".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in HEADING.findall(body)),
        body=body,
    )
    with atomic_path(file) as temporary:
        temporary.write_text(page)
    return file


HEADING = re.compile(r'<section id="([\w-]+)"><h2>(.*?)</h2>')

# The policy forbids every request; the icon keeps browsers from asking for one.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>{heading}<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{body}</main>
</body>
</html>
"""
