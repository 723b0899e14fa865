"""Pieces of the page. Text is escaped where it enters; what these functions return is HTML."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape


def text(value: object) -> str:
    """Text for HTML, in an attribute too."""
    return escape(str(value), quote=True)


def section(name: str, title: str, *parts: str) -> str:
    """A section with a heading; `name` is its anchor."""
    return f'<section id="{name}"><h2>{text(title)}</h2>\n' + "\n".join(filter(None, parts)) + "</section>\n"


def paragraph(words: str) -> str:
    return f"<p>{text(words)}</p>"


def bullets(items: Iterable[str]) -> str:
    """A list; the items are text."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]] | Mapping[str, Iterable[Sequence[str]]],
    labels: int = 1,
    kind: str = "",
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        caption: what it shows, text.
        head: column titles, text.
        rows: cells, HTML; groups of them by their title (text).
        labels: how many of the first columns name the row.
        kind: a CSS class.
    """
    kinds = [' class="name"'] * labels + [""] * (len(head) - labels)
    heads = "".join(f'<th scope="col"{own}>{text(title)}</th>' for title, own in zip(head, kinds, strict=True))
    bodies = []
    for title, group in (rows if isinstance(rows, Mapping) else {"": rows}).items():
        lines = []
        if title:
            lines.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}"><span>{text(title)}</span></th></tr>'
            )
        for row in group:
            names = "".join(f'<th scope="row">{cell}</th>' for cell in row[:labels])
            lines.append(f"<tr>{names}{''.join(f'<td>{cell}</td>' for cell in row[labels:])}</tr>")
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return scrolling(
        caption,
        f'<table class="{kind}"><caption><span>{text(caption)}</span></caption><thead><tr>{heads}</tr></thead>'
        f"{''.join(bodies)}</table>",
    )


def scrolling(what: str, content: str) -> str:
    """Content that scrolls sideways where it is too wide, with the keyboard too; `what` it is, text."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(what)}">{content}</div>'


def folded(title: str, *parts: str, shown: bool = False) -> str:
    """Content behind a title that opens it."""
    return f"<details{' open' if shown else ''}><summary>{text(title)}</summary>{''.join(parts)}</details>"


def picture(png: bytes, alternative: str, caption: str) -> str:
    """A picture inside of the page; `alternative` is what it shows for who cannot see it, both are text."""
    data = base64.b64encode(png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{text(alternative)}">'
    return f"<figure>{scrolling(alternative, image)}<figcaption>{text(caption)}</figcaption></figure>"


def legend(names: Sequence[str], colours: Sequence[str]) -> str:
    """Names beside swatches; the colours are CSS."""
    items = (
        f'<li><span class="swatch" style="background:{colour}"></span>{text(name)}</li>'
        for name, colour in zip(names, colours, strict=True)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
