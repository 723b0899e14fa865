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


def reworded(message: str) -> str:
    """A message on settings as one line; on a value that does not fit: the setting, what is expected, and the value.

    Of a setting that holds several values it may be one of them that is expected and not that.
    """
    text = " ".join(message.split())
    # Of a setting in an entry of a list, the names of both.
    key = ".".join(re.findall(r'Parser key "(.+?)":', text))
    expected = [KINDS.get(kind) for kind in re.findall(r"Expected a <class '(\w+)'>", text)]
    if choices := re.search(r"Expected a typing.Literal\[(.+?)\]", text):
        expected.append(f"one of {choices[1]}".replace("'", ""))
    if not key or not expected or None in expected:
        return text
    return f"{key} must be {' or '.join(expected)}, got {text.rpartition('value: ')[2]}"
