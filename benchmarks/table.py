"""Reports as text: a table for the terminal, a table for Markdown."""

from .row import OURS

COLUMNS = ("time", "time ÷ ours", "peak memory", "memory ÷ ours", "process", "% of machine peak", "difference", "rate")
LEGEND = (
    "÷ ours: how many times ours; % of machine peak: 100% is what the rates above allow; difference: from our result"
)
NAME_WIDTH = 34


def cells(result: dict) -> list[str]:
    """One implementation: its name and the columns, or its name and why it was not measured."""
    if result["status"] != "measured":
        reason = f": {result['reason']}" if result["status"] == "failed" else ""
        return [result["name"], f"{result['status']}{reason}"]

    def shown(key: str, text) -> str:
        return text(result[key]) if key in result else "–"

    def compared(key: str, text) -> str:
        return "–" if result["name"] == OURS else shown(key, text)

    return [
        result["name"],
        duration(result["seconds"]["median"]),
        compared("time_ratio", "{:.1f}×".format),
        shown("peak_bytes", lambda size: f"{size / 2**20:.1f} MiB"),
        compared("memory_ratio", "{:.1f}×".format),
        shown("process_bytes", lambda size: f"{size / 2**20:.0f} MiB"),
        shown("floor_share", lambda share: f"{share:.0%}" if share >= 0.01 else "<1%"),
        compared("difference", lambda difference: f"{difference:.0e}" if difference else "0"),
        shown("rate", rate),
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f} ms"


def rate(rate: dict) -> str:
    value = rate["value"]
    return f"{value:,.0f} {rate['unit']}" if value >= 100 else f"{value:.3g} {rate['unit']}"


def head(report: dict) -> str:
    """What stands above the rows, for the terminal: machine, sizes, columns and what they mean."""
    return "\n".join([*facts(report), "", _aligned(["", *COLUMNS]), LEGEND, ""])


def plain(row: dict) -> str:
    """A row of a report, for the terminal."""
    lines = [[f"  {name}", *rest] for name, *rest in map(cells, row["implementations"])]
    return "\n".join([row["name"], *map(_aligned, lines)]) + "\n"


def _aligned(line: list[str]) -> str:
    name, *rest = line
    if len(rest) == 1:
        return f"{name:{NAME_WIDTH}} {rest[0]}"
    widths = [max(len(column), 9) + 2 for column in COLUMNS[:-1]] + [20]  # a rate has its unit
    return f"{name:{NAME_WIDTH}}" + "".join(f"{text:>{width}}" for text, width in zip(rest, widths, strict=True))


def facts(report: dict) -> list[str]:
    """Where, with what, on what and when a report was measured."""
    device, machine = report["device"], report["machine"]
    threads = f", {device['threads']} thread{'s' * (device['threads'] > 1)}" if device["kind"] == "cpu" else ""
    rates = [f"{dtype} products {machine[dtype] / 1e9:,.0f} GFLOP/s" for dtype in machine if dtype != "copy"]
    return [
        f"{device['name']}{threads}",
        ", ".join([*rates, f"copy {machine['copy'] / 1e9:,.0f} GB/s"]),
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        ", ".join(f"{name} {value:,}" for name, value in report["inputs"].items()),
        report["date"][:10],
    ]


def markdown(report: dict) -> str:
    """A report as one Markdown table. A column without any figure is left out."""
    table = [(row["name"], [cells(result) for result in row["implementations"]]) for row in report["rows"]]
    full = [line[1:] for _, lines in table for line in lines if len(line) == 1 + len(COLUMNS)]
    kept = [i for i in range(len(COLUMNS)) if not full or any(line[i] != "–" for line in full)]
    lines = ["; ".join(facts(report)), "", _row(["", *(COLUMNS[i] for i in kept)]), "|---|" + "---:|" * len(kept)]
    for name, implementations in table:
        lines.append(_row([f"**{name}**"] + [""] * len(kept)))
        for each, *rest in implementations:
            short = len(rest) < len(COLUMNS)  # not measured: the reason alone
            lines.append(_row([each, *(rest + [""] * (len(kept) - 1) if short else [rest[i] for i in kept])]))
    return "\n".join(lines) + "\n"


def _row(texts: list[str]) -> str:
    return "".join(f"| {text} " if text else "| " for text in texts) + "|"
