"""How messages and tables say what was counted and what it is called."""

from __future__ import annotations

from collections.abc import Mapping


def listed(counts: Mapping[str, int]) -> str:
    """Return counts by kind as people read them, such as ``1,204 gaps, 2 J``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def nucleotide_warning(count: int) -> str:
    """Return that so many sequences, one or more, look like nucleotides."""
    subject = "1 sequence looks" if count == 1 else f"{count:,} sequences look"
    return f"{subject} like nucleotides, not like a protein"


def on_one_line(text: str) -> str:
    r"""Return ``text`` with escapes such as ``\x0b`` for what is not printed, tabs and all line ends among it.

    Readers differ in what they take for a line end: U+0085 and U+2028 are some to Python, none to others.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
