"""Settings files are read strictly, and a setting is refused under its whole name."""

import pytest
import yaml

from dsp_sparse.config import CompareConfig, TrainConfig
from dsp_sparse.errors import UserError
from dsp_sparse.settings import parse_config, read_settings

TRAIN = "data: {store: nowhere, test_groups: [a]}\n"
COMPARISON = "backbones: [kpfcnn]\nmethods: [baseline]\nlabel_rates: [0.1]\nseeds: [0]\ntrain:\n  "


@pytest.mark.parametrize(
    "content, problem",
    [
        (TRAIN.encode("utf-16"), r"not text in UTF-8 \(byte 0\), expected a YAML file of settings$"),
        (b"\x80\x04\x95\xff", r"not text in UTF-8 \(byte 0\)"),
        (b"seed: \x00", "not text, with the character 0x0 at 6$"),
        (b"data: [1\nseed: 2\n", "not YAML in line 2, column 5: while parsing a flow sequence, expected"),
        (b"", "expected settings by name, got nothing$"),
        (b"- a\n- b\n", "expected settings by name, got a list$"),
        (b"seed\n", "expected settings by name, got a single value$"),
        (b"seed: 1\nmethod: csfr\nseed: 2\n", "seed stands in line 1 and again in line 3, expected once$"),
        (b"optim:\n  lr: 1\n  'lr': 2\n", "lr stands in line 2 and again in line 3, expected once$"),
        (b"seed: !seed 3\n", "not YAML in line 1, column 7: could not determine a constructor for the tag '!seed'$"),
        (b"title: 2020-02-31\n", "not YAML: day is out of range for month$"),
        (b"paper:\n- {miou: 1, miou: 1}\n", "miou stands in line 2 and again in line 2"),
    ],
)
def test_a_file_that_does_not_hold_settings(content, problem, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{file}: {problem}") as error:
        read_settings(file)
    assert "\n" not in str(error.value)


def test_a_name_may_stand_in_several_places(tmp_path):
    """In several sections, and in one that takes over another and changes it."""
    text = "a: &a {lr: 1, lr_decay: 2}\nb: {<<: *a, lr: 3}\nc: [*a, *a]\nd: &d {d: *d}\n"
    (tmp_path / "s.yaml").write_text(text)
    assert read_settings(tmp_path / "s.yaml")["b"] == {"lr": 3, "lr_decay": 2}


def test_a_folder_is_no_settings_file(tmp_path):
    with pytest.raises(UserError, match="a folder, expected a YAML file of settings"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "kind, text, problem",
    [
        (TrainConfig, TRAIN + "optim: {lr: 0}", r"optim\.lr must be positive, got 0\.0"),
        (TrainConfig, TRAIN + "minkunet: {planes: [1]}", r"minkunet\.planes must hold 8 positive numbers, got \(1,\)"),
        (TrainConfig, TRAIN + "seed: -1", r"seed must be 0 to 2\^63 - 1, got -1"),
        (TrainConfig, TRAIN + f"seed: {2**63}", r"seed must be 0 to 2\^63 - 1, got 9223372036854775808"),
        (
            TrainConfig,
            "data: {store: a, test_groups: [b, c], train_groups: [c, d]}",
            r"data\.test_groups must be groups that train_groups does not list, got \['b', 'c'\]",
        ),
        (CompareConfig, COMPARISON + TRAIN + "  seed: 1", r"train\.seed has no effect, seeds says it; got 1"),
        (
            CompareConfig,
            COMPARISON + TRAIN + "  method: csfr",
            r"train\.method has no effect, methods says it; got csfr",
        ),
        (
            CompareConfig,
            COMPARISON + "data: {store: a, test_groups: [b], label_rate: 0.5}",
            r"train\.data\.label_rate has no effect, label_rates says it; got 0\.5",
        ),
        (TrainConfig, TRAIN + "optim:", "optim must hold settings by name, got None"),
        (TrainConfig, TRAIN + "seed:", "seed must have a value, got null"),
        (TrainConfig, TRAIN + "optim: {lr: .inf}", r"optim\.lr must be a finite number, got inf"),
        (
            TrainConfig,
            TRAIN + "optim: {speed: 1}",
            r"there is no setting optim\.speed, expected epochs, ",
        ),
        (TrainConfig, TRAIN + "optim.lr: 1", r"there is no setting optim\.lr, expected data, backbone"),
        (TrainConfig, "data:", "data must hold settings by name, got None"),
        (TrainConfig, TRAIN + "optim: [3]", r"optim must hold settings by name, got \[3\]"),
        (CompareConfig, COMPARISON + TRAIN + "  seed: -1", r"train\.seed must be 0 to 2\^63 - 1, got -1"),
        (CompareConfig, COMPARISON + TRAIN + "  eval: {votes: 0}", r"train\.eval\.votes must be at least 1, got 0"),
        (CompareConfig, COMPARISON + TRAIN + "  kpfcnn: 3", r"train\.kpfcnn must hold settings by name, got 3"),
        (
            CompareConfig,
            COMPARISON + "data: {store: a, test_groups: [b], label_seed: -2}",
            r"train\.data\.label_seed must be 0 to 2\^63 - 1, got -2",
        ),
        (
            CompareConfig,
            COMPARISON + 'data: {store: "", test_groups: [b]}',
            r"train\.data\.store must be a folder, got $",
        ),
        (CompareConfig, COMPARISON.replace("[0]", "[1, -1]") + TRAIN, r"seeds must be 0 to 2\^63 - 1, got \[1, -1\]"),
        (CompareConfig, COMPARISON.replace("0.1", "2") + TRAIN, r"label_rates must be in \(0, 1\], got \[2\.0\]"),
        (
            CompareConfig,
            "variants: [{name: csfr, method: csfr}]\n" + COMPARISON + TRAIN,
            r"variants\.1\.name must be lett",
        ),
    ],
)
def test_a_setting_is_named_with_its_sections(kind, text, problem):
    with pytest.raises(UserError, match=f"^{problem}"):
        parse_config(kind, yaml.safe_load(text))


def test_settings_are_built_with_all_their_sections():
    text = "variants: [{name: a, method: csfr}]\n" + COMPARISON + TRAIN + "  optim: {lr: 1e-3}\n"
    config = parse_config(CompareConfig, yaml.safe_load(text))
    assert config.train.optim.lr == 1e-3 and config.train.kpfcnn.blocks == (1, 2, 2, 2, 2)
    assert config.variants[0].name == "a" and config.variants[0].settings == {}
