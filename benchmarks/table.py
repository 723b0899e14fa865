"""Reports as text: a table for the terminal, a table for Markdown."""

HEADER = ("", "time", "ratio", "peak extra", "ratio", "of floor", "differs")


def cells(result: dict) -> list[str]:
    """One implementation: name, time, its ratio to ours, peak extra memory, its ratio, floor's share, difference."""
    if result["status"] != "measured":
        reason = f": {result['reason']}" if result["status"] == "failed" else ""
        return [result["name"], f"{result['status']}{reason}"]

    def shown(key: str, text) -> str:
        return text(result[key]) if key in result else "–"

    return [
        result["name"],
        duration(result["seconds"]["median"]),
        shown("time_ratio", "{:.1f}×".format),
        shown("peak_bytes", lambda size: f"{size / 2**20:.1f} MiB"),
        shown("memory_ratio", "{:.1f}×".format),
        shown("floor_share", "{:.0%}".format),
        shown("difference", "{:.0e}".format),
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f} ms"


def plain(row: dict) -> str:
    """A row of a report, for the terminal."""
    lines = [(row["name"], *HEADER[1:])]
    lines += [(f"  {name}", *rest) for name, *rest in map(cells, row["implementations"])]
    return "\n".join(_aligned(line) for line in lines) + "\n"


def _aligned(line: tuple[str, ...]) -> str:
    name, *rest = line
    if len(rest) == 1:
        return f"{name:36} {rest[0]}"
    return f"{name:36}" + "".join(f"{text:>12}" for text in rest)


def heading(report: dict) -> str:
    """Where and with what a report was measured, in one line."""
    device, made = report["device"], report["inputs"]
    threads = f", {device['threads']} threads" if device["kind"] == "cpu" else ""
    machine = report["machine"]
    rates = [f"{dtype} products {machine[dtype] / 1e9:,.0f} GFLOP/s" for dtype in machine if dtype != "copy"]
    return "; ".join(
        [
            f"{device['name']}{threads}",
            ", ".join([*rates, f"copy {machine['copy'] / 1e9:,.0f} GB/s"]),
            ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
            ", ".join(f"{name} {value:,}" for name, value in made.items()),
            report["date"][:10],
        ]
    )


def markdown(report: dict) -> str:
    """A report as one Markdown table."""
    lines = [heading(report), "", "| | " + " | ".join(HEADER[1:]) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
    for row in report["rows"]:
        lines.append(f"| **{row['name']}** |" + " |" * (len(HEADER) - 1))
        for result in row["implementations"]:
            row_cells = cells(result)
            lines.append("| " + " | ".join(row_cells + [""] * (len(HEADER) - len(row_cells))) + " |")
    return "\n".join(lines) + "\n"
