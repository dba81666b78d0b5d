"""The alphabet: ESM-2's 33 tokens, and exactly one token for every residue."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# the order is ESM-2's, so that its checkpoints and tokenisers agree with ours
TOKENS: tuple[str, ...] = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWC",
    *"XBUZO",
    *(".", "-", "<null_1>", "<mask>"),
)
VOCAB_SIZE = len(TOKENS)
CLS, PAD, EOS, UNK, MASK = (TOKENS.index(name) for name in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))
AMBIGUOUS = TOKENS.index("X")
STANDARD: NDArray[np.uint8] = np.array([TOKENS.index(letter) for letter in "LAGVSERTIDPKQNFYMHWC"], dtype=np.uint8)
STANDARD.flags.writeable = False

# a substituted residue carries this bit through bytes.translate, so that one pass finds whether there is any
_SUBSTITUTED = 0x80
LOWER_CASE = "lower case"


def _translation() -> bytes:
    table = bytearray([AMBIGUOUS | _SUBSTITUTED] * 256)
    for token, name in enumerate(TOKENS):
        if len(name) == 1:
            table[ord(name.lower())] = token | _SUBSTITUTED
            table[ord(name)] = token
    table[ord("~")] = TOKENS.index("-") | _SUBSTITUTED
    return bytes(table)


_TRANSLATION = _translation()


@dataclass(frozen=True, slots=True)
class EncodedResidues:
    """The tokens of one sequence, uint8[L], and how many residues were replaced, by kind.

    Kinds are ``lower case`` (same residue in upper case), ``J`` and ``*`` (now X), ``~`` (now ``-``)
    and ``0x..`` for any other byte (now X).
    """

    tokens: NDArray[np.uint8]
    substitutions: Mapping[str, int]


def encode(residues: bytes) -> EncodedResidues:
    """Return one token for every byte of ``residues``; ``tokens`` is read-only.

    Standard residues, X, B, U, Z, O and the gaps ``.`` and ``-`` have tokens of their own, lower
    case becomes upper case, and everything else becomes X and is counted.
    """
    translated = residues.translate(_TRANSLATION)
    tokens = np.frombuffer(translated, dtype=np.uint8)
    if translated.isascii():
        return EncodedResidues(tokens, {})
    replaced = np.frombuffer(residues, dtype=np.uint8)[tokens >= _SUBSTITUTED]
    tokens = tokens & np.uint8(_SUBSTITUTED - 1)
    tokens.flags.writeable = False
    return EncodedResidues(tokens, _kinds(replaced))


def _kinds(replaced: NDArray[np.uint8]) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for byte, count in enumerate(np.bincount(replaced, minlength=256).tolist()):
        character = chr(byte)
        if count and character.isascii() and character.islower():
            kinds[LOWER_CASE] += count
        if count and character in "Jj*~":
            kinds[character.upper()] += count
        elif count and not (character.isascii() and character.islower()):
            kinds[f"0x{byte:02x}"] += count
    return dict(sorted(kinds.items()))


def decode(tokens: ArrayLike) -> str:
    """Return the letters of ``tokens``; special tokens appear by name, such as ``<mask>``."""
    return "".join([TOKENS[token] for token in np.asarray(tokens).ravel().tolist()])


@functools.cache
def alphabet_digest() -> str:
    """Return what tells this alphabet from another: 16 hex digits of the sha256 of its tokens."""
    return hashlib.sha256("\n".join(TOKENS).encode()).hexdigest()[:16]
