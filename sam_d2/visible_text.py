"""Names that come with the data, made safe to show."""

import unicodedata

_DIRECTION_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: object) -> str:
    """A string whose every character can be seen: control characters and lone surrogates are spelt out.

    So are the marks that turn the direction of writing, with which a name can show what it is not.
    """
    return "".join(_visible(character) for character in str(text))


def printable(message: str) -> str:
    """:func:`clean` for each line: a name in a file may hold the characters that move a terminal's cursor."""
    return "\n".join(clean(line) for line in message.split("\n"))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the picture of the control character
    if code == 0x7F:
        return "\u2421"
    if character in _DIRECTION_MARKS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\u{code:04x}"
    return character
