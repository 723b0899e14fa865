"""Settings that files and flags give: a file is read strictly, and a value is refused under its whole name."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import Namespace

from .errors import UserError

Config = TypeVar("Config")


def settings_text(path: str | Path) -> str:
    """The text of a YAML file that holds settings by name.

    Raises:
        UserError: no such file, not text, not YAML, no names with values, or a name that stands twice in one place, of
            which YAML would silently take the last.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file, expected a YAML file of settings")
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}), expected a YAML file of settings") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{path}: not YAML in line {mark.line + 1}, column {mark.column + 1}: {reason}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{path}: not text, with the character {error.character:#x} at {error.position}") from None
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
    return text


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
    if not is_dataclass(hint):
        sections = [section for section in get_args(hint) if is_dataclass(section)]
        return [_value(sections[0], entry, name) for entry in parsed] if sections else parsed
    if not isinstance(parsed, Namespace):
        raise UserError(f"{name} must hold settings by name, got {parsed!r}")
    return build(hint, parsed, f"{name}.")
