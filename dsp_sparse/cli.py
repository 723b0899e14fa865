"""The program `dsp-sparse`: one function a subcommand; its signature and docstring are the command line."""

import inspect
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser

from .config import CompareConfig, TrainConfig
from .errors import UserError

# A flag that is cut short is a mistake; it must not start a long build.
Parser = partial(ArgumentParser, exit_on_error=False, allow_abbrev=False)


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

    generate_rooms(out, rooms, points, seed, areas, workers, progress=True)


def prepare(
    dataset: Literal["s3dis", "scannet", "ply"],
    source: str,
    store: str,
    grid: float = 0.04,
    workers: int = 1,
    config: str | None = None,
) -> None:
    """Turn raw clouds into a scene store: grid-subsampled, memory-mapped, with the way back to every original point.

    Args:
        dataset: layout of the raw data.
        source: folder of the raw data.
        store: folder to write; finished scenes in it are kept.
        grid: cell size of the grid subsampling, in metres.
        workers: scenes prepared at the same time.
        config: YAML that describes the files (ply only): fields, classes, features, groups.
    """
    from .data import ply, s3dis, scannet
    from .data import prepare as write_store

    if (config is not None) != (dataset == "ply"):
        raise UserError(f"config describes PLY files: expected with the data set ply alone, got {config} for {dataset}")
    if dataset == "ply":
        found = ply.scenes(source, ply.PlyConfig.load(config))
    else:
        found = {"s3dis": s3dis, "scannet": scannet}[dataset].scenes(source)
    write_store(found, store, grid, workers)


def label(store: str, rate: float = 0.1, seed: int = 0) -> None:
    """Draw the weak labels of a store and print how many points of each class carry one.

    Args:
        store: scene store.
        rate: share of the points of each cloud and class, in (0, 1]; at least one point a class and cloud.
        seed: seed of the draw; drawn once, stored beside the scenes, shared by every run with this rate and seed.
    """
    from .data import SceneStore, label_table, weak_labels

    opened = SceneStore.open(store)
    print(label_table(opened, weak_labels(opened, rate, seed)))


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
    from .distributed import process_group, rank
    from .experiments.evaluation import evaluate_run, score_table

    with process_group():
        results = evaluate_run(run, store, groups, branch, engine, votes, rotations)
        if rank() == 0:
            print(score_table(results))
            print(f"written to {Path(run) / results['file']}")


def predict(run: str, cloud: str, out: str = "predicted.ply", engine: str | None = None) -> None:
    """Label every point of one cloud and write it as a PLY file.

    Args:
        run: run folder, or the model.pt of one.
        cloud: PLY file with the fields the model was trained on.
        out: PLY file to write: all fields of the points, and `label` and `confidence`.
        engine: engine of a MinkUNet; the model's own by default.
    """
    from .experiments.prediction import predict_file

    predict_file(run, cloud, out, engine=engine)


def folds(runs: list[str]) -> None:
    """Pool the scores of runs that tested on different groups, such as the six areas of S3DIS, and print them.

    Args:
        runs: run folders (their results.json) or evaluation files; the same classes, no group twice.
    """
    from .experiments.folds import aggregate, fold_table

    print(fold_table(aggregate(runs)))


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


def train(config: TrainConfig, out: str) -> None:
    """Train one network and evaluate it; an interrupted run resumes where it stopped."""
    from .experiments.evaluation import score_table
    from .training.loop import train

    print(score_table(train(config, out)))


def compare(config: CompareConfig, out: str) -> int:
    """Train and evaluate a matrix {backbone x method x rate x seed (x engine)}; write table, results and figure."""
    from .experiments.compare import compare
    from .experiments.table import errors

    report = compare(config, out)
    print((Path(out) / "table.md").read_text())
    return int(any(map(errors, report["runs"])))


def fail(program: str, message: object) -> int:
    """Print a one-line error and return 2, the exit code of bad input."""
    print(f"{program}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def plain_parser(function: Callable) -> ArgumentParser:
    """A subcommand whose arguments are those of its function; the ones without a default are positional.

    Switches (`bool`, false by default) take no value; a positional list takes the rest of the line.
    """
    parser = Parser(description=inspect.getdoc(function).partition("\n")[0])
    arguments = inspect.signature(function).parameters.values()
    switches = {argument.name for argument in arguments if argument.annotation is bool}
    lists = {argument.name for argument in arguments if argument.annotation == list[str]}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=switches | lists)
    for argument in docstring_parser.parse(function.__doc__).params:
        if argument.arg_name in switches:
            flag = f"--{argument.arg_name.replace('_', '-')}"
            parser.add_argument(flag, action="store_true", help=argument.description)
        if argument.arg_name in lists:
            parser.add_argument(argument.arg_name, nargs="+", help=argument.description)
    return parser


def settings_parser(function: Callable, settings: type) -> ArgumentParser:
    """A subcommand that reads a settings file; every setting is a flag, too."""
    usage = f"dsp-sparse {function.__name__} SETTINGS.yaml [--out FOLDER] [--KEY VALUE ...]"
    parser = Parser(description=inspect.getdoc(function), usage=usage)
    parser.add_argument("--config", action=ActionConfigFile, help="settings file (or the first argument)")
    parser.add_argument("--out", type=str, required=True, help="folder to write; `out:` in the settings file")
    parser.add_class_arguments(settings, as_group=False)
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit: 0 done, 1 a run failed or a part is broken, 2 bad input, 130 interrupted."""
    plain = {f.__name__: f for f in (rooms, prepare, label, evaluate, predict, folds, doctor)}
    with_settings = {"train": (train, TrainConfig), "compare": (compare, CompareConfig)}
    parser = Parser(prog="dsp-sparse", description="Segment 3D point clouds with few labels.")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    parsers = {name: plain_parser(function) for name, function in plain.items()}
    parsers |= {name: settings_parser(*pair) for name, pair in with_settings.items()}
    for name, sub in parsers.items():
        commands.add_subcommand(name, sub, help=sub.description.partition("\n")[0])

    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) > 1 and argv[0] in with_settings and not argv[1].startswith("-"):
        argv.insert(1, "--config")
    place = f" (settings file: {argv[2]})" if "--config" in argv[1:2] else ""
    name = argv[0] if argv and argv[0] in parsers else ""
    program = f"dsp-sparse {name}".strip()
    try:
        parsed = parser.parse_args(argv)
        arguments = parsed[parsed.command]
        if name in plain:
            code = plain[name](**vars(arguments))
        else:
            function, settings = with_settings[name]
            values = vars(parsers[name].instantiate(arguments))
            out = values.pop("out")
            values.pop("config")
            code = function(settings(**values), out)
    except ArgumentError as error:
        code = fail(program, f"{error}{place}")
    except (UserError, OSError) as error:  # OSError names its path: a folder that cannot be written, a full disk
        code = fail(program, error)
    except FloatingPointError as error:  # a training that diverged, not bad input
        fail(program, error)
        code = 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
