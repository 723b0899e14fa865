"""Files of weights: whole, checked, and refused by name when they do not fit."""

from dataclasses import fields

import pytest
import torch
from tiny import CLASSES, GRID, OPTIONS, tiny_net

from dsp_sparse.errors import UserError
from dsp_sparse.reallocation import CSFR
from dsp_sparse.training.checkpoint import (
    Model,
    TrainingState,
    load_model,
    load_modules,
    load_state,
    save_model,
    save_modules,
    save_state,
)


def model_of(name: str, **changes) -> Model:
    values = {
        "net": tiny_net(name),
        "backbone": name,
        "options": OPTIONS[name],
        "in_channels": 5,
        "classes": CLASSES,
        "features": {"red": 255.0, "green": 255.0, "blue": 255.0},
        "coordinates": ["east", "north", "up"],
        "grid": GRID,
        "radius": 1.0,
        "max_points": None,
    }
    return Model(**{**values, **changes})


def test_a_model_comes_back_whole(backbone, tmp_path):
    """Weights, buffers and everything needed to use them; in eval mode; from the file or its folder."""
    model = model_of(backbone)
    save_model(tmp_path / "model.pt", model)
    for path in (tmp_path, tmp_path / "model.pt"):
        loaded = load_model(path)
        assert not loaded.net.training
        for name, value in model.net.state_dict().items():
            assert torch.equal(loaded.net.state_dict()[name], value), name
        for field in fields(Model):
            assert field.name == "net" or getattr(loaded, field.name) == getattr(model, field.name)


def test_weights_of_another_architecture_are_refused(tmp_path):
    """The file is named, with the first weight that does not fit."""
    options = {**OPTIONS["kpfcnn"], "first_width": 32}
    save_model(tmp_path / "model.pt", model_of("kpfcnn", options=options))
    with pytest.raises(UserError, match=r"model\.pt: weights of another architecture than KPFCNN: size mismatch for"):
        load_model(tmp_path)
    save_model(tmp_path / "model.pt", model_of("kpfcnn", net=tiny_net("minkunet")))
    with pytest.raises(UserError, match=r"model\.pt: weights of another architecture than KPFCNN: Missing key"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_broken_file_is_refused(content, tmp_path):
    """An empty, foreign or truncated file: one line that names it."""
    path = tmp_path / "model.pt"
    save_model(path, model_of("kpfcnn"))
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(UserError, match=r"model\.pt: not a readable dsp-sparse model file") as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_damaged_checkpoint_says_what_to_do(kept, tmp_path):
    """Wherever it was cut off: not what torch thinks of the bytes."""
    path = tmp_path / "checkpoint.pt"
    save_state(path, TrainingState(net={"weight": torch.ones(1000)}))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    advice = "put a whole copy in its place, or delete it to begin the run anew"
    with pytest.raises(UserError) as error:
        load_state(path)
    reason = "damaged, perhaps cut off, or no file of torch"
    assert str(error.value) == f"{path}: not a readable dsp-sparse training file ({reason}); {advice}"


def test_a_file_of_another_kind_is_refused(tmp_path):
    """A checkpoint is not a model, and a missing file is neither."""
    save_state(tmp_path / "checkpoint.pt", TrainingState(net={}))
    with pytest.raises(UserError, match="holds 'dsp-sparse training 1', expected 'dsp-sparse model 1'"):
        load_model(tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"not a finished run \(no model\.pt\)"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"none\.pt: not a readable dsp-sparse modules file \(No such file or"):
        load_modules(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list\.pt: holds 'list', expected 'dsp-sparse model 1'"):
        load_model(tmp_path / "list.pt")
    torch.save({"format": "dsp-sparse model 1"}, tmp_path / "header.pt")
    with pytest.raises(UserError, match=r"header\.pt: its content must be a mapping, got NoneType"):
        load_model(tmp_path / "header.pt")


def test_a_model_of_other_fields_is_refused(tmp_path):
    """A header that lacks a field, or has one more, is named with that field."""
    path = tmp_path / "model.pt"
    save_model(path, model_of("kpfcnn"))
    whole = torch.load(path)
    lacking = {key: value for key, value in whole["content"].items() if key != "grid"}
    for content, field in ((lacking, "grid"), ({**whole["content"], "colour": "red"}, "colour")):
        torch.save({**whole, "content": content}, path)
        with pytest.raises(UserError, match=rf"model\.pt: not the fields of a model; missing or unknown: {field}$"):
            load_model(path)


def test_a_training_of_other_fields_is_refused(tmp_path):
    """As of a later version; an earlier one's lacks only what has a default."""
    path = tmp_path / "checkpoint.pt"
    save_state(path, TrainingState(net={}, epoch=2))
    whole = torch.load(path)
    torch.save({**whole, "content": {"net": {}, "epoch": 3}}, path)
    assert load_state(path) == TrainingState(net={}, epoch=3)
    for content, field in (({"epoch": 3}, "net"), ({"net": {}, "colour": "red"}, "colour")):
        torch.save({**whole, "content": content}, path)
        with pytest.raises(UserError, match=rf"checkpoint\.pt: not the fields of a training \(.*'{field}'"):
            load_state(path)


def test_no_code_runs_from_a_file(tmp_path):
    """Files are loaded as weights only: a pickled object of any class is refused, not built."""
    torch.save({"format": "dsp-sparse model 1", "content": CSFR(2)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="not a readable"):
        load_model(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """Files are written whole or not at all."""
    path = tmp_path / "checkpoint.pt"
    save_state(path, TrainingState(net={"a": torch.ones(2)}, epoch=3))
    with pytest.raises(Exception, match="pickle"):
        save_state(path, TrainingState(net={"a": lambda: None}))
    assert load_state(path).epoch == 3
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_reallocation_modules_come_back_by_name(tmp_path):
    """Each with its own number of channels and its weight."""
    module = CSFR(7)
    with torch.no_grad():
        module.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_modules(tmp_path / "modules.pt", {"csfr": module.state_dict()})
    loaded = load_modules(tmp_path / "modules.pt")
    assert list(loaded) == ["csfr"] and isinstance(loaded["csfr"], CSFR)
    assert torch.equal(loaded["csfr"].weight, module.weight)
