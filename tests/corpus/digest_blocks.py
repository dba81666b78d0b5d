"""Blocks of records of which only the digests matter."""

from __future__ import annotations

import numpy as np

from proteinlm.corpus.digest_spool import DigestSpool
from proteinlm.sequence.record_blocks import ReadingPosition, RecordBlock


def digest_block(digests, names):
    """Return a block of records with these digests, pairs of a low and a high half."""
    num = len(digests)
    nothing = np.zeros(num, dtype=np.int64)
    empty = np.empty(0, dtype=np.uint8)
    return RecordBlock(
        source="file",
        tokens=empty,
        offsets=np.zeros(num + 1, dtype=np.int64),
        identifiers=empty,
        identifier_offsets=np.zeros(num + 1, dtype=np.int64),
        lines=np.arange(1, num + 1),
        digests=np.array(digests, dtype=np.uint64).reshape(num, 2),
        name_digests=np.array(names, dtype=np.uint64).reshape(num, 2),
        num_predictable=nothing,
        num_ambiguous=nothing,
        marks=nothing.astype(np.uint8),
        substitutions={},
        end=ReadingPosition(0, 0, 1, 0, 0),
    )


def filled_spool(folder, digests, names=None, *, splits=None, clusters=None, **settings):
    """Return a spool of records with these digests, all of them kept; it is closed."""
    num = len(digests)
    block = digest_block(digests, names if names is not None else [(n, n) for n in range(num)])
    splits = np.zeros(num, dtype=np.uint8) if splits is None else np.array(splits, dtype=np.uint8)
    known = None if clusters is None else np.array(clusters, dtype=np.uint64)
    with DigestSpool(folder, **settings) as spool:
        spool.append(block, np.ones(num, dtype=np.bool_), splits, np.arange(num), 0, known)
    return spool
