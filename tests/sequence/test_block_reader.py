"""Files read in blocks are what they are read record by record, whatever is in them."""

from __future__ import annotations

import gzip
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proteinlm.errors import FastaError
from proteinlm.sequence import source_blocks
from proteinlm.sequence.compression import read_decompressed
from proteinlm.sequence.fasta import FastaConfig, ReadingTally
from proteinlm.sequence.source_blocks import read_source_blocks, read_sources, scan_source, settle_source
from proteinlm.sequence.timings import Timings
from tests.sequence.block_comparison import assert_read_alike, contents, in_blocks, in_records

FILES = sorted((Path(__file__).parent.parent / "data" / "fasta").glob("*.fasta"))
TINY = (1, 2, 3, 7, 40, 1000)
CONFIGS = {
    "drop": FastaConfig(),
    "keep": FastaConfig(gaps="keep"),
    "refuse": FastaConfig(gaps="refuse"),
    "strict": FastaConfig(strict=True),
}
ALPHABET = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWYACDEFGHIKLMNPQRSTVWYXBUZO", dtype=np.uint8)
# the first call compiles, the folder may be shared
IN_TURN = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_odd_files_are_read_or_refused_alike(path, config):
    for block_bytes in (1 << 20, *TINY):
        assert_read_alike(path, config, block_bytes)


@pytest.mark.parametrize("block_bytes", [1 << 20, 1 << 16, 5000])
def test_real_proteins_are_read_alike(sample, block_bytes):
    assert_read_alike(sample / "uniprotkb_sample.fasta.xz", block_bytes=block_bytes)


# what makes trouble, and enough of what does not
MORSELS = (
    *(b"\n", b"\n", b"\n", b"\r", b"\r\n", b"\r\r\n", b">", b"\n>", b"\n>a\n", b">sp|P1|N x\n", b"\n>tr|A|B|C\n"),
    *(b"MKV", b"ACGTUN" * 6, b"LLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLL", b"XX", b"BUZO", b"mkv", b"J", b"*"),
    *(b"*\n>", b"**\n*\n>b\n", b"*\n", b"maskedmaskedmasked" * 8, b"j", b"acgtun" * 6, b"xx"),
    *(b"-", b".", b"~", b" ", b"\t", b"1", b"60", b";", b"\n;x\n", b"\n#x\n", b"!", b"\0", b"\x01", b"\x1c", b"\x7f"),
    *(b"\xef\xbb\xbf", b"\xc3\xa9", b"\xe9", b"\xc2\xa0", b"(Fragment)", b" (Fragment", b"|", b"@", b"\x0b", b"\x85"),
)
texts = st.lists(st.sampled_from(MORSELS), max_size=60).map(b"".join)


@IN_TURN
@given(texts, st.booleans(), st.integers(1, 90), st.sampled_from([*CONFIGS.values()]))
def test_any_text_is_read_or_refused_alike_in_any_pieces(tmp_path, text, has_header, block_bytes, config):
    path = tmp_path / "any.fasta"
    path.write_bytes(b">first of all\n" * has_header + text)
    for size in (1 << 20, block_bytes):
        assert_read_alike(path, config, size)


def test_a_record_longer_than_a_block_makes_a_longer_block(tmp_path):
    path = tmp_path / "long.fasta"
    path.write_bytes(b">" + b"h" * 300_000 + b" >x" * 1000 + b"\n" + b"MKLV" * 100_000 + b"\n>next\nMK\n")
    assert_read_alike(path, block_bytes=1000)
    blocks = list(read_source_blocks([path], block_bytes=1000))
    assert [len(block.tokens) for block in blocks] == [400_000, 2]


def test_many_tiny_records_find_room(tmp_path):
    path = tmp_path / "tiny.fasta"
    path.write_bytes(b">\n" * 2000 + b">a\n" * 2000)
    assert_read_alike(path)


STOPPED = {
    "each": b">a\nMKLV*\n>b x (Fragment)\nMK*\n",
    "masked": b">a\nMKlv*\n>b\nmkxu\n>c\nMK\n",
    "several": b">a\nMKLV**\n>b\nMK*\n*\n\n*\n>c\nMK*\n\n",
    "alone": b">a\nMKLV\n*\n>b\n*\n>c\n\n*\n",
    "nothing else": b">a\n*\n>b\n***\n>c\nMK\n",
    "inside": b">a\nMK*LV\n>b\nMK*\nLV*\n>c\n*MK\n>d\nMK*",
    "no line end": b">a\nMKLV*\n>b\nMKlv*",
    "other line ends": b">a\r\nMKLV*\r\n>b\r\nmk*\r\n*\r\n",
    "with odd records": b">a\nmk*\n>b\nMj-\n>c\nlv*\n> d\nmk**\n>e\nm k*\n>f\nmk\n",
    "before a comment": b">a\nMK*\n;x\n>b\nMK*;\n",
    "before a blank": b">a\nMK* \n>b\nMK *\n>c\nmk* 9\n",
    "before a header": b">a\nMK*>b\nMK\n",
    "before a gap": b">a\nMK*-\n>b\nMK-*\n>c\nM*K-*\n",
    "long lines": b">a\n" + b"MKLV" * 100 + b"*\n>b\n" + b"mklv" * 100 + b"*\n",
    "many lines": b"".join(b">%d\n" % n + b"MKlv" * 15 + b"\n" + b"M" * n + b"*\n" for n in range(130)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("text", STOPPED.values(), ids=STOPPED)
def test_stops_and_lower_case_are_treated_alike(tmp_path, text, config):
    path = tmp_path / "stopped.fasta"
    path.write_bytes(text)
    for block_bytes in (1 << 20, *TINY):
        assert_read_alike(path, config, block_bytes)


def test_no_record_goes_through_the_plain_parser_for_stops_or_lower_case(tmp_path):
    path = tmp_path / "stopped.fasta"
    path.write_bytes(STOPPED["many lines"] + STOPPED["masked"])
    marks = [mark for text in read_sources([path], config=FastaConfig()) for mark in scan_source(text).marks.tolist()]
    assert marks == [0] * 133


def test_compressed_files_that_are_cut_off_are_refused_after_what_they_hold(tmp_path):
    path = tmp_path / "cut.fasta.gz"
    text = b"".join(b">%d\nMKLV\n" % number for number in range(1000))
    for body in (text, text + b">bad\nMK9\n>good\nMK\n"):
        path.write_bytes(gzip.compress(body)[:-4])
        assert_read_alike(path)


def test_the_first_fault_of_a_file_is_told_wherever_pieces_end(tmp_path):
    path = tmp_path / "two.fasta"
    path.write_bytes(b">a\nMK\n>b\nM9\n>c\nMK\n>d\nM\0\n")
    for block_bytes in (1 << 20, *TINY):
        assert in_blocks([path], FastaConfig(), block_bytes)[0] == f"{path}:4: '9' after 'M' is no residue; " + (
            "expected letters, '*' or gaps (- . ~)"
        )
        assert_read_alike(path, block_bytes=block_bytes)


def test_a_nul_byte_of_a_later_block_is_refused_by_its_line(tmp_path):
    path = tmp_path / "nul.fasta"
    path.write_bytes(b">a\nMK\n" * 50 + b">b\nMK\nM\0\nMK\n>c\nMK\n")
    for block_bytes in TINY:
        assert_read_alike(path, block_bytes=block_bytes)


def _records(num_bytes: int, line_end: bytes = b"\n") -> bytes:
    """Return a file of records of 10 to 6,000 residues."""
    random = np.random.default_rng(3)
    lines: list[bytes] = []
    while sum(map(len, lines)) < num_bytes:
        residues = random.choice(ALPHABET, int(10 * 600 ** random.random())).tobytes()
        lines += [b">r%d of them" % len(lines), *(residues[at : at + 60] for at in range(0, len(residues), 60))]
    return line_end.join(lines) + line_end


def _put(text: bytes, thing: bytes, places: int) -> bytes:
    """Return a text with ``thing`` in it as often, before headers."""
    ends = [found.start() + 1 for found in re.finditer(b"\n>", text)]
    for place in ends[:: -max(1, len(ends) // places)]:
        text = text[:place] + thing + text[place:]
    return text


LONG = _records(400_000)
LONG_FILES = {
    "plain": LONG,
    "windows": _records(400_000, b"\r\n"),
    "mac": _records(400_000, b"\r"),
    "marks": _put(LONG, b"\xef\xbb\xbf", 40),
    "comments": _put(LONG, b";note\r\n", 300),
    "blank lines": _put(LONG, b"\n\r\r\n\r", 300),
    "one NUL": LONG[:333_333] + b"\0" + LONG[333_333:],
    "a fault": LONG[:333_333] + b"?" + LONG[333_333:],
    "a fault before a NUL": LONG[:333_000] + b"?" + LONG[333_000:333_900] + b"\0" + LONG[333_900:],
    "a long record": LONG[:200_000] + b"\nMKLV" * 30_000 + LONG[200_000:],
    "unended": LONG[:-1],
}


@pytest.mark.parametrize("block_bytes", [10_000, 30_001, 100_000])
@pytest.mark.parametrize("text", LONG_FILES.values(), ids=LONG_FILES)
def test_long_files_are_read_alike_plain_and_compressed_and_gone_on_with(tmp_path, text, block_bytes):
    path = tmp_path / "long.fasta"
    for data in (text, gzip.compress(text, 1), gzip.compress(text, 1)[:-4]):
        path.write_bytes(data)
        assert_read_alike(path, block_bytes=block_bytes)
        expected, whole = in_blocks([path], FastaConfig(), block_bytes)
        if isinstance(expected, list):
            blocks = list(read_source_blocks([path], block_bytes=block_bytes))
            for end in [block.end for block in blocks[:: max(1, len(blocks) // 3)]]:
                found, rest = in_blocks([path], FastaConfig(), block_bytes, start=end)
                assert found == expected[end.num_records :]
                assert rest.sources[0].digest.xxh3_128 == whole.sources[0].digest.xxh3_128


@pytest.mark.parametrize("text", [LONG, b">long\n" + b"M" * 100_000 + b"\n" + LONG], ids=["usual", "one is long"])
def test_blocks_of_a_plain_file_are_what_was_read_of_it_without_a_copy(tmp_path, monkeypatch, text):
    path = tmp_path / "plain.fasta"
    path.write_bytes(text)
    pieces = []

    def read(*args, **settings):
        for piece in read_decompressed(*args, **settings):
            pieces.append(piece)
            yield piece

    monkeypatch.setattr(source_blocks, "read_decompressed", read)
    texts = [block.text for block in read_sources([path], config=FastaConfig(), block_bytes=30_000)]
    assert b"".join(texts) == text
    assert sum(any(one is piece for piece in pieces) for one in texts) >= len(texts) - 4 > 5


def test_whole_records_come_before_a_failure_wherever_what_was_read_ends(tmp_path, monkeypatch):
    def read(*_args, **_settings):
        yield from (b">a\n" + b"MK\n" * 20, b">b\nMK\n>c\nMK\n", b"M" * 40 + b"\n", b"MK\n")
        raise FastaError("cut off")

    monkeypatch.setattr(source_blocks, "read_decompressed", read)
    path = tmp_path / "cut_off.fasta"
    path.write_bytes(b">")
    found = []
    with pytest.raises(FastaError, match="cut off"):
        found.extend(read_sources([path], config=FastaConfig(), block_bytes=60))
    assert b"".join(block.text for block in found) == b">a\n" + b"MK\n" * 20 + b">b\nMK\n"


def test_members_of_a_record_each_do_not_become_blocks_of_a_record_each(tmp_path):
    path = tmp_path / "joined.fasta.gz"
    path.write_bytes(b"".join(gzip.compress(b">p%d\nMK\n" % number, 1) for number in range(500)))
    # of about 5 KB of text
    assert len(list(read_source_blocks([path], block_bytes=1000))) < 20
    assert_read_alike(path, block_bytes=1000)


@pytest.mark.parametrize(
    "text",
    [
        b">a\nMK" + b"\r" * 3_000_000 + b"MK\n",
        b">a\r" + b"MK\r" * 2_000_000,
        b">a" + b">" * 30_000_000 + b"\nMK\n",
        b">a\n" + b"M" * 30_000_000,
        b"\n" * 3_000_000 + b">a\nMK",
        b">a\nMK\n" + b"\xef\xbb" * 3_000_000,
    ],
    ids=["returns", "mac", "headers in a header", "a line", "blank lines", "half marks"],
)
def test_long_runs_of_anything_are_read_in_time_that_grows_with_them(tmp_path, text):
    # seconds in all; minutes and more where each byte is looked at from every other
    path = tmp_path / "long.fasta"
    path.write_bytes(text)
    assert_read_alike(path)


def test_several_sources_are_read_alike(tmp_path):
    paths = [path for path in FILES if isinstance(in_records([path], FastaConfig())[0], list)]
    expected, expected_tally = in_records(paths, FastaConfig())
    for block_bytes in (1 << 20, *TINY):
        found, tally = in_blocks(paths, FastaConfig(), block_bytes)
        assert found == expected
        assert tally.treatments == expected_tally.treatments
        assert [source.num_residues for source in tally.sources] == [
            source.num_residues for source in expected_tally.sources
        ]


def test_reading_goes_on_at_the_end_of_any_block(tmp_path):
    odd = tmp_path / "odd.fasta"
    odd.write_bytes(b";c\n\n>a\rMK\r\n>\xef\xbb\xbfb\nMK*\n\xef\xbb\xbf>c\n\nmk-\n;x\n" * 3 + b"\xef\xbb\xbf>end\nMK")
    paths = [path for path in FILES if isinstance(in_records([path], FastaConfig())[0], list)]
    paths = [paths[0], odd, *paths[1:8]]
    for block_bytes in (9, 50):
        tally = ReadingTally()
        ends, parts, counted = [], [], []
        for block in read_source_blocks(paths, tally=tally, block_bytes=block_bytes):
            ends.append(block.end)
            parts.append(contents([block]))
            counted.append(tally.treatments.copy())
        for number, end in enumerate(ends):
            found, rest = in_blocks(paths, FastaConfig(), block_bytes, start=end)
            assert found == [record for part in parts[number + 1 :] for record in part]
            assert counted[number] + rest.treatments == tally.treatments
            assert [source.digest.xxh3_128 for source in rest.sources] == [
                source.digest.xxh3_128 for source in tally.sources[end.source :]
            ]
            assert rest.sources[0].num_records in (0, tally.sources[end.source].num_records)


def test_sources_before_the_start_are_not_read_again(tmp_path):
    (tmp_path / "one.fasta").write_bytes(b">a\nMK\n>b\nMK\n")
    (tmp_path / "two.fasta").write_bytes(b">c\nMK\n")
    paths = [tmp_path / "one.fasta", tmp_path / "two.fasta"]
    first, *_, last = read_source_blocks(paths)
    paths[0].unlink()
    with pytest.raises(FastaError, match="no such file"):
        list(read_source_blocks(paths, start=first.end))
    paths[0].write_bytes(b">other\n")
    assert list(read_source_blocks(paths, start=last.end)) == []


def test_a_file_that_became_shorter_is_not_gone_on_with(tmp_path):
    path = tmp_path / "some.fasta"
    path.write_bytes(b">a\nMK\n>b\nMK\n")
    first, *_ = read_source_blocks([path], block_bytes=1)
    path.write_bytes(b">a\n")
    with pytest.raises(FastaError, match="shorter than where reading ended"):
        list(read_source_blocks([path], start=first.end))


def test_a_pipe_is_not_gone_on_with(tmp_path):
    path = tmp_path / "some.fasta"
    path.write_bytes(b">a\nMK\n")
    (block,) = read_source_blocks([path])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FastaError, match=r"some\.fasta: cannot be read a second time"):
        list(read_source_blocks([path], start=block.end))


def test_texts_are_scanned_in_any_number_of_threads(sample):
    path = sample / "uniprotkb_sample.fasta.xz"
    expected = contents(list(read_source_blocks([path])))
    treatments, previous, found = ReadingTally().treatments, None, []
    with ThreadPoolExecutor(4) as pool:
        for scanned in pool.map(scan_source, read_sources([path], config=FastaConfig(), block_bytes=10_000)):
            block = settle_source(scanned, treatments, FastaConfig(), previous)
            previous = block.end
            found += contents([block])
    assert found == expected


def test_texts_tell_what_had_been_read_of_their_source(sample):
    path = sample / "uniprotkb_sample.fasta.xz"
    data = path.read_bytes()
    for block in read_sources([path], config=FastaConfig(), block_bytes=100_000):
        digest = ReadingTally(with_sha256=False).begin("prefix").digest
        digest.update(data[: block.num_bytes_read])
        assert digest.xxh3_128 == block.digest_read


def test_times_are_told_by_stage(sample):
    timings = Timings()
    list(read_source_blocks([sample / "uniprotkb_sample.fasta.xz"], timings=timings))
    assert timings.seconds.keys() == {"read", "hash", "inflate", "cut", "scan", "settle"}


STRANGE = (b"\r", b"\r\n", b"\0", b">", b";", b"\n;note\n", b" ", b"\t", b"*", b"-", b"\xef\xbb\xbf", b"\xe9", b"\xff")


def _written(random: np.random.Generator) -> bytes:
    """Return a FASTA file as some program might write it."""
    line_end = random.choice([b"\n", b"\n", b"\r\n", b"\r"]) if random.random() < 0.5 else b"\n"
    width = int(random.choice([1, 10, 31, 32, 33, 60, 80, 100_000]))
    lines = []
    for number in range(random.integers(1, 12)):
        word = [b"sp|P%d|N" % number, b"tr|A%d|B|C" % number, b"UniRef50_%d" % number, b"", b"x" * 40][
            random.integers(5)
        ]
        rest = [b"", b" Protein (Fragment)", b" prot\xc3\xa9ine", b"\tx", b"\x01gi|2| y", b" a" * 300][
            random.integers(6)
        ]
        lines.append(b">" + word + rest)
        residues = random.choice(ALPHABET, random.integers(0, 400)).tobytes()
        if random.random() < 0.4:
            residues = _treated(residues, random)
        lines += [residues[start : start + width] for start in range(0, len(residues), width)]
    return line_end.join(lines) + line_end * int(random.integers(0, 3))


def _treated(residues: bytes, random: np.random.Generator) -> bytes:
    """Return residues with what is taken away or replaced: stops, lower case, letters without a token."""
    start, end = sorted(random.integers(0, len(residues) + 1, 2).tolist())
    masked = residues[:start] + residues[start:end].lower() + residues[end:]
    number = int(random.integers(1, 4))
    choices = (residues.lower(), masked, residues + b"*" * number, masked + b"*", residues[:start] + b"*" + masked)
    return bytes([*choices, b"*" * number, masked + b"j", residues + b"*\n" * number][random.integers(8)])


def _mutated(text: bytes, random: np.random.Generator) -> bytes:
    """Return a file after an accident or none: cut, flipped, doubled, interleaved, joined, recoded."""
    where, other = sorted(random.integers(0, len(text) + 1, 2).tolist())
    byte = bytes([text[where] ^ 1 << int(random.integers(8))]) if where < len(text) else b""
    encoding = ["utf-8", "utf-16", "utf-8-sig", "utf-16-be"][random.integers(4)]
    cut_off = -int(random.integers(1, 9)) if random.random() < 0.5 else None
    mutants = {
        "cut": lambda: text[:where],
        "begun late": lambda: text[where:],
        "flipped": lambda: text[:where] + byte + text[where + 1 :],
        "strange": lambda: text[:where] + STRANGE[random.integers(len(STRANGE))] + text[where:],
        "doubled": lambda: text[:other] + text[where:],
        "interleaved": lambda: text[:where] + _written(random) + text[where:],
        "recoded": lambda: text.decode("latin-1").encode(encoding),
        "compressed": lambda: gzip.compress(text)[:cut_off],
        "whole": lambda: text,
    }
    return mutants[str(random.choice([*mutants]))]()


def _assert_mutants_are_read_alike(path: Path, num_files: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    configs = [*CONFIGS.values()]
    for _ in range(num_files):
        text = _written(random)
        for _ in range(random.integers(0, 4)):
            text = _mutated(text, random)
        path.write_bytes(text)
        config = configs[random.integers(len(configs)) if random.random() < 0.3 else 0]
        assert_read_alike(path, config, 1 << 20)
        assert_read_alike(path, config, int(random.choice([*TINY, 64, 300])))


def test_300_mutated_files_are_read_or_refused_alike(tmp_path):
    _assert_mutants_are_read_alike(tmp_path / "mutant.fasta", 300, seed=1)


@pytest.mark.slow
def test_20000_mutated_files_are_read_or_refused_alike(tmp_path):
    _assert_mutants_are_read_alike(tmp_path / "mutant.fasta", 20_000, seed=2)
