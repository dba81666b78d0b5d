"""A shard whose residues were written as they came is the shard that is written at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest

from proteinlm.corpus import layout
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.shard_file import block_digests, content_digest, start_of_tokens, write_shard
from proteinlm.corpus.shard_tokens import ShardTokens
from proteinlm.corpus.work_folder import UnusableWorkError
from proteinlm.errors import OutputError

AT_ONCE = Worker(is_threaded=False)


@dataclass
class Proteins:
    """Records of the Records protocol."""

    tokens: numpy.ndarray
    offsets: numpy.ndarray
    identifiers: numpy.ndarray
    identifier_offsets: numpy.ndarray


@pytest.fixture
def proteins():
    generator = numpy.random.default_rng(5)
    lengths = generator.integers(1, 900, 40)
    offsets = numpy.concatenate([[0], numpy.cumsum(lengths)])
    tokens = generator.integers(4, 29, offsets[-1]).astype(numpy.uint8)
    names = numpy.frombuffer(b"".join(b"name%02d" % number for number in range(40)), dtype=numpy.uint8)
    return Proteins(tokens, offsets, names, numpy.arange(0, 241, 6))


def _others(proteins, numbers):
    """Return the datasets beside the tokens of some of the proteins."""
    lengths = numpy.diff(proteins.offsets)[numbers]
    names = [proteins.identifiers[6 * number : 6 * number + 6] for number in numbers]
    return {
        layout.OFFSETS_DATASET: numpy.concatenate([[0], numpy.cumsum(lengths)]),
        layout.IDENTIFIERS_DATASET: numpy.concatenate(names),
        layout.IDENTIFIER_OFFSETS_DATASET: numpy.arange(0, 6 * len(numbers) + 1, 6),
    }


def _written_at_once(path, proteins, numbers):
    """Write the shard from whole datasets and return its digests."""
    pieces = [proteins.tokens[proteins.offsets[number] : proteins.offsets[number + 1]] for number in numbers]
    datasets = {layout.TOKENS_DATASET: numpy.concatenate(pieces), **_others(proteins, numbers)}
    digest = content_digest(datasets)
    return digest, write_shard(path, datasets, digest=digest)


def _append(tokens, proteins, numbers, size=7):
    """Append the numbered proteins a few at a time and return their ends."""
    ends = numpy.zeros(len(numbers), dtype=numpy.int64)
    for place in range(0, len(numbers), size):
        tokens.append(proteins, numbers[place : place + size], ends[place : place + size])
    return ends


@pytest.mark.parametrize("block_bytes", [1 << 20, 4096, 1000])
@pytest.mark.parametrize("shift", [0, 8, -4000], ids=["in place", "moved ahead", "moved back"])
@pytest.mark.parametrize("is_threaded", [False, True])
def test_the_file_is_the_one_that_is_written_at_once(proteins, tmp_path, monkeypatch, block_bytes, shift, is_threaded):
    monkeypatch.setattr(layout, "BLOCK_BYTES", block_bytes)
    numbers = numpy.delete(numpy.arange(40), [0, 3, 4, 17, 39])
    expected = _written_at_once(tmp_path / "expected.h5", proteins, numbers)
    worker = Worker(is_threaded=is_threaded)
    # another HDF5 might put the residues elsewhere
    start = start_of_tokens(tmp_path / "plan") + shift
    tokens = ShardTokens(tmp_path / "train-00000.h5.tokens", start=start, worker=worker)
    ends = _append(tokens, proteins, numbers)
    others = _others(proteins, numbers)
    assert ends.tolist() == others[layout.OFFSETS_DATASET][1:].tolist()
    found = tokens.finish(tmp_path / "train-00000.h5", others)
    worker.finish()
    assert found == expected
    assert (tmp_path / "train-00000.h5").read_bytes() == (tmp_path / "expected.h5").read_bytes()
    assert found[1] == "".join(block_digests(tmp_path / "train-00000.h5"))
    if not shift:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.h5", "train-00000.h5"]


def test_it_goes_on_from_fewer_residues_than_were_written(proteins, tmp_path):
    numbers = numpy.arange(40)
    path, start = tmp_path / "train-00000.h5.tokens", start_of_tokens(tmp_path / "plan")
    tokens = ShardTokens(path, start=start, worker=AT_ONCE)
    _append(tokens, proteins, numbers[:20])
    size, digest, counts = len(tokens), tokens.digest, tokens.counts
    _append(tokens, proteins, numbers[5:30])
    tokens.close()
    again = ShardTokens.resumed(path, size, digest, start=start, worker=AT_ONCE)
    assert again.counts.tolist() == counts.tolist()
    assert path.stat().st_size == start + size
    _append(again, proteins, numbers[20:])
    assert again.counts.tolist() == numpy.bincount(proteins.tokens, minlength=33).tolist()
    found = again.finish(tmp_path / "train-00000.h5", _others(proteins, numbers))
    assert found == _written_at_once(tmp_path / "expected.h5", proteins, numbers)


@pytest.mark.parametrize("damage", ["cut off", "changed", "missing"])
def test_residues_that_are_not_what_was_written_are_refused(proteins, tmp_path, damage):
    path, start = tmp_path / "train-00000.h5.tokens", start_of_tokens(tmp_path / "plan")
    tokens = ShardTokens(path, start=start, worker=AT_ONCE)
    _append(tokens, proteins, numpy.arange(20))
    tokens.close()
    if damage == "cut off":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    else:
        path.unlink()
    with pytest.raises(UnusableWorkError, match=r"train-00000\.h5\.tokens: is damaged; begin anew with --restart"):
        ShardTokens.resumed(path, len(tokens), tokens.digest, start=start, worker=AT_ONCE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("is_threaded", [False, True])
def test_a_full_disk_is_told_with_the_name_of_the_shard(proteins, tmp_path, is_threaded):
    path = tmp_path / "train-00000.h5.tokens"
    path.symlink_to("/dev/full")
    worker = Worker(is_threaded=is_threaded)
    tokens = ShardTokens(path, start=0, worker=worker)
    numbers = numpy.tile(numpy.arange(20), 100)
    with pytest.raises(OutputError, match=r"/train-00000\.h5\.tokens: cannot be written \(No space left on device\)"):
        _append(tokens, proteins, numbers)
    tokens.close()
    worker.stop()
