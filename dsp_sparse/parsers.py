"""Parsers of subcommands: the signature and the docstring of a function are its command line."""

import inspect
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser

from .errors import UserError
from .settings import is_required, read_settings, require_names
from .wording import reworded

# A flag that is cut short is a mistake; it must not start a long build.
Parser = partial(ArgumentParser, exit_on_error=False, allow_abbrev=False)


def summary(function: Callable) -> str:
    """The first line of a docstring."""
    return inspect.getdoc(function).partition("\n")[0]


def plain_parser(function: Callable) -> ArgumentParser:
    """A subcommand whose arguments are those of its function; the ones without a default are positional.

    Switches (`bool`, false by default) take no value; a list takes words.
    """
    parser = Parser(prog=f"dsp-sparse {function.__name__}", description=summary(function))
    arguments = inspect.signature(function).parameters
    switches = {name for name, argument in arguments.items() if argument.annotation is bool}
    lists = {name for name, argument in arguments.items() if argument.annotation in (list[str], list[str] | None)}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=switches | lists)
    for argument in docstring_parser.parse(function.__doc__).params:
        name = argument.arg_name
        if name in switches:
            parser.add_argument(f"--{name}", action="store_true", help=argument.description)
        if name in lists:
            if arguments[name].default is inspect.Parameter.empty:
                parser.add_argument(name, nargs="+", help=argument.description)
            else:
                parser.add_argument(f"--{name}", nargs="+", action=Words, help=argument.description)
    return parser


class Words(Action):
    """Keeps the words of an option: `a b`, `a,b`, `[a,b]` or `["a", "b"]`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        words = [word.strip(" \"'") for value in values for word in value.strip("[] ").split(",")]
        if not all(words):
            raise ArgumentError(self, f"expected words, got {' '.join(values)!r}")
        setattr(namespace, self.dest, words)


class SettingsFile(ActionConfigFile):
    """Reads a settings file, strictly. What is wrong with it is told before what is wrong with a flag.

    Args:
        kind: dataclass of the settings.
        beside: names that may stand in it beside the settings.
    """

    def __init__(self, kind: type, beside: Collection[str], **options):
        super().__init__(**options)
        self._kind, self._beside = kind, beside

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        content = read_settings(values)
        try:
            require_names(self._kind, content, beside=self._beside)
            super().__call__(parser, namespace, values, option_string)
            parser.validate(namespace, skip_required=True)
        except (ArgumentError, TypeError, UserError) as error:
            raise UserError(f"{values}: {reworded(str(error))}") from None


def settings_parser(function: Callable, settings: type) -> ArgumentParser:
    """A subcommand that reads a settings file; every setting is a flag, too.

    So are the other arguments of its function; those without a default may stand in the settings file instead.
    """
    usage = f"dsp-sparse {function.__name__} SETTINGS.yaml [--out FOLDER] [--KEY VALUE ...]"
    parser = Parser(description=summary(function), usage=usage)
    beside = [name for name, argument in own_arguments(function).items() if argument.default is argument.empty]
    # Not for people: it stands before the file, which comes first.
    parser.add_argument("--config", action=SettingsFile, kind=settings, beside=beside, help=SUPPRESS)
    described = {p.arg_name: p.description for p in docstring_parser.parse(function.__doc__).params}
    for name, argument in own_arguments(function).items():
        if argument.annotation is bool:
            parser.add_argument(f"--{name}", action="store_true", help=described[name])
        elif name in beside:
            help = f"{described[name].rstrip('.')}; `{name}:` in the settings file"
            parser.add_argument(f"--{name}", type=argument.annotation, required=True, help=help)
        else:
            kind, default = argument.annotation, argument.default
            parser.add_argument(f"--{name}", type=kind, default=default, help=described[name])
    add_settings(parser, settings)
    return parser


def add_settings(parser: ArgumentParser, kind: type, place: str = "", title: str | None = None) -> None:
    """Add a flag for every setting; those of a section have the section's names before their own.

    Args:
        parser: where to add them.
        kind: a dataclass of settings; its sections are dataclasses.
        place: names of the sections that it stands in, `train.optim.` for example.
        title: what the help calls the section.
    """
    group = parser.add_argument_group(title) if title else parser
    described = {p.arg_name: p.description for p in docstring_parser.parse(kind.__doc__).params}
    hints = get_type_hints(kind)
    for setting in fields(kind):
        name, help = f"{place}{setting.name}", described[setting.name]
        if is_dataclass(hints[setting.name]):
            add_settings(parser, hints[setting.name], f"{name}.", help.rstrip("."))
        elif is_required(setting):
            group.add_argument(f"--{name}", type=hints[setting.name], required=True, help=help)
        else:
            default = setting.default if setting.default_factory is MISSING else setting.default_factory()
            group.add_argument(f"--{name}", type=hints[setting.name], default=default, help=help)


def own_arguments(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a subcommand with settings that are not among the settings."""
    return {name: a for name, a in inspect.signature(function).parameters.items() if name != "config"}
