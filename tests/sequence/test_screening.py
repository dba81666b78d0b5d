"""Every record is kept or dropped for one counted reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.sequence import FastaRecord, Screen, ScreeningConfig, encode, read_fasta
from proteinlm.sequence.screening import looks_like_nucleotides

FILES = Path(__file__).parent.parent / "data" / "fasta"
PROTEIN = b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSG"
duplicates = st.sampled_from(["count", "drop", "ignore"])


def _screen(records, **settings):
    screen = Screen(ScreeningConfig(**settings))
    verdicts = [screen.judge(record, encode(record.residues).tokens) for record in records]
    return verdicts, screen.report()


def _records(*sequences):
    return [FastaRecord(f"protein_{n}", "", residues, "file", n) for n, residues in enumerate(sequences)]


@pytest.mark.parametrize(
    ("name", "dropped", "noted"),
    [
        ("plain", {}, {}),
        ("no_residues", {"no residues": 2}, {}),
        ("x_only", {"X only, nothing to predict": 1}, {}),
        ("stops", {"no residues": 1}, {}),
        ("duplicate_identifiers", {}, {"duplicate identifier": 1}),
        ("duplicate_sequences", {}, {"duplicate sequence": 1}),
        ("nucleotides", {}, {"looks like nucleotides": 1}),
    ],
)
def test_odd_files_are_screened_as_documented(name, dropped, noted):
    _, report = _screen(read_fasta([FILES / f"{name}.fasta"]))
    assert (report.dropped, report.noted) == (dropped, noted)


def test_lengths_out_of_bounds_are_dropped_and_counted():
    _, report = _screen(_records(b"MK", b"MKT", b"MKTAY", b"MKTAYI"), min_length=3, max_length=5)
    assert (report.num_kept, report.dropped) == (2, {"too long": 1, "too short": 1})


def test_of_equal_sequences_the_first_is_kept_on_request():
    verdicts, report = _screen(_records(PROTEIN, PROTEIN[1:], PROTEIN.lower()), duplicates="drop")
    assert [verdict.dropped for verdict in verdicts] == [None, None, "duplicate sequence"]
    assert report.num_kept == 2


def test_duplicates_that_are_ignored_are_neither_dropped_nor_noted():
    records = _records(PROTEIN, PROTEIN) + _records(PROTEIN[1:])
    _, report = _screen(records, duplicates="ignore")
    assert (report.num_kept, report.dropped, report.noted) == (3, {}, {})


def test_a_share_of_ambiguous_residues_up_to_the_limit_is_kept():
    _, report = _screen(_records(b"MKTAYIAKQX", b"MKTAYIAKXX", b"mktayiakbz"), max_ambiguous=0.1)
    assert (report.num_kept, report.dropped) == (1, {"too many ambiguous residues": 2})


def test_fragments_are_dropped_on_request():
    headers = ["Some protein (Fragment) OS=X", "Some protein (Fragments)", "Fragment crystallisable"]
    records = [FastaRecord("one", header, PROTEIN, "file", n) for n, header in enumerate(headers)]
    assert _screen(records, duplicates="ignore", drop_fragments=True)[1].dropped == {"fragment": 2}
    assert _screen(records)[1].dropped == {}


@given(st.lists(st.text("ACXxjJ*GT", max_size=40).map(str.encode), max_size=30), duplicates)
def test_records_read_are_kept_plus_dropped(sequences, duplicates):
    verdicts, report = _screen(_records(*sequences), min_length=2, duplicates=duplicates)
    assert report.num_read == len(sequences)
    assert report.num_kept == sum(verdict.dropped is None for verdict in verdicts)
    assert report.num_kept + sum(report.dropped.values()) == report.num_read


@given(st.text("Xx*Jj", min_size=1, max_size=40).map(str.encode))
def test_a_sequence_without_anything_to_predict_is_dropped(residues):
    _, report = _screen(_records(residues))
    assert report.dropped == {"X only, nothing to predict": 1}


@given(st.text("Xx*Jj", max_size=20), st.sampled_from("ACDEFGHIKLMNPQRSTVWYBZUO"), st.text("Xx*Jj", max_size=20))
def test_one_residue_to_predict_is_enough(before, residue, after):
    _, report = _screen(_records(f"{before}{residue}{after}".encode()))
    assert report.num_kept == 1


def test_nucleotides_are_told_from_proteins():
    assert looks_like_nucleotides(b"ATGAAAACCGCGTATATTGCGAAACAGCGTCAGATTAGC")
    assert looks_like_nucleotides(b"augaaaaccgcguauauugcgaaacagcgucagauuagc")
    assert not looks_like_nucleotides(PROTEIN)
    assert not looks_like_nucleotides(b"GATTACA")


def test_nonsense_settings_are_refused():
    with pytest.raises(ValueError, match="min_length is 0"):
        ScreeningConfig(min_length=0)
    with pytest.raises(ValueError, match="max_length 3 is below min_length 5"):
        ScreeningConfig(min_length=5, max_length=3)
    with pytest.raises(ValueError, match=r"max_ambiguous is 2\.0; expected a share from 0 to 1"):
        ScreeningConfig(max_ambiguous=2.0)
    with pytest.raises(ValueError, match="duplicates is 'keep'; expected 'count', 'drop' or 'ignore'"):
        ScreeningConfig(duplicates="keep")
