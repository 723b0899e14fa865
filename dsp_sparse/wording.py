"""What jsonargparse says of settings that it refuses, in the words of this package."""

import re

KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list like [a, b]",
    "tuple": "a list like [a, b]",
    "dict": "names with values",
    "NoneType": "null",
}


def misfit(message: str) -> tuple[str, str, str] | None:
    """The setting, what is expected of it, and the value that is not that; None for a message of something else.

    Of a setting that holds several values it may be one of them that is expected and not that.
    """
    text = " ".join(message.split())
    kinds = re.findall(r"Expected a <class '(\w+)'>", text)
    key, expected = key_of(text), [KINDS.get(kind) for kind in kinds]
    if choices := re.search(r"Expected a typing.Literal\[(.+?)\]", text):
        expected.append(f"one of {choices[1]}".replace("'", ""))
    if not key or not expected or None in expected:
        return None
    return key, " or ".join(expected), text.rpartition("value: ")[2]


def key_of(text: str) -> str:
    """The setting that a message is about; of one in an entry of a list, the names of both."""
    return ".".join(re.findall(r'Parser key "(.+?)":', text))


def reworded(message: str) -> str:
    """A message on settings as one line."""
    text = " ".join(message.split())
    if found := misfit(text):
        key, expected, value = found
        return f"{key} must be {expected}, got {value}"
    key = key_of(text)
    if name := re.search(r"(?:Group '(.+)' does not accept option|Option) '(.+?)'", text):
        return f"there is no setting {'.'.join(filter(None, (key, *name.groups())))}"
    if key and (names := re.search(r"the following arguments are required: (.*)", text)):
        return f"an entry of {key} lacks {names[1]}"
    no_section = r"(?:Not a valid subclass of \w+\. Got value|Expected a dot import path string): (.*?)"
    if entry := re.search(rf"{no_section}(?: Subclass types expect|$)", text):
        return f"an entry of {key} must be settings by name, got {entry[1]}"
    if section := re.search(r'Unable to load config "(.*)"', text):
        return f"{key.partition('.')[0]} must be given setting by setting, got {section[1]}"
    return text
