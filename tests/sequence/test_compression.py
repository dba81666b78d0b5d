"""Files are decompressed by what they are, and never half."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tracemalloc
import zlib

import pytest
import xxhash
import zstandard

from proteinlm.errors import FastaError
from proteinlm.sequence.compression import PIECE, SourceDigest, read_decompressed
from proteinlm.sequence.source_formats import format_of
from proteinlm.sequence.timings import Timings
from proteinlm.sequence.zstandard_blocks import ZstandardDecompressor

TEXT = b"".join(b">protein_%d\nMKTAYIAKQRQISFVKSHFSRQ\n" % number for number in range(20_000))
COMPRESSIONS = {"gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress, "zstandard": zstandard.compress}


@pytest.fixture(params=list(COMPRESSIONS))
def kind(request):
    return request.param


def _read(path):
    return b"".join(read_decompressed(path))


def _file(tmp_path, data):
    path = tmp_path / "file.fasta"
    path.write_bytes(data)
    return path


def test_plain_bytes_pass_through(tmp_path):
    assert _read(_file(tmp_path, TEXT)) == TEXT


def test_compression_is_told_by_content_whatever_the_name(tmp_path, kind):
    assert _read(_file(tmp_path, COMPRESSIONS[kind](TEXT))) == TEXT


def test_every_member_is_read(tmp_path, kind):
    member = COMPRESSIONS[kind](TEXT[: PIECE // 2])
    assert _read(_file(tmp_path, member * 9)) == TEXT[: PIECE // 2] * 9


def test_zeros_after_the_last_member_are_padding(tmp_path, kind):
    assert _read(_file(tmp_path, COMPRESSIONS[kind](TEXT) + bytes(512))) == TEXT


@pytest.mark.parametrize("left_out", [1, 9, 400])
def test_cut_off_data_are_refused(tmp_path, kind, left_out):
    with pytest.raises(FastaError, match=rf"file\.fasta: the {kind} data end before their end mark"):
        _read(_file(tmp_path, COMPRESSIONS[kind](TEXT)[:-left_out]))


@pytest.mark.parametrize("garbage", [b"g", b"garbage", b"garbage after the member\n" * 9])
def test_bytes_after_the_last_member_are_refused(tmp_path, kind, garbage):
    with pytest.raises(FastaError, match="are no further member"):
        _read(_file(tmp_path, COMPRESSIONS[kind](TEXT) + garbage))


@pytest.mark.parametrize("trailer", ["crc", "length"])
def test_gzip_with_a_wrong_trailer_is_refused(tmp_path, trailer):
    data = bytearray(gzip.compress(TEXT))
    data[-8 if trailer == "crc" else -4] ^= 1
    with pytest.raises(FastaError, match="gzip data are damaged"):
        _read(_file(tmp_path, bytes(data)))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FastaError, match=r"nowhere\.fasta: no such file"):
        _read(tmp_path / "nowhere.fasta")
    with pytest.raises(FastaError, match="cannot be read"):
        _read(tmp_path)


def test_digest_is_of_the_bytes_on_disk(tmp_path):
    digest = SourceDigest()
    data = gzip.compress(TEXT, mtime=0)
    list(read_decompressed(_file(tmp_path, data), digest=digest))
    plain = SourceDigest()
    plain.update(data)
    assert (digest.num_bytes, digest.sha256) == (len(data), plain.sha256)
    assert digest.xxh3_128 == xxhash.xxh3_128_hexdigest(data)


def test_a_digest_without_sha256_has_the_other():
    digest = SourceDigest(with_sha256=False)
    digest.update(TEXT)
    assert (digest.sha256, digest.xxh3_128) == ("", xxhash.xxh3_128_hexdigest(TEXT))


def test_plain_files_are_read_in_pieces_of_the_size_asked_for(tmp_path):
    pieces = list(read_decompressed(_file(tmp_path, TEXT * 20), plain_piece=2 * PIECE))
    assert b"".join(pieces) == TEXT * 20
    assert [len(piece) for piece in pieces[:-1]] == [PIECE, *[2 * PIECE] * (len(pieces) - 2)]


def test_times_of_reading_are_told_by_stage(tmp_path):
    timings = Timings()
    list(read_decompressed(_file(tmp_path, gzip.compress(TEXT)), digest=SourceDigest(), timings=timings))
    assert timings.seconds.keys() == {"read", "hash", "inflate"}


PACKERS = {
    "gzip": lambda: zlib.compressobj(1, wbits=31),
    "xz": lambda: lzma.LZMACompressor(preset=0),
    "bzip2": bz2.BZ2Compressor,
    "zstandard": lambda: zstandard.ZstdCompressor().compressobj(),
}
A_TENTH = 10_000_000


def _bomb(kind):
    """Return 100 MB of one letter behind the beginning of a header, compressed 200- to 30,000-fold."""
    packer = PACKERS[kind]()
    parts = [packer.compress(text) for text in [b">", *[b"A" * A_TENTH] * 10]]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("num_members", [1, 3])
def test_no_piece_of_a_bomb_takes_much_memory(tmp_path, kind, num_members):
    path = _file(tmp_path, _bomb(kind) * num_members)
    assert path.stat().st_size < 500_000 * num_members
    num_bytes = 0
    tracemalloc.start()
    try:
        for piece in read_decompressed(path):
            num_bytes += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes == num_members * (1 + 10 * A_TENTH)
    assert peak < 16 << 20


def test_a_bomb_on_standard_input_is_looked_at_in_little_memory(monkeypatch, kind):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(_bomb(kind))))
    tracemalloc.start()
    try:
        assert format_of("-") == "fasta"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("level", [-5, 1, 19])
@pytest.mark.parametrize("text", [b"", b"A", TEXT, b"A" * 3_000_000, bytes(range(256)) * 3000], ids=len)
def test_zstandard_frames_of_every_kind_are_read_in_any_parts(text, level, checksum):
    settings = {"level": level, "write_checksum": checksum}
    with_size = zstandard.ZstdCompressor(**settings).compress(text)
    packer = zstandard.ZstdCompressor(write_content_size=False, **settings).compressobj()
    without_size = packer.compress(text) + packer.flush()
    for data in (with_size, without_size):
        for size in (1 if len(data) < 100_000 else 1000, 7777, len(data)):
            frame = ZstandardDecompressor()
            parts = []
            for start in range(0, len(data), size):
                parts.append(frame.decompress(data[start : start + size], 1 << 18))
                while not (frame.eof or frame.needs_input):
                    parts.append(frame.decompress(b"", 1 << 18))
            assert frame.eof
            assert b"".join(parts) == text
            # the library may hold back what a block before has added
            assert max(map(len, parts)) <= 3 << 17


def test_skippable_frames_of_zstandard_are_passed_over(tmp_path):
    frame = zstandard.compress(TEXT)
    first, other = (bytes([byte]) + b"\x2a\x4d\x18\x04\0\0\0" for byte in (0x50, 0x5F))
    empty = b"\x51\x2a\x4d\x18\0\0\0\0"
    data = (
        first
        + len(frame).to_bytes(4, "little")
        + frame
        + empty
        + other
        + b"\x28\xb5\x2f\xfd"
        + frame
        + first
        + b"\0>a\n"
    )
    assert _read(_file(tmp_path, data)) == 2 * TEXT
    with pytest.raises(FastaError, match="the zstandard data end before their end mark"):
        _read(_file(tmp_path, data[:-1]))


def test_a_skippable_frame_may_be_longer_than_a_piece(tmp_path):
    skipped = b"\x5e\x2a\x4d\x18" + (5_000_000).to_bytes(4, "little") + bytes(5_000_000)
    assert _read(_file(tmp_path, skipped + zstandard.compress(TEXT))) == TEXT
