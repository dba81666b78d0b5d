"""Public files of proteins as people have them: each is read whole, or refused for the reason that is stated."""

from __future__ import annotations

import pytest

from proteinlm.errors import FastaError
from proteinlm.sequence import ReadingTally
from proteinlm.sequence.compression import read_decompressed
from proteinlm.sequence.source_blocks import read_source_blocks

# those that are no FASTA: records, or why they are refused
OTHERS = {
    "NC_000932_arabidopsis_plastid.gb.xz": "looks like a GenBank file",
    "Pfam-A.clans.tsv.gz": ":1: text before the first header",
    "Y16952_balhimycin_nrps.gbk": "looks like a GenBank file",
    "sevenless_drome_7LESS.dat": 1,
    "uniprot_core_entries.dat.xz": ":4508: the entry is no entry of UniProt",  # its class is THIS_IS_WRONG
    "uniprot_sample.xml.xz": 250,
    "uniref50_2014_11_sample.xml.xz": "looks like UniRef's XML, which says who is in which cluster",
    "uniref50_members_2014_11.tsv.xz": ":1: text before the first header",
}


def num_records(path, tally=None):
    return sum(len(block) for block in read_source_blocks([path], tally=tally))


@pytest.fixture
def sequences(shared_data):
    return shared_data / "sequences"


def test_every_fasta_file_gives_as_many_records_as_it_has_headers(sequences):
    files = [path for path in sequences.iterdir() if path.is_file() and path.name not in OTHERS]
    assert len(files) > 25
    for path in [*files, sequences.parent / "chains.fasta"]:
        text = b"".join(read_decompressed(path))
        tally = ReadingTally(with_sha256=False)
        assert num_records(path, tally) == text.count(b"\n>") + text.startswith(b">"), path
        letters = sum(len(line.strip()) for line in text.split(b"\n") if not line.startswith(b">"))
        taken = tally.treatments["gaps"] + tally.treatments["stops at the end"]
        assert sum(source.num_residues for source in tally.sources) == letters - taken, path


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_read_or_refused_by_name(sequences, name):
    expected = OTHERS[name]
    if isinstance(expected, int):
        assert num_records(sequences / name) == expected
    else:
        with pytest.raises(FastaError, match=expected):
            num_records(sequences / name)


def test_stockholm_alignments_are_refused_by_name(sequences):
    for path in (sequences / "stockholm").iterdir():
        with pytest.raises(FastaError, match="looks like a Stockholm alignment"):
            num_records(path)


@pytest.mark.parametrize("opening", [b"\n" * 5000, b"<?xml?>" + b" " * 5000 + b"<x>", b"<!--" * 2000])
def test_what_tells_formats_takes_no_time_on_long_runs(opening, tmp_path):
    path = tmp_path / "long.fasta"
    path.write_bytes(opening)
    with pytest.raises(FastaError):
        num_records(path)
