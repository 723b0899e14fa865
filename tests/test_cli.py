"""The command line as a user types it: the whole road on procedural rooms, and every mistake a one-line error."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from plyfile import PlyData, PlyElement

import dsp_sparse.__main__ as program
from dsp_sparse import __version__
from dsp_sparse.cli import main
from dsp_sparse.testing import engines
from dsp_sparse.training import loop

SETTINGS = {
    "data": {"train_groups": ["Area_1", "Area_2"], "test_groups": ["Area_3"], "label_rate": 0.1, "batch_size": 2},
    "kpfcnn": {"grid_size": 0.15, "first_width": 8, "blocks": [1, 1, 1]},
    "minkunet": {"voxel_size": 0.15, "planes": [8] * 8, "layers": [1] * 8},
    "optim": {"epochs": 1, "steps_per_epoch": 2},
    "eval": {"votes": 1},
}


def run(*arguments) -> int:
    """The exit code of `dsp-sparse ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    return exit.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with raw rooms, a store and a settings file, all made by the program."""
    folder = tmp_path_factory.mktemp("cli")
    assert run("rooms", folder / "raw", "--rooms", 3, "--points", 6000, "--seed", 1, "--areas", 3) == 0
    (folder / "raw" / "Area_1.zip").touch()  # what a download leaves beside the areas
    assert run("prepare", "s3dis", folder / "raw", folder / "store", "--grid", 0.15) == 0
    vertex = np.zeros(2, [(n, "f8") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")])
    vertex["x"] = vertex["y"] = vertex["z"] = 0, 1e9
    PlyData([PlyElement.describe(vertex, "vertex")]).write(str(folder / "wide.ply"))
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "store": str(folder / "store")}}
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_prepare_names_every_broken_cloud(folder, tmp_path, capsys):
    """And prepares the others: the same command goes on when those are mended."""
    shutil.copytree(folder / "raw", tmp_path / "raw")
    broken = [next((tmp_path / "raw" / area).glob("*/Annotations/floor_*.txt")) for area in ("Area_1", "Area_3")]
    for path in broken:
        path.write_text("1 2 3\n")
    assert run("prepare", "s3dis", tmp_path / "raw", tmp_path / "store", "--grid", 0.15) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dsp-sparse prepare: error: ")]
    assert [str(path) in line for path, line in zip(broken, lines, strict=False)] == [True, True]
    assert len(lines) == 3 and "2 of 3 clouds are left" in lines[2]
    assert len(list((tmp_path / "store" / "scenes").iterdir())) == 1


@pytest.fixture(scope="module")
def trained(folder):
    """A run folder of the whole method, two stages."""
    assert run("train", folder / "train.yaml", "--out", folder / "run", "--method", "csfr-isfr") == 0
    return folder / "run"


def test_label_prints_every_class(folder, capsys):
    assert run("label", folder / "store", "--rate", 0.1) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ceiling", "floor", "clutter"))


@pytest.mark.parametrize(
    "groups", [["Area_1", "Area_3"], ["Area_1,Area_3"], ["[Area_1, Area_3]"], ['["Area_1", "Area_3"]']]
)
def test_label_takes_so_many_points_of_the_groups_that_are_named(folder, capsys, groups):
    assert run("label", folder / "store", "--points", 20, "--groups", *groups) == 0
    printed = capsys.readouterr().out
    assert "40 of " in printed and "2 clouds are labelled" in printed
    labelled = {path.stem for path in (folder / "store" / "weak" / "points-20-seed-0").iterdir()}
    assert len(labelled) == 2 and all(name.startswith(("Area_1", "Area_3")) for name in labelled)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--by", "cloud", "--points", 5], "--by says what --rate is a share of, got cloud with --points or --mask"),
        (["--mask-field", "seen"], "--mask_field is a field of the files of --mask, got seen without a mask"),
        (["--groups", ""], "argument --groups: expected words, got ''"),
        (["--rate", "x"], "rate must be a finite number or null, got x"),
    ],
)
def test_label_refuses_flags_that_do_not_go_together(folder, capsys, flags, message):
    assert run("label", folder / "store", *flags) == 2
    assert capsys.readouterr().err == f"dsp-sparse label: error: {message}\n"


def test_flags_are_written_with_hyphens_or_underscores(folder, capsys):
    for flag in ("--tile-points", "--tile_points"):
        assert run("prepare", "s3dis", folder / "raw", folder / "new", "--grid", 0.15, f"{flag}=0") == 2
        assert "tile_points must be at least 1, got 0" in capsys.readouterr().err


def test_a_missing_argument_is_named_as_the_help_names_it(capsys):
    assert run("prepare", "s3dis") == 2
    assert capsys.readouterr().err.endswith("error: the following arguments are required: source, store\n")
    assert run("prepare", "clouds", "raw", "store") == 2
    assert "needs --config" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"dsp-sparse {__version__}\n"


def test_train_prints_scores_and_leaves_a_whole_run_folder(trained):
    names = {p.name for p in trained.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoint.pt", "model.pt", "modules.pt", "results.json"}
    assert not [n for n in names if n.startswith(".")]


@pytest.mark.parametrize("branch", ["basic", "cross", "intra"])
def test_evaluate_repeats_the_scores_of_training(trained, branch, capsys):
    assert run("evaluate", trained, "--branch", branch) == 0
    assert "mIoU" in capsys.readouterr().out
    scores = json.loads((trained / f"evaluation-{branch}.json").read_text())
    assert scores["points"] > 0
    if branch == "basic":
        assert scores["confusion"] == json.loads((trained / "results.json").read_text())["confusion"]


def test_predict_labels_every_point_and_keeps_its_fields(trained, tmp_path, capsys):
    vertex = np.zeros(700, [(n, "f8") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")] + [("id", "i4")])
    generator = np.random.default_rng(0)
    for name in "xyz":
        vertex[name] = generator.uniform(0, 2, 700) + 6e5  # projected metres
    vertex["id"] = np.arange(700)
    PlyData([PlyElement.describe(vertex, "vertex")]).write(str(tmp_path / "in.ply"))
    assert run("predict", trained, tmp_path / "in.ply", "--out", tmp_path / "out.ply") == 0
    assert f"{tmp_path / 'out.ply'}: {len(vertex)} points\n" in capsys.readouterr().out
    predicted = PlyData.read(str(tmp_path / "out.ply"))["vertex"].data
    for name in ("x", "y", "z", "id"):
        np.testing.assert_array_equal(predicted[name], vertex[name])
    assert predicted["label"].min() >= 0 and predicted["label"].max() < 13
    assert predicted["confidence"].min() > 0 and predicted["confidence"].max() <= 1


def test_another_engine_for_a_trained_model(folder, tmp_path, capsys):
    """A model of an engine that is missing here says so, and names the flag under which it runs with another."""
    settings = ["--backbone", "minkunet", "--method", "baseline"]
    assert run("train", folder / "train.yaml", "--out", tmp_path / "run", *settings) == 0
    model = torch.load(tmp_path / "run" / "model.pt")
    model["content"]["options"]["engine"] = "minkowski"
    torch.save(model, tmp_path / "run" / "model.pt")
    vertex = np.zeros(99, [(n, "f8") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")])
    vertex["x"] = np.linspace(0, 2, 99)
    PlyData([PlyElement.describe(vertex, "vertex")]).write(str(tmp_path / "in.ply"))
    commands = (
        ["evaluate", tmp_path / "run"],
        ["predict", tmp_path / "run", tmp_path / "in.ply", "--out", tmp_path / "o.ply"],
    )
    for command in commands:
        capsys.readouterr()
        if "minkowski" not in engines():
            assert run(*command) == 2
            assert "(evaluate and predict: --engine native)" in capsys.readouterr().err
        assert run(*command, "--engine", "native") == 0
    assert (tmp_path / "run" / "evaluation-basic-native.json").exists() and (tmp_path / "o.ply").exists()


def test_compare_runs_the_matrix_once(folder, capsys):
    settings = yaml.safe_load((folder / "train.yaml").read_text())
    comparison = {
        "train": settings,
        "backbones": ["kpfcnn", "minkunet"],
        "methods": ["baseline", "csfr-isfr"],
        "label_rates": [0.1],
        "seeds": [0],
        "out": str(folder / "compare"),
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(comparison))
    assert run("compare", folder / "compare.yaml") == 0
    first = json.loads((folder / "compare" / "results.json").read_text())
    assert [(r["backbone"], r["method"]) for r in first["runs"]] == [
        (b, m) for b in comparison["backbones"] for m in comparison["methods"]
    ]
    assert len({r["results"]["steps"] for r in first["runs"]}) == 1, "equal updates"
    assert (folder / "compare" / "figure.png").stat().st_size > 1000
    table = (folder / "compare" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert run("compare", folder / "compare.yaml") == 0
    assert json.loads((folder / "compare" / "results.json").read_text()) == first, "a finished comparison is kept"


@pytest.mark.parametrize(
    "flags, place",
    [
        ([], "{f}/wrong.yaml: "),
        (["--optim.epochs", "2"], "{f}/wrong.yaml: "),
        (["--optim.lr", "fast"], ""),
        (["--optim.speed", "2"], ""),
    ],
)
def test_a_mistake_is_blamed_on_whoever_made_it(flags, place, folder, tmp_path, capsys):
    """The settings file is named where it is wrong, not where a flag is."""
    settings = yaml.safe_load((folder / "train.yaml").read_text())
    file = "train.yaml"
    if place:
        file, settings["optim"]["lr"] = "wrong.yaml", "fast"
        (folder / file).write_text(yaml.safe_dump(settings))
    assert run("train", folder / file, "--out", tmp_path / "run", *flags) == 2
    message = capsys.readouterr().err
    assert ("optim.speed" if "--optim.speed" in flags else "optim.lr") in message
    assert message.startswith(f"dsp-sparse train: error: {place.format(f=folder)}") and (".yaml" in message) == bool(
        place
    )


def test_doctor_finds_the_cpu_kernels_and_says_why_there_is_no_gpu(capsys):
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    assert "kernels on cpu" in printed and "backbone minkunet" in printed


def test_torchrun_does_not_compare(folder, tmp_path, monkeypatch, capsys):
    """Several processes would train the same networks in one folder; each training alone may have several."""
    settings = yaml.safe_load((folder / "train.yaml").read_text())
    matrix = {"backbones": ["kpfcnn"], "methods": ["baseline"], "label_rates": [0.1], "seeds": [0]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"train": settings, **matrix}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run("compare", tmp_path / "c.yaml", "--out", tmp_path / "out") == 2
    assert "compare runs in one process, got WORLD_SIZE 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_full_is_one_line(folder, tmp_path, monkeypatch, capsys):
    """No trace of where in the program; what takes less is named."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr(loop, "train", full)
    assert run("train", folder / "train.yaml", "--out", tmp_path / "run") == 1
    told = "CUDA out of memory; smaller data.batch_size, eval.batch_size or data.radius take less"
    assert capsys.readouterr().err == f"dsp-sparse train: error: {told}\n"


@pytest.fixture
def comparison(folder, tmp_path):
    """`comparison(key=value, …)` is a file of a comparison with other settings."""

    def write(**changes):
        settings = {"train": yaml.safe_load((folder / "train.yaml").read_text()), "backbones": ["kpfcnn"]}
        settings |= {"methods": ["baseline"], "label_rates": [0.1], "seeds": [0], **changes}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
        return tmp_path / "c.yaml"

    return write


SCORE = {"method": "csfr", "label_rate": 0.1, "miou": 66.8}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"seeds": 3}, "seeds must be a list like [a, b], got 3"),
        (
            {"methods": ["csfr", "dsp"]},
            "methods must be one of baseline, csfr, isfr, joint, csfr-isfr, isfr-csfr, got dsp",
        ),
        ({"variants": [{"name": "a"}]}, "variants.1 lacks method"),
        ({"variants": ["a"]}, "variants.1 must hold settings by name, got 'a'"),
        ({"variants": [{"name": 1, "method": "csfr"}]}, "variants.name must be text, got 1"),
        (
            {"variants": [{"name": "a", "method": "csfr", "epochs": 1}]},
            "there is no setting variants.1.epochs, expected name, ",
        ),
        ({"paper": [SCORE, {**SCORE, "miou": "high"}]}, "paper.miou must be a finite number, got high"),
        ({"paper": [SCORE | {"iou": {"floor": "x"}}]}, "paper.iou must be a finite number, got x"),
        ({"paper": [SCORE | {"branch": "both"}]}, "paper.branch must be one of basic, cross, intra, got both"),
        (
            {"train": {"data": {"store": "s", "test_groups": [], "size": 1}}},
            "there is no setting train.data.size, expected store, ",
        ),
        ({"speed": 1}, "there is no setting speed, expected train, backbones, "),
        ({"steps": 9}, "there is no setting steps, expected train, backbones, "),
        ({"config": "other.yaml"}, "there is no setting config, expected train, backbones, "),
    ],
)
def test_a_setting_of_a_comparison_that_does_not_fit(changes, problem, comparison, tmp_path, capsys):
    file = comparison(**changes)
    assert run("compare", file, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"dsp-sparse compare: error: {file}: {problem}")


@pytest.mark.parametrize("command", ["train", "compare", "estimate"])
def test_a_settings_file_that_is_not_text(command, tmp_path, capsys):
    file = tmp_path / "model.pt"
    file.write_bytes(b"PK\x03\x04\xff")
    assert run(command, file) == 2
    assert capsys.readouterr().err.startswith(f"dsp-sparse {command}: error: {file}: not text in UTF-8")


def test_settings_are_printed_as_they_would_be_taken(folder, tmp_path, capsys):
    assert run("train", folder / "train.yaml", "--out", tmp_path / "r", "--optim.epochs", 7, "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["epochs"] == 7


def test_the_help_of_a_command_names_it(capsys):
    for command in ("prepare", "train"):
        assert run(command, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: dsp-sparse {command} ")


def test_settings_without_a_file(folder, capsys):
    for words in ([], ["--out", "run", folder / "train.yaml"], ["--seed", 3, f"--config={folder / 'train.yaml'}"]):
        assert run("train", *words) == 2
        assert "settings are a file, which comes first: dsp-sparse train SETTINGS.yaml\n" in capsys.readouterr().err
    assert run() == 2
    assert "expected a command, one of rooms, prepare, " in capsys.readouterr().err
    assert run("--", "check", folder / "store") == 2  # not silently nothing
    assert "expected a command" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, name",
    [
        (["rooms", ""], "out"),
        (["prepare", "s3dis", "{f}/raw", ""], "store"),
        (["evaluate", ""], "run"),
        (["predict", "{f}/run", "{f}/wide.ply", "--out", ""], "out"),
        (["report", ""], "path"),
        (["report", "{f}", "--out="], "out"),
        (["folds", "{f}", ""], "runs"),
        (["train", "{f}/train.yaml", "--out", ""], "out"),
        (["compare", "{c}", "--out", ""], "out"),
        (["estimate", "{c}", "--out", ""], "out"),
    ],
)
def test_an_empty_argument_is_no_folder(words, name, folder, comparison, capsys, tmp_path, monkeypatch):
    file = comparison()
    monkeypatch.chdir(tmp_path)
    assert run(*(word.format(f=folder, c=file) for word in words)) == 2
    assert f"error: {name} must not be empty, got " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "words, name, found",
    [
        (["rooms", "{c}"], "out", "which is a file"),
        (["prepare", "s3dis", "{f}/raw", "{c}"], "store", "which is a file"),
        (["predict", "{f}/run", "{f}/raw", "--out", "{c}"], "out", "which is a file"),
        (["train", "{f}/train.yaml", "--out", "{c}"], "out", "which is a file"),
        (["train", "{f}/train.yaml", "--out", "{c}/new/run"], "out", "c.yaml is a file"),
        (["compare", "{c}", "--out", "{c}"], "out", "which is a file"),
        (["compare", "{c}", "--out", "{t}/new", "--runs", "{c}"], "runs", "which is a file"),
        (["estimate", "{c}", "--out", "{c}"], "out", "which is a file"),
        (["report", "{f}/run", "--out", "{t}"], "out", "which is a folder"),
        (["report", "{f}/run", "--out", "{c}/report.html"], "out", "c.yaml is a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    words, name, found, folder, trained, comparison, tmp_path, capsys
):
    file = comparison()
    capsys.readouterr()
    assert run(*(word.format(f=folder, c=file, t=tmp_path) for word in words)) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"dsp-sparse \w+: error: {name} must be a \w+ to write, got \S+ .*{found}\n", printed.err)
    assert printed.out == "" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "words, cause",
    [
        (["evaluate", "{f}/none"], "{f}/none: not the folder of a run (no config.yaml)"),
        (["evaluate", "{f}/begun"], "{f}/begun: not a finished run (no model.pt), expected one"),
        (
            ["predict", "{f}/none", "{f}/wide.ply"],
            "{f}/none: no such file or folder, expected a finished run or its mod",
        ),
        (["folds", "{f}/none"], "{f}/none: no such file or folder, expected a finished run or an evaluation of one"),
        (["folds", "{f}/begun"], "{f}/begun: not a finished run (no results.json), expected a finished run or"),
        (["report", "{f}/train.yaml"], "{f}/train.yaml: a file, expected the folder of a run or of a comparison"),
        (["report", "{f}/run", "--full", "{f}/none"], "{f}/none: no"),
        (["evaluate", "{f}/run", "--engine", "native"], "engine is for a minkunet, got native for {f}/run/model.pt, a"),
    ],
)
def test_what_is_not_a_finished_run(words, cause, folder, trained, capsys):
    (folder / "begun").mkdir(exist_ok=True)
    shutil.copy(trained / "config.yaml", folder / "begun")
    capsys.readouterr()
    assert run(*(word.format(f=folder) for word in words)) == 2
    assert f": error: {cause.format(f=folder)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "work, words, left",
    [
        ("dsp_sparse.data.generate_rooms", ["rooms", "{t}/r"], "makes the rooms that are left"),
        ("dsp_sparse.experiments.report.write_report", ["report", "{t}"], "begins anew"),
        ("dsp_sparse.training.loop.train", ["train", "{f}/train.yaml", "--out", "{t}/r"], "goes on where it stopped"),
    ],
)
def test_an_interruption_tells_what_the_same_command_does(work, words, left, folder, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, stop)
    assert run(*(word.format(f=folder, t=tmp_path) for word in words)) == 130
    assert capsys.readouterr().err == f"interrupted: the same command {left}\n"


def test_an_interruption_of_the_imports_is_one_line(monkeypatch, capsys):
    class Stop:
        """What Python asks where a module is; it was interrupted there."""

        @staticmethod
        def find_spec(name, path, target=None):
            if name == "dsp_sparse.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dsp_sparse.cli")
    monkeypatch.setattr(sys, "meta_path", [Stop, *sys.meta_path])
    with pytest.raises(SystemExit) as exit:
        program.main()
    assert exit.value.code == 130
    assert capsys.readouterr().err == "interrupted: nothing was begun\n"


def test_python_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "dsp_sparse", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "compare" in done.stdout


MISTAKES = {
    "no such data set": (["prepare", "kitti", "{f}/raw", "{t}/s"], "kitti"),
    "missing folder": (["prepare", "s3dis", "{f}/nothing", "{t}/s"], "nothing"),
    "clouds without description": (["prepare", "clouds", "{f}/raw", "{t}/s"], "config"),
    "negative grid": (["prepare", "s3dis", "{f}/raw", "{t}/s", "--grid", "-1"], "grid"),
    "other grid in the same folder": (["prepare", "s3dis", "{f}/raw", "{f}/store", "--grid", "0.2"], "grid"),
    "rate of zero": (["label", "{f}/store", "--rate", "0"], "rate"),
    "rate above one": (["label", "{f}/store", "--rate", "1.5"], "rate"),
    "rate and points": (
        ["label", "{f}/store", "--rate", "0.1", "--points", "2"],
        "--rate, --points and --mask exclude",
    ),
    "no masks": (["label", "{f}/store", "--mask", "{t}"], "no mask of the cloud"),
    "not a number": (
        ["train", "{f}/train.yaml", "--out", "{t}/r", "--data.radius", "nan"],
        "data.radius must be a finite number, got nan",
    ),
    "not a whole number": (
        ["train", "{f}/train.yaml", "--out", "{t}/r", "--data.max_points", "1.5"],
        "data.max_points must be a whole number or null, got 1.5",
    ),
    "no such protocol": (
        ["train", "{f}/train.yaml", "--out", "{t}/r", "--data.label_by", "room"],
        "data.label_by must be one of class, cloud, got room",
    ),
    "not a store": (["label", "{f}/raw"], "raw"),
    "no settings file": (["train", "{f}/none.yaml", "--out", "{t}/r"], "none.yaml"),
    "unknown key": (["train", "{f}/train.yaml", "--out", "{t}/r", "--optim.speed", "3"], "optim.speed"),
    "wrong type": (["train", "{f}/train.yaml", "--out", "{t}/r", "--optim.lr", "fast"], "optim.lr"),
    "no out": (["train", "{f}/train.yaml"], "out"),
    "unknown group": (["train", "{f}/train.yaml", "--out", "{t}/r", "--data.test_groups", "[Area_9]"], "Area_9"),
    "store of another grid": (["train", "{f}/train.yaml", "--out", "{t}/r", "--kpfcnn.grid_size", "0.1"], "grid"),
    "label rate": (["train", "{f}/train.yaml", "--out", "{t}/r", "--data.label_rate", "0"], "rate"),
    "odd batch of pairs": (["train", "{f}/train.yaml", "--out", "{t}/r", "--data.batch_size", "3"], "batch_size"),
    "no epochs": (["train", "{f}/train.yaml", "--out", "{t}/r", "--optim.epochs", "0"], "epochs"),
    "no such device": (["train", "{f}/train.yaml", "--out", "{t}/r", "--device", "abacus"], "abacus"),
    "not a run": (["evaluate", "{f}/raw"], "raw"),
    "cloud of another kind": (["predict", "{f}/run", "{f}/train.yaml", "--out", "{t}/p.ply"], "train.yaml"),
    "cloud in millimetres": (["predict", "{f}/run", "{f}/wide.ply", "--out", "{t}/p.ply"], "are the units metres?"),
    "no such cloud": (["predict", "{f}/run", "{f}/none.ply", "--out", "{t}/p.ply"], "none.ply"),
    "predict without a model": (["predict", "{f}/raw", "{f}/none.ply", "--out", "{t}/p.ply"], "raw"),
    "out below a file": (["train", "{f}/train.yaml", "--out", "{f}/train.yaml/run"], "train.yaml"),
    "prediction over a folder": (["predict", "{f}/run", "{f}/none.ply", "--out", "{t}"], "out must be a file"),
    "engine of a network without": (["predict", "{f}/run", "{f}/wide.ply", "--engine", "native"], "engine"),
    "no such engine": (["evaluate", "{f}/run", "--engine", "steam"], "engine"),
    "no rooms": (["rooms", "{t}/rooms", "--rooms", "0"], "rooms"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_names_its_cause_and_leaves_nothing(mistake, folder, trained, tmp_path, capsys):
    arguments, cause = MISTAKES[mistake]
    capsys.readouterr()
    assert run(*(a.format(f=folder, t=tmp_path) for a in arguments)) == 2
    message = capsys.readouterr().err.strip()
    assert cause in message and message.startswith("dsp-sparse") and "\n" not in message
    assert not list(tmp_path.iterdir())
