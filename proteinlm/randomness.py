"""Random streams that are a pure function of what they are for.

No draw in proteinlm comes from a global generator: every stream is named by a seed and the parts
that identify the draw, for example ``stream(seed, "masking", epoch, window)``. The same run is
therefore the same on one process or eight, before or after a resume.
"""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy


def stream_key(seed: int, *parts: str | int) -> int:
    """Return the 63-bit key of the stream that ``seed`` and ``parts`` name.

    Different names give independent keys (BLAKE2b of the type-tagged parts); the key suits
    ``torch.Generator.manual_seed``. An integer of NumPy or torch is the same name as Python's.

    Raises:
        TypeError: if a part is neither a string nor an integer; a boolean is neither.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        # tag the type and the length, or ("ab", "c") and ("a", "bc") would share a stream
        text = _tagged(part).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def _tagged(part: str | int) -> str:
    if isinstance(part, str):
        return f"str:{part}"
    if not isinstance(part, bool):
        # refuses what is no integer, such as a float or numpy.bool_
        return f"int:{operator.index(part)}"
    raise TypeError(f"{part!r} is no name of a random stream; expected a string or an integer")


def stream(seed: int, *parts: str | int) -> numpy.random.Generator:
    """Return the NumPy generator of the stream that ``seed`` and ``parts`` name."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(stream_key(seed, *parts)))
