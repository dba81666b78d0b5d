"""Screening of blocks says what screening of records says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.sequence import FastaRecord, Screen, ScreeningConfig, encode, read_fasta
from proteinlm.sequence.block_screening import REASONS, BlockScreen, nucleotides
from proteinlm.sequence.record_blocks import ReadingPosition, block_of, blocks_of_records

FILES = Path(__file__).parent.parent / "data" / "fasta"
END = ReadingPosition(0, 0, 1, 0, 0)

residues = st.one_of(
    st.text("ACDEFGHIKLMNPQRSTVWYBZUOXxjJ*", max_size=40),
    st.text("Xx*", max_size=5),
    st.text("ACGTN", min_size=25, max_size=60),
).map(str.encode)
descriptions = st.sampled_from(["", "Some protein", "Some protein (Fragment) OS=X", "(Fragments)"])
records = st.lists(
    st.builds(FastaRecord, st.just("one"), descriptions, residues, st.just("file"), st.just(1)), min_size=1, max_size=30
)
lengths = st.integers(1, 20)
configs = st.builds(
    lambda low, more, share, fragments: ScreeningConfig(
        min_length=low,
        max_length=None if more is None else low + more,
        max_ambiguous=share,
        drop_fragments=fragments,
        duplicates="ignore",
    ),
    lengths,
    st.none() | lengths,
    st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 0.5, 0.9, 1.0]),
    st.booleans(),
)


def _judged_plainly(records, config):
    screen = Screen(config)
    verdicts = [screen.judge(record, encode(record.residues).tokens) for record in records]
    return [verdict.dropped or "" for verdict in verdicts], screen.report()


@given(records, configs)
def test_a_block_is_judged_as_its_records_are(records, config):
    screen = BlockScreen(config)
    codes = screen.judge(block_of(records, END))
    assert codes.dtype == np.uint8
    assert ([REASONS[code] for code in codes.tolist()], screen.report()) == _judged_plainly(records, config)


@given(records, records, configs)
def test_a_resumed_screen_counts_on(first, second, config):
    screen = BlockScreen(config)
    screen.judge(block_of(first, END))
    resumed = BlockScreen.resumed(config, json.loads(json.dumps(screen.state())))
    resumed.judge(block_of(second, END))
    assert resumed.report() == _judged_plainly(first + second, config)[1]


@pytest.mark.parametrize("name", ["no_residues", "x_only", "stops", "nucleotides", "rare_letters"])
def test_odd_files_are_screened_as_record_by_record(name):
    config = ScreeningConfig(duplicates="ignore")
    screen = BlockScreen(config)
    for block in blocks_of_records(read_fasta([FILES / f"{name}.fasta"]), source=0):
        screen.judge(block)
    assert screen.report() == _judged_plainly(read_fasta([FILES / f"{name}.fasta"]), config)[1]


def test_nucleotides_that_are_dropped_are_not_noted():
    records = [FastaRecord("one", "", sequence, "file", 1) for sequence in (b"ACGT" * 10, b"ACGT" * 20)]
    block = block_of(records, END)
    screen = BlockScreen(ScreeningConfig(max_length=50))
    assert nucleotides(block, screen.judge(block)).tolist() == [True, False]
    assert screen.report().noted == {"looks like nucleotides": 1}
