"""The program `dsp-sparse`: one function a subcommand; its signature and docstring are the command line."""

import re
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

import torch

from . import __version__
from .config import CompareConfig, TrainConfig
from .distributed import join, leave, rank, require_one_process, together
from .errors import UserError
from .files import require_writable
from .parsers import own_arguments, plain_parser, settings_parser, summary
from .settings import build
from .training.stop import Interrupted, terminate_as_interrupt
from .wording import reworded


def rooms(out: str, rooms: int = 12, points: int = 100_000, seed: int = 0, areas: int = 3, workers: int = 1) -> None:
    """Generate furnished rooms with the 13 S3DIS classes, written in the S3DIS layout.

    Args:
        out: folder to write; finished rooms in it are kept.
        rooms: number of rooms, dealt out to the areas in turn.
        points: points a room.
        seed: seed of the generator.
        areas: number of areas; train on some and test on another.
        workers: rooms made at the same time.
    """
    from .data import generate_rooms

    require_writable("out", out, folder=True)
    generate_rooms(out, rooms, points, seed, areas, workers, progress=True)


def prepare(
    dataset: Literal["s3dis", "scannet", "clouds"],
    source: str,
    store: str,
    grid: float = 0.04,
    workers: int = 1,
    tile_points: int = 8_000_000,
    overlap: float | None = None,
    config: str | None = None,
) -> int:
    """Turn raw clouds into a scene store: grid-subsampled, memory-mapped, with the way back to every original point.

    Args:
        dataset: layout of the raw data.
        source: folder of the raw data.
        store: folder to write; finished clouds in it are kept, even if their source has changed.
        grid: cell size of the grid subsampling, in metres.
        workers: clouds prepared at the same time.
        tile_points: most points of a scene; larger clouds are cut into tiles. A worker holds a tile and its margin.
        overlap: margin of the tiles in metres; 50 cells by default.
        config: YAML that describes the files (clouds only): fields, classes, features, groups.
    """
    from .data import clouds, s3dis, scannet
    from .data import prepare as write_store
    from .data.prepare import BrokenCloudsError

    require_writable("store", store, folder=True)
    if dataset == "clouds" and config is None:
        raise UserError("the data set clouds needs --config, a YAML that describes the files (configs/data/lidar.yaml)")
    if dataset != "clouds" and config is not None:
        raise UserError(f"--config describes the data set clouds, {dataset} needs none; got {config}")
    if dataset == "clouds":
        found = clouds.scenes(source, clouds.CloudConfig.load(config))
    else:
        found = {"s3dis": s3dis, "scannet": scannet}[dataset].scenes(source)
    try:
        write_store(found, store, grid, workers, tile_points, overlap)
    except BrokenCloudsError as error:
        for problem in error.problems:
            fail("dsp-sparse prepare", problem)
        left = f"{len(error.problems)} of {error.total} clouds are left; mend them and type the same command again"
        return fail("dsp-sparse prepare", f"{store}: {left}")
    return 0


def check(store: str) -> int:
    """Compare the files of a store's scenes with their checksums and weak labels with their scenes; list all damaged.

    The settings at the head of the manifest have no checksum.

    Args:
        store: scene store.
    """
    from .data import SceneStore
    from .data.check import check

    opened = SceneStore.open(store)
    problems, files, size = check(opened)
    for problem in problems:
        fail("dsp-sparse check", problem)
    if problems:
        return fail("dsp-sparse check", f"{store}: {len(problems)} of {files} files are damaged")
    print(f"{store}: all is well: {len(opened.scenes)} scenes, {files} files, {size / 1e6:,.1f} MB of arrays")
    return 0


def label(
    store: str,
    rate: float | None = None,
    points: int | None = None,
    mask: str | None = None,
    by: Literal["class", "cloud"] | None = None,
    mask_field: str | None = None,
    seed: int = 0,
    groups: list[str] | None = None,
) -> None:
    """Choose the points of a store that carry a weak label, once for all runs with these settings, and print how many.

    Args:
        store: scene store.
        rate: share of the points, in (0, 1]; 0.1 by default.
        points: so many points a cloud instead, whatever their class.
        mask: folder of masks of the original points instead, <cloud>.npy (bool) or <cloud>.ply.
        by: what the rate is a share of, the points of each class of a cloud (at least one) or of the cloud; class.
        mask_field: field of PLY masks, not 0 where a point is labelled; `labelled` by default.
        seed: seed of the draw.
        groups: scene groups to label; all by default.
    """
    from .data import Labelling, SceneStore, label_table, weak_labels

    if sum(given is not None for given in (rate, points, mask)) > 1:
        raise UserError("--rate, --points and --mask exclude each other")
    if by is not None and (points is not None or mask is not None):
        raise UserError(f"--by says what --rate is a share of, got {by} with --points or --mask")
    if mask_field is not None and mask is None:
        raise UserError(f"--mask_field is a field of the files of --mask, got {mask_field} without a mask")
    given = {"rate": rate, "by": by, "points": points, "mask": mask, "mask_field": mask_field, "seed": seed}
    labelling = Labelling(**{name: value for name, value in given.items() if value is not None})
    opened = SceneStore.open(store)
    scenes = opened.scenes if groups is None else opened.group(groups)
    print(label_table(opened.classes, scenes, weak_labels(opened, labelling, scenes)))


def evaluate(
    run: str,
    store: str | None = None,
    groups: list[str] | None = None,
    branch: Literal["basic", "cross", "intra"] = "basic",
    engine: str | None = None,
    votes: int | None = None,
    rotations: int | None = None,
) -> None:
    """Evaluate a trained run on every original point of its test scenes and print the scores.

    Args:
        run: run folder; the scores are written into it.
        store: scene store; the run's own by default.
        groups: scene groups to evaluate; the run's test groups by default.
        branch: basic is the backbone alone; cross and intra decode reallocated features (paper Table 3).
        engine: engine of a MinkUNet; the model's own by default.
        votes: how often every point is seen at least; the run's eval.votes by default.
        rotations: angles about the vertical axis that every ball is shown at; the run's eval.rotations by default.
    """
    from .experiments.evaluation import evaluate_run, score_table

    join()
    results = evaluate_run(run, store, groups, branch, engine, votes, rotations)
    if rank() == 0:
        print(score_table(results))
        print(f"written to {Path(run) / results['file']}")


def predict(
    run: str,
    source: str,
    out: str | None = None,
    format: Literal["ply", "npy", "scannet"] = "ply",
    pattern: str | None = None,
    columns: list[str] | None = None,
    votes: int = 3,
    rotations: int = 1,
    device: str = "auto",
    engine: str | None = None,
) -> int:
    """Label every point of a cloud, or of all clouds of a folder.

    Args:
        run: run folder, or the model.pt of one.
        source: file (ply, las, laz, npy, npz, txt, xyz, pts, csv, asc) with the fields the model was trained on, or a
            folder of such files, links are followed; what is finished in out is kept.
        out: file to write, for a folder a folder; predicted.EXTENSION or predicted by default.
        format: ply has all fields, the colour of the class, label and confidence; npy the labels, and the confidence in
            a second file; scannet is the benchmark's text, a NYU40 id a line.
        pattern: which files of the folder, like **/*_vh_clean_2.ply.
        columns: names of the columns of a text or npy file that does not name them, like [x,y,z,intensity].
        votes: how often every point is seen at least; probabilities are averaged.
        rotations: angles about the vertical axis that every ball is shown at.
        device: torch device; auto takes the GPU when there is one.
        engine: engine of a MinkUNet; the model's own by default.
    """
    from .experiments.prediction import predict

    join()
    failed = predict(run, source, out, format, pattern, columns, votes, rotations, device, engine)
    return int(failed > 0)


def folds(runs: list[str]) -> None:
    """Pool the scores of runs that tested on different groups, such as the six areas of S3DIS, and print them.

    Args:
        runs: run folders (their results.json) or evaluation files; the same classes and votes, no group twice.
    """
    from .experiments.folds import aggregate, fold_table

    print(fold_table(aggregate(runs)))


def report(path: str, out: str | None = None, full: str | None = None) -> None:
    """Write one HTML file about a run or a comparison: tables, curves, pictures and a scene in 3D; works offline.

    Args:
        path: run folder or folder of a comparison, finished or not.
        out: file to write; report.html in the folder by default.
        full: run folder of full supervision to show beside weak supervision; the comparison's own by default.
    """
    from .experiments.report import write_report

    require_one_process("report")
    print(f"written to {write_report(path, out, full)}")


def doctor(install_minkowski: bool = False, cuda: bool = False) -> int:
    """Say what is installed, which kernels, devices and engines work here, and why the others do not.

    Args:
        install_minkowski: instead, build MinkowskiEngine 0.5.4 on the torch that is here, install it and try it.
        cuda: with --install-minkowski: build it for CUDA too.
    """
    if cuda and not install_minkowski:
        raise UserError("--cuda belongs to --install-minkowski")
    if install_minkowski:
        from .minkowski_install import install_minkowski as install

        return install(cuda)
    from .doctor import diagnose

    return diagnose()


def train(config: TrainConfig, out: str, resume: bool = False) -> None:
    """Train one network and evaluate it; an interrupted run resumes where it stopped. torchrun: in several processes.

    Args:
        config: settings of the run.
        out: run folder.
        resume: refuse to begin a run: there must be one of these settings in the folder to go on with.
    """
    from .experiments.evaluation import score_table
    from .training.loop import train

    join()
    with together():
        require_writable("out", out, folder=True)
    results = train(config, out, resume)
    if rank() == 0:
        print(score_table(results))


def compare(config: CompareConfig, out: str) -> int:
    """Train and evaluate a matrix {backbone x method x rate x seed (x engine)}; write table, results and figure.

    Args:
        config: settings of the comparison.
        out: folder of the comparison.
    """
    from .experiments.compare import compare
    from .experiments.table import errors

    require_one_process("compare")
    require_writable("out", out, folder=True)
    if config.runs is not None:
        require_writable("runs", config.runs, folder=True)
    report = compare(config, out)
    print((Path(out) / "table.md").read_text())
    return int(any(map(errors, report["runs"])))


def estimate(config: CompareConfig, out: str, steps: int = 8) -> None:
    """Measure steps on this device and tell how many hours a comparison will take here.

    Args:
        config: settings of the comparison.
        out: folder of the comparison; what is finished there does not count.
        steps: steps to time of every kind.
    """
    from .experiments.estimate import estimate, estimate_table

    require_one_process("estimate")
    require_writable("out", out, folder=True)
    print(estimate_table(estimate(config, out, steps)))


def fail(program: str, message: object) -> int:
    """Print a one-line error and return 2, the exit code of bad input."""
    print(f"{program}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def require_values(arguments: dict) -> None:
    """Raise a UserError for an argument that is empty: an empty path would be the current folder."""
    for name, value in arguments.items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise UserError(f"{name} must not be empty, got {value!r}")


PLAIN = {f.__name__: f for f in (rooms, prepare, check, label, evaluate, predict, folds, report, doctor)}
WITH_SETTINGS = {
    "train": (train, TrainConfig),
    "compare": (compare, CompareConfig),
    "estimate": (estimate, CompareConfig),
}

# What the same command does after an interruption, where it does not begin anew.
GOES_ON = {
    "rooms": "makes the rooms that are left",
    "prepare": "prepares the clouds that are left",
    "predict": "labels the clouds that are left",
    "train": "goes on where it stopped",
    "compare": "goes on where it stopped",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit.

    0 done, 1 a run failed or a part is broken, 2 bad input, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv and argv[0] in (*PLAIN, *WITH_SETTINGS) else ""
    program, again = f"dsp-sparse {name}".strip(), GOES_ON.get(name, "begins anew")
    try:
        with terminate_as_interrupt():
            code = execute(name, argv)
    except (UserError, OSError) as error:  # OSError: a file that cannot be read or written
        code = fail(program, error)
    except FloatingPointError as error:  # a training that diverged, not bad input
        fail(program, error)
        code = 1
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        fail(program, f"{reason}; smaller data.batch_size, eval.batch_size or data.radius take less")
        code = 1
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # killed, says torch
            raise
        fail(program, f"{error} (out of memory? fewer data.workers take less); the same command {again}")
        code = 1
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt as stop:
        if rank() == 0:
            print(f"interrupted: the same command {again}", file=sys.stderr)
        code = stop.code if isinstance(stop, Interrupted) else 130
    leave(code or 0)


def without_command(argv: Sequence[str]) -> NoReturn:
    """Tell the help or the version, if they are what a command line without a subcommand asks for.

    Raises:
        UserError: they are not.
        SystemExit: they were told.
    """
    parser = ArgumentParser("dsp-sparse", description="Segment 3D point clouds with few labels.", exit_on_error=False)
    parser.add_argument("--version", action="version", version=f"dsp-sparse {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    functions = PLAIN | {command: function for command, (function, _) in WITH_SETTINGS.items()}
    for command, function in functions.items():
        commands.add_parser(command, help=summary(function))
    with suppress(ArgumentError):
        parser.parse_known_args(argv)
    found = " ".join(argv) or "nothing"
    raise UserError(f"expected a command, one of {', '.join(functions)}, got {found}; dsp-sparse --help explains them")


def execute(name: str, argv: Sequence[str]) -> int | None:
    """Run the subcommand `name` with the command line `argv`, which begins with it; returns its exit code, None for 0.

    Raises:
        UserError: an argument or a setting that is refused; and whatever the subcommand raises.
        SystemExit: help or the version was asked for.
    """
    if not name:
        without_command(argv)
    parser = plain_parser(PLAIN[name]) if name in PLAIN else settings_parser(*WITH_SETTINGS[name])
    # Flags may be written with hyphens, too.
    words = [re.sub(r"^--[\w.-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in argv[1:]]
    as_typed = {word: original for word, original in zip(words, argv[1:], strict=True) if word != original}
    file_first = f"settings are a file, which comes first: dsp-sparse {name} SETTINGS.yaml"
    has_file = name in WITH_SETTINGS and bool(words) and not words[0].startswith("-")
    if name in WITH_SETTINGS and any(word.partition("=")[0] == "--config" for word in words):
        raise UserError(f"there is no --config; {file_first}")  # after a flag it would take the flag back
    if has_file:
        words.insert(0, "--config")
    try:
        parsed = parser.parse_args(words)
    except ArgumentError as error:
        message = reworded(str(error))
        for word, original in as_typed.items():
            message = message.replace(word, original)
        without_file = name in WITH_SETTINGS and not has_file
        if without_file and re.match("the following arguments are required|unrecognized arguments", message):
            message += f"; {file_first}"
        raise UserError(message) from None
    if name in PLAIN:
        own = vars(parsed)
        require_values(own)
        return PLAIN[name](**own)
    function, settings = WITH_SETTINGS[name]
    own = {key: parsed[key] for key in own_arguments(function)}
    require_values(own)
    return function(build(settings, parsed), **own)
