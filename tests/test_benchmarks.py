"""The benchmarks measure what they say: same results from every implementation, honest memory, complete reports."""

import json

import pytest
import torch

from benchmarks import document, suites, table
from benchmarks.__main__ import main
from benchmarks.measure import peak_bytes
from benchmarks.memory import measured_apart
from benchmarks.row import OURS, Contender, Row, Work
from benchmarks.run import measured

POINTS = 3000


@pytest.mark.parametrize(
    "suite, chosen",
    [("ops", None), ("pyramid", None), ("network", ["KPFCNN forward", "deformable KPFCNN forward"])],
)
def test_textbook_and_ours_agree(suite, chosen):
    """On the same inputs every implementation gives the result of ours, within the tolerance of its row."""
    module = suites.load(suite)
    made = module.inputs(POINTS)
    rows = module.rows(made, "cpu", False)
    assert module.describe(made)
    for row in rows:
        if chosen and row.name not in chosen:
            continue
        first, *others = row.contenders
        assert first.name == OURS and others
        ours = first.plain(first.setup()())
        for other in others:
            assert row.difference(ours, other.plain(other.setup()())) <= row.tolerance, (row.name, other.name)


def test_peak_memory_counts_what_a_call_frees_again():
    """The peak of a call is its worst moment, not what is left at the end."""

    def call():
        torch.ones(64 << 18).sum()
        return torch.ones(1 << 18)

    assert 62 < peak_bytes(call, "cpu") / 2**20 < 72  # the kernel counts pages a little late


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    """The other process finds the implementation by name; the result alone is larger than the measured minimum."""
    module = suites.load("ops")
    made = module.inputs(20 * POINTS)
    torch.save(made, tmp_path / "inputs.pt")
    peak = measured_apart("ops", "KPConv forward", OURS, tmp_path / "inputs.pt", False)
    result = 4 * module.CHANNELS * module.describe(made)["layer points"]
    assert result < peak < 20 * result


def test_report_and_its_file(tmp_path, capsys):
    """A run writes what its table shows: times, memory, ratios to ours, the floor, versions and seed."""
    out = tmp_path / "report.json"
    arguments = ["ops", "--points", str(POINTS), "--repeats", "2", "--rows", "Neighbors.transposed", "--out", str(out)]
    assert main(arguments) == 0
    report = json.loads(out.read_text())
    assert {"suite", "date", "device", "machine", "versions", "inputs", "repeats", "rows"} == set(report)
    assert report["device"]["kind"] == "cpu" and report["device"]["threads"] == torch.get_num_threads()
    assert {"torch", "python", "dsp-sparse"} <= set(report["versions"])
    assert report["inputs"]["raw points"] == POINTS and report["inputs"]["seed"] == 0
    (row,) = report["rows"]
    ours, book = row["implementations"]
    assert ours["time_ratio"] == ours["memory_ratio"] == 1
    for result in (ours, book):
        assert result["status"] == "measured"
        times = result["seconds"]
        assert times["repeats"] == 2 and 0 < times["min"] <= times["median"] <= times["max"]
        assert result["floor_share"] == row["floor"]["seconds"] / times["median"]
        assert result["time_ratio"] == times["median"] / ours["seconds"]["median"]
        assert result["peak_bytes"] >= 0
    printed = capsys.readouterr().out
    assert table.plain(row) in printed and table.heading(report) in printed
    assert all(result["name"] in table.markdown(report) for result in (ours, book))


def test_missing_failing_and_wrong_implementations_are_reported():
    """An implementation that cannot be measured stays in the report with its reason; a wrong one is not timed."""

    def missing():
        raise ModuleNotFoundError("No module named 'elsewhere'")

    def failing():
        raise RuntimeError("no such kernel")

    one, two = torch.ones(1), torch.full((1,), 2.0)
    contenders = [
        Contender(OURS, lambda: lambda: (one,)),
        Contender("missing", missing),
        Contender("failing", lambda: failing),
        Contender("wrong", lambda: lambda: (two,)),
    ]
    row = Row("a row", Work(1, 1), contenders)
    report = measured(row, "cpu", {"float32": 1.0, "copy": 1.0}, 2, lambda name, call: 0)
    found = {result["name"]: result for result in report["implementations"]}
    assert [found[name]["status"] for name in found] == ["measured", "not installed", "failed", "failed"]
    assert found["failing"]["reason"] == "RuntimeError: no such kernel"
    assert "differs by 1" in found["wrong"]["reason"]
    assert not any("seconds" in found[name] for name in ("missing", "failing", "wrong"))
    assert "failed: RuntimeError: no such kernel" in table.plain(report)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ops", "--rows", "KPConv sideways", "--points", "1000"], "--rows must be among KPConv forward"),
        (["ops", "--points", "10"], "--points must be at least 1000, got 10"),
        (["ops", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["opera"], "opera"),
    ],
)
def test_mistakes_are_one_line_errors(arguments, message, capsys):
    """A mistake ends with exit code 2 and a line that names it."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_documented_tables_are_those_of_the_results():
    """Every figure in docs/benchmarks.md comes from a file of results."""
    page = document.PAGE.read_text()
    assert document.filled(page) == page
