"""What jsonargparse says of settings that it refuses, in the words of this package."""

import re

KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "names with values",
    "NoneType": "null",
}


def misfit(message: str) -> tuple[str, str, str] | None:
    """The setting, what is expected of it, and the value that is not that; None for a message of something else.

    Of a setting that holds several values it may be one of them that is expected and not that.
    """
    text = " ".join(message.split())
    kinds = re.findall(r"Expected a <class '(\w+)'>", text)
    key, expected = re.match(r'Parser key "(.+?)":', text), [KINDS.get(kind) for kind in kinds]
    if choices := re.search(r"Expected a typing.Literal\[(.+?)\]", text):
        expected.append(f"one of {choices[1]}".replace("'", ""))
    if not key or not expected or None in expected:
        return None
    return key[1], " or ".join(expected), text.rpartition("value: ")[2]


def reworded(message: str) -> str:
    """A message on settings as one line."""
    text = " ".join(message.split())
    if found := misfit(text):
        key, expected, value = found
        return f"{key} must be {expected}, got {value}"
    if name := re.fullmatch(r"(?:Option|Subcommand '\w+' does not accept option) '(.+?)'(?: is not accepted)?", text):
        return f"there is no setting {name[1]}"
    if problem := re.match(r"Problems parsing config: (.*)", text):
        place = re.compile(r' in "[^"]*", line (\d+), column (\d+)')
        line, column = place.findall(problem[1])[-1] if place.search(problem[1]) else ("?", "?")
        return f"not YAML in line {line}, column {column}: {place.sub('', problem[1])}"
    if content := re.match(r"Unexpected config: ?(.*)", text):
        return f"expected settings by name, got {content[1] or 'nothing'}"
    return text
