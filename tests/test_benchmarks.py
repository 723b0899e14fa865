"""The benchmarks measure what they say: same results from every implementation, honest memory, complete reports."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__, document, suites, table
from benchmarks.__main__ import main
from benchmarks.measure import Peak, peak_memory
from benchmarks.memory import measured_apart
from benchmarks.row import OURS, Contender, Row, Work
from benchmarks.run import measured, versions
from dsp_sparse.errors import UserError

POINTS = 3000


@pytest.mark.parametrize(
    "suite, chosen",
    [
        ("ops", None),
        ("pyramid", None),
        ("network", ["KPFCNN forward", "deformable KPFCNN forward"]),
        ("sparse", None),
        ("data", None),
    ],
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


def test_other_libraries_of_sparse_convolution_and_ours_agree():
    """MinkowskiEngine and spconv, where installed, give the result of ours on every row, in our order of rows."""
    module = suites.load("sparse")
    found = set()
    for row in module.rows(module.inputs(POINTS), "cpu", True):
        first, _, *peers = row.contenders
        ours = first.plain(first.setup()())
        for peer in peers:
            try:
                call = peer.setup()
            except (ModuleNotFoundError, UserError):
                continue  # not installed, or not working here
            except RuntimeError as error:
                assert "needs a torch with CUDA" in str(error)
                continue
            assert row.difference(ours, peer.plain(call())) <= row.tolerance, (row.name, peer.name)
            found.add(peer.name)
    if not found:
        pytest.skip("neither MinkowskiEngine nor spconv is installed")


@pytest.mark.parametrize("suite", ["ops", "sparse"])
def test_other_libraries_leave_the_number_of_threads_alone(suite):
    """Whatever is measured after another library, where installed, has the threads that the run began with."""
    module = suites.load(suite)
    rows = module.rows(module.inputs(POINTS), "cpu", True)
    others = [each for row in rows for each in row.contenders if each.name.partition(",")[0] not in (OURS, "textbook")]
    before, found = torch.get_num_threads(), set()
    torch.set_num_threads(odd := before + 1)  # not what a library would choose
    try:
        for contender in others:
            try:
                contender.setup()()
            except (ImportError, UserError, RuntimeError):
                continue  # not installed, or not working here
            assert torch.get_num_threads() == odd, contender.name
            found.add(contender.name)
    finally:
        torch.set_num_threads(before)
    if not found:
        pytest.skip("no other library is installed")


def test_peak_memory_counts_what_a_call_frees_again():
    """The peak of a call is its worst moment, not what is left at the end."""

    def call():
        torch.ones(64 << 18).sum()
        return torch.ones(1 << 18)

    peak = peak_memory(call, "cpu")
    assert 62 < peak.extra / 2**20 < 72  # the kernel counts pages a little late
    assert peak.process > 2 * peak.extra, "torch alone takes more"


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    """The other process finds the implementation by name; the result alone is larger than the measured minimum."""
    module = suites.load("ops")
    made = module.inputs(20 * POINTS)
    torch.save(made, tmp_path / "inputs.pt")
    peak = measured_apart("ops", "KPConv forward", OURS, tmp_path / "inputs.pt", False)
    result = 4 * module.CHANNELS * module.describe(made)["layer points"]
    assert result < peak.extra < 20 * result


def test_why_memory_was_not_measured(tmp_path):
    """What goes wrong in the other process is an error here that says so."""
    with pytest.raises(RuntimeError, match=r"FileNotFoundError.*missing\.pt"):
        measured_apart("ops", "Neighbors.transposed", OURS, tmp_path / "missing.pt", False)


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
    assert ours["time_ratio"] == 1
    for result in (ours, book):
        assert result["status"] == "measured"
        times = result["seconds"]
        assert times["repeats"] == 2 and 0 < times["min"] <= times["median"] <= times["max"]
        assert result["floor_share"] == row["floor"]["seconds"] / times["median"]
        assert result["time_ratio"] == times["median"] / ours["seconds"]["median"]
        assert result["peak_bytes"] >= 0
    printed = capsys.readouterr()
    assert printed.out.startswith(table.head(report)) and table.plain(row) in printed.out
    assert "measuring Neighbors.transposed… (1 of 1)" in printed.err
    assert all(result["name"] in table.markdown(report) for result in (ours, book))


def test_a_report_names_the_build_of_a_library(tmp_path, monkeypatch):
    """Wheels for a GPU have names of their own, as spconv-cu120: they are found by the package in them."""
    (tmp_path / "spconv_cu120-2.3.8.dist-info").mkdir()
    for name, text in (("METADATA", "Name: spconv-cu120\nVersion: 2.3.8\n"), ("top_level.txt", "spconv\n")):
        (tmp_path / "spconv_cu120-2.3.8.dist-info" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = versions()
    assert found["spconv-cu120"] == "2.3.8" and found["torch"] == torch.__version__


def test_only_a_full_run_replaces_published_results(tmp_path, monkeypatch, capsys):
    """The file behind the documented tables is written with all rows, points and repeats, and not otherwise."""
    monkeypatch.setattr(__main__, "RESULTS", tmp_path)
    monkeypatch.setattr(__main__, "run", lambda *arguments: {"arguments": arguments})
    for toy in (["--points", "4000"], ["--repeats", "1"], ["--rows", "pyramid of a ball"]):
        assert main(["pyramid", *toy]) == 0
        assert not list(tmp_path.iterdir()) and "no file will be written" in capsys.readouterr().err
    assert main(["pyramid"]) == 0
    (written,) = tmp_path.iterdir()
    assert re.fullmatch(r"pyramid-[a-z0-9-]+\.json", written.name)


def test_help_lists_the_rows(capsys):
    """Whoever reads --help knows what --rows takes."""
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for suite in suites.NAMES for name in suites.row_names(suite, "cpu"))


def test_table_leaves_out_what_says_nothing():
    """Ours is not compared with itself, nor memory that is too little to be measured; equal results differ by 0."""
    tensor = torch.ones(1)
    contenders = [Contender(name, lambda: lambda: (tensor,)) for name in (OURS, "lean", "large")]
    peaks = {OURS: 2 << 20, "lean": 1 << 18, "large": 6 << 20}
    row = Row("a row", lambda: Work(1, 1), contenders)
    machine = {"float32": 1e12, "copy": 1e12}

    def peak(name, call):
        return Peak(peaks[name], 300 << 20)

    report = measured(row, "cpu", machine, 2, peak)
    ours, lean, large = map(table.cells, report["implementations"])
    assert (ours[2], ours[4], ours[7]) == ("–", "–", "–")
    assert (lean[4], lean[7]) == ("–", "0")
    assert (large[3], large[4], large[5], large[6]) == ("6.0 MiB", "3.0×", "–", "<1%")

    whole = measured(replace(row, whole_process=True), "cpu", machine, 2, peak)
    assert table.cells(whole["implementations"][2])[5] == "300 MiB"
    rated = measured(replace(row, amount=3, unit="rooms/s"), "cpu", machine, 2, peak)
    assert re.fullmatch(r"[\d,.e+]+ rooms/s", table.cells(rated["implementations"][0])[8])
    about = {"device": {"kind": "cpu", "name": "cpu", "threads": 2}, "machine": machine, "versions": {}, "inputs": {}}
    shown = [table.markdown({**about, "date": "", "rows": [each]}) for each in (report, whole, rated)]
    assert ["process" in text for text in shown] == [False, True, False], "a column without a figure is left out"
    assert ["rooms/s" in text for text in shown] == [False, False, True]


def test_interrupted(tmp_path):
    """Ctrl-C, which a terminal sends to all processes of a run, ends it with one line, exit code 130 and no file."""
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks", "ops", "--points", "4000", "--out", str(out)]
    root = document.PAGE.parents[1]
    run = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with run:
        for line in run.stderr:
            if line.startswith("measuring"):
                break
        os.killpg(run.pid, signal.SIGINT)
        assert run.stderr.read() == "interrupted: nothing was written\n"
    assert run.returncode == 130 and not out.exists()


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
    row = Row("a row", lambda: Work(1, 1), contenders)
    report = measured(row, "cpu", {"float32": 1.0, "copy": 1.0}, 2, lambda name, call: Peak(0, 0))
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
        (["ops", "--out", ""], "--out must name a file, got ''"),
        (["ops", "--out", "{folder}"], "--out must name a file, got '{folder}'"),
        (["ops", "--out", "{folder}/file/x.json"], "--out: {folder}/file/x.json cannot be written"),
    ],
)
def test_mistakes_are_one_line_errors(arguments, message, tmp_path, monkeypatch, capsys):
    """A mistake ends with exit code 2 and a line that names it, before anything is measured."""
    monkeypatch.setattr(__main__, "run", None)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit:
        main([argument.format(folder=tmp_path) for argument in arguments])
    assert exit.value.code == 2
    assert message.format(folder=tmp_path) in capsys.readouterr().err.splitlines()[-1]


def test_missing_results_are_a_one_line_error(tmp_path, monkeypatch, capsys):
    """The page is not touched when one of its tables has no file."""
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    before = document.PAGE.stat().st_mtime_ns
    assert document.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "ops-amd-epyc.json") in line and "`python -m benchmarks ops`" in line
    assert document.PAGE.stat().st_mtime_ns == before


def test_documented_tables_are_those_of_the_results():
    """Every figure in docs/benchmarks.md comes from a file of results."""
    page = document.PAGE.read_text()
    assert document.filled(page) == page
