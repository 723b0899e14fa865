"""Settings that files and flags give: a file is read strictly, and a value is refused under its whole name."""

import math
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from .errors import UserError
from .wording import reworded

Config = TypeVar("Config")


def read_settings(path: str | Path) -> dict:
    """What a YAML file says, which must be settings by name.

    Raises:
        UserError: no such file, not text, not YAML, no names with values, or a name that stands twice in one place, of
            which YAML would silently take the last.
    """
    if Path(path).is_dir():
        raise UserError(f"{path}: a folder, expected a YAML file of settings")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file, expected a YAML file of settings")
    try:
        text = Path(path).read_text(encoding="utf-8")
        root, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}), expected a YAML file of settings") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{path}: not YAML in line {mark.line + 1}, column {mark.column + 1}: {reason}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{path}: not text, with the character {error.character:#x} at {error.position}") from None
    except ValueError as error:  # a date that there is not
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        found = {yaml.SequenceNode: "a list", type(None): "nothing"}.get(type(root), "a single value")
        raise UserError(f"{path}: expected settings by name, got {found}")
    for mapping in _mappings(root, set()):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if first := lines.get(key.value):
                raise UserError(f"{path}: {key.value} stands in line {first} and again in line {line}, expected once")
            lines[key.value] = line
    return content


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    """The mappings of a YAML document, each once: aliases make it a graph."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    if isinstance(node, yaml.CollectionNode):
        for inner in node.value:
            for part in inner if isinstance(inner, tuple) else (inner,):
                yield from _mappings(part, seen)


def require_names(kind: type, content: Any, place: str = "", beside: Collection[str] = ()) -> None:
    """Raise a UserError unless every name in what a file says is that of a setting. Values are not looked at.

    Args:
        kind: a dataclass of settings; its sections are dataclasses, or lists of them.
        content: what the file says.
        place: names of the sections that it stands in, `train.optim.` for example.
        beside: names that may stand beside the settings.
    """
    if not isinstance(content, dict):
        raise UserError(f"{place[:-1] or 'it'} must hold settings by name, got {content!r}")
    hints = get_type_hints(kind)
    for name, value in content.items():
        if name in beside:
            continue
        if name not in hints:
            raise UserError(f"there is no setting {place}{name}, expected {', '.join([*hints, *beside])}")
        if is_dataclass(hints[name]):
            require_names(hints[name], value, f"{place}{name}.")
        entry_kind = _kind_of_entries(hints[name])
        if entry_kind and isinstance(value, list):
            for number, entry in enumerate(value, 1):
                require_names(entry_kind, entry, f"{place}{name}.{number}.")
                lacking = [f.name for f in fields(entry_kind) if is_required(f) and f.name not in entry]
                if lacking:
                    raise UserError(f"{place}{name}.{number} lacks {', '.join(lacking)}")


def _kind_of_entries(hint: Any) -> type | None:
    """The dataclass that a setting is a list of; None of another setting."""
    return next((section for section in get_args(hint) if is_dataclass(section)), None)


def is_required(field: Field) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def parse_config(kind: type[Config], settings: Any) -> Config:
    """The settings of a kind that a file holds.

    Raises:
        UserError: an unknown setting, or a value that a setting cannot have.
    """
    require_names(kind, settings)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        parsed = parser.parse_object(settings)
    except Exception as error:  # jsonargparse lets the error of whatever value it met through
        raise UserError(reworded(str(error))) from None
    return build(kind, parsed)


def build(kind: type[Config], parsed: Namespace, place: str = "") -> Config:
    """The settings that a parser has parsed.

    Args:
        kind: a dataclass of settings; its sections are dataclasses, or lists of them.
        parsed: the values of its fields by name, and maybe others.
        place: names of the sections that it stands in, `train.optim.` for example.

    Raises:
        UserError: a section that is not one, or a value that a setting cannot have. The setting is named with the
            sections that it stands in, as in a file.
    """
    given = {name: hint for name, hint in get_type_hints(kind).items() if name in parsed}
    values = {name: _value(hint, parsed[name], f"{place}{name}") for name, hint in given.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place}{error}") from None


def _value(hint: Any, parsed: Any, name: str) -> Any:
    """The value of a setting, which may be a section or a list of sections."""
    if is_dataclass(hint):
        if not isinstance(parsed, Namespace):
            raise UserError(f"{name} must hold settings by name, got {parsed!r}")
        return build(hint, parsed, f"{name}.")
    if parsed is None and type(None) not in get_args(hint):
        raise UserError(f"{name} must have a value, got null")
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise UserError(f"{name} must be a finite number, got {parsed}")
    kind = _kind_of_entries(hint)
    return [_value(kind, entry, f"{name}.{n}") for n, entry in enumerate(parsed, 1)] if kind else parsed
