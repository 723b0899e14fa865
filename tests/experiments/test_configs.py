"""The settings files that come with the package: each is read, and what they say of the paper agrees with itself."""

from collections import defaultdict
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
import yaml

from dsp_sparse import cli
from dsp_sparse.config import CompareConfig, TrainConfig
from dsp_sparse.data import s3dis, scannet
from dsp_sparse.data.clouds import CloudConfig
from dsp_sparse.experiments.matrix import Cell, beside_no_run, cell_config, cells
from dsp_sparse.parsers import settings_parser
from dsp_sparse.settings import build

CONFIGS = Path(__file__).parents[2] / "configs"
CLOUDS = sorted((CONFIGS / "data").glob("*.yaml"))
SETTINGS = sorted(set(CONFIGS.rglob("*.yaml")) - set(CLOUDS))
COMPARISONS = [path for path in SETTINGS if "backbones" in yaml.safe_load(path.read_text())]
TABLES = [path for path in COMPARISONS if path.parent.name == "paper"]


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@cache
def read(path: Path) -> CompareConfig | TrainConfig:
    """The settings as the program reads them."""
    kind, command = (CompareConfig, cli.compare) if path in COMPARISONS else (TrainConfig, cli.train)
    return build(kind, settings_parser(command, kind).parse_args(["--out", "out", "--config", str(path)]))


def one_seed(config: CompareConfig) -> list[Cell]:
    """The runs with the first seed; those with another differ from them in nothing else."""
    return list(cells(replace(config, seeds=config.seeds[:1])))


def printed(config: CompareConfig) -> dict[tuple, float]:
    """The mIoU that the paper printed, by what is scored."""
    return {score.scored: score.miou for score in config.paper}


def test_every_table_of_the_paper_has_its_settings():
    assert [name_of(path) for path in TABLES] == [f"paper/table{number}.yaml" for number in range(1, 6)]


@pytest.mark.parametrize("path", CLOUDS, ids=name_of)
def test_clouds(path):
    assert CloudConfig.load(path).groups


@pytest.mark.parametrize("path", [path for path in SETTINGS if path not in COMPARISONS], ids=name_of)
def test_training(path):
    assert read(path).data.store


@pytest.mark.parametrize("path", COMPARISONS, ids=name_of)
def test_comparison(path):
    """Every run has settings and a folder of its own, and every score of the paper stands beside one of ours."""
    config = read(path)
    plan = list(cells(config))
    assert len({cell.name for cell in plan}) == len(plan)
    for cell in one_seed(config):
        cell_config(config, cell)
    assert beside_no_run(config) == []


def test_comparisons_that_share_a_folder_share_the_runs_in_it():
    """A run of one comparison is refused by another whose settings differ."""
    folders = defaultdict(dict)
    for path in COMPARISONS:
        config = read(path)
        for cell in one_seed(config) if config.runs else ():
            settings = asdict(cell_config(config, cell))
            assert folders[config.runs].setdefault(cell.name, settings) == settings, (path, cell.name)
    assert folders


def test_the_tables_of_the_paper_agree():
    """Tables 1 to 4 print some scores again, and the tables on rooms print those of the paper's data sets."""
    scores = {}
    for path in TABLES[:4]:
        for key, miou in printed(read(path)).items():
            assert scores.setdefault(key, miou) == miou, (path, key)
    for path in COMPARISONS:
        if path.parent.name == "rooms" and (CONFIGS / "paper" / path.name) in TABLES:
            assert printed(read(path)).items() <= printed(read(CONFIGS / "paper" / path.name)).items(), path


def test_classes_of_the_paper_are_those_of_the_stores():
    """Their mean is the mIoU that the paper printed, but for one row that it misprinted."""
    classes = {"s3dis": s3dis.CLASSES, "scannet": scannet.CLASSES}
    rows = []
    for path in TABLES:
        config = read(path)
        for score in config.paper:
            if score.iou:
                assert sorted(score.iou) == sorted(classes[Path(config.train.data.store).name])
                rows.append((score.method, score.label_rate, abs(mean(score.iou.values()) - score.miou) < 0.06))
    assert [row[:2] for row in rows if not row[2]] == [("baseline", 0.01)] and len(rows) == 6


@pytest.mark.parametrize("path", TABLES, ids=name_of)
def test_paper_protocol(path):
    """What section 4.2 of the paper says of the training."""
    config = read(path)
    optim, data = config.train.optim, config.train.data
    assert (optim.lr, optim.momentum, optim.epochs, data.radius) == (0.01, 0.98, 600, 2.0)
    assert not config.equal_updates and len(config.seeds) >= 3 and set(config.label_rates) == {0.1, 0.01}
    assert {cell.backbone for cell in cells(config)} == {"kpfcnn", "minkunet"}
