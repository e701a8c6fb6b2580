"""Names that come with the data, made safe to show."""

_JOINERS = "\u200c\u200d"
"""They cannot be seen, but Persian, the scripts of India and emoji are written with them."""
_BLANKS = "\u115f\u1160\u3164\uffa0"
"""Letters of Hangul without a sign, which count as printable."""


def clean(text: object) -> str:
    """A string whose every character can be seen, but for spaces and joiners: others are spelt out.

    These are control characters, lone surrogates, what has no width, and the marks that turn the direction of writing,
    with which a name can show what it is not.
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
    if character in _JOINERS or (character.isprintable() and character not in _BLANKS):
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
