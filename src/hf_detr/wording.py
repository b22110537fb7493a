"""Small things about text for people, which tables, cards and messages share."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `2 images`, `1,205 classes`; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """The text with what no terminal or file in UTF-8 can show (line ends, escape sequences, bytes of file names that
    are no UTF-8) as Python writes it: `\\n`, `\\x1b`, `\\udcff`."""
    return "".join(one if one.isprintable() else escaped(one) for one in text)


def escaped(character: str) -> str:
    """As Python writes it in ASCII."""
    return character.encode("unicode_escape").decode("ascii")
