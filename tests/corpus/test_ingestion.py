"""FASTA becomes a corpus: the same one every time, whole or not at all."""

from __future__ import annotations

import filecmp
import lzma
import os
import resource
from pathlib import Path

import pytest

from proteinlm.corpus import HeldOutFiles, IngestionConfig, SplittingConfig, ingest, ingest_manifest, open_corpus
from proteinlm.errors import FastaError, OutputError
from proteinlm.sequence import FastaConfig, ScreeningConfig, accession, decode, read_fasta

FILES = Path(__file__).parent.parent / "data" / "fasta"


def _all_sequences(corpus):
    for split in corpus.splits:
        sequences = corpus.sequences(split)
        for number in range(len(sequences)):
            yield split, sequences.identifier(number), decode(sequences.tokens(number))


def test_every_sequence_of_the_sample_reads_back_equal_to_its_fasta(sample_corpus, sample_manifest):
    found = {identifier: residues for _, identifier, residues in _all_sequences(sample_corpus)}
    path = sample_manifest.parent / "sample" / "uniprotkb_sample.fasta.xz"
    expected = {record.identifier: record.residues.decode() for record in read_fasta([path])}
    assert found == expected


def test_corpus_built_twice_is_byte_identical(sample_corpus, sample_manifest, tmp_path):
    again = tmp_path / "again"
    ingest_manifest(sample_manifest, again)
    names = sorted(os.listdir(sample_corpus.path))
    assert names == sorted(os.listdir(again))
    assert filecmp.cmpfiles(sample_corpus.path, again, names, shallow=False) == (names, [], [])


def test_digest_tells_content_not_names(write_fasta, tmp_path):
    proteins = [("first", "MKTAYIAKQR"), ("second", "MSILVTRPSP")]
    reports = [ingest([write_fasta(proteins, name)], tmp_path / f"from_{name}") for name in ("a.fasta", "b.fasta")]
    other = ingest([write_fasta(proteins[::-1])], tmp_path / "other")
    assert reports[0].index.digest == reports[1].index.digest != other.index.digest


def test_ood_split_of_the_sample_shares_no_cluster_and_no_sequence_with_train(sample_corpus, sample_manifest):
    path = sample_manifest.parent / "sample" / "uniprotkb_sample.clusters30.tsv.xz"
    table = lzma.decompress(path.read_bytes()).decode()
    cluster_of = dict(line.split("\t")[::-1] for line in table.splitlines()[1:])
    clusters, sequences = {}, {}
    for split, identifier, residues in _all_sequences(sample_corpus):
        clusters.setdefault(split, set()).add(cluster_of[accession(identifier)])
        sequences.setdefault(split, set()).add(residues)
    assert not clusters["validation_ood"] & (clusters["train"] | clusters["validation_iid"])
    assert not sequences["validation_ood"] & sequences["train"]
    assert not sequences["validation_iid"] & sequences["train"]


def test_a_protein_keeps_its_split_when_others_come_and_go(write_fasta, tmp_path):
    proteins = [
        (f"p{n}", "MKTAYIAKQRQISFVKSHFSRQ"[n % 5 :] + "ACDEFGHIKL"[n % 10 :] + "W" * (n // 10)) for n in range(80)
    ]
    config = IngestionConfig(splitting=SplittingConfig(validation_share=0.3))
    splits = []
    for number, part in enumerate((proteins, proteins[::-2])):
        ingest([write_fasta(part)], tmp_path / f"corpus_{number}", config=config)
        splits.append({name: split for split, name, _ in _all_sequences(open_corpus(tmp_path / f"corpus_{number}"))})
    assert splits[1].items() <= splits[0].items()
    assert set(splits[1].values()) == {"train", "validation_iid"}


def test_records_read_are_kept_plus_each_reason_and_listed(tmp_path):
    names = ("no_residues", "x_only", "stops", "lower_case", "duplicate_identifiers")
    report = ingest([FILES / f"{name}.fasta" for name in names], tmp_path / "corpus")
    screening = report.index.screening
    assert screening.num_read == 12
    assert screening.dropped == {"X only, nothing to predict": 1, "no residues": 3}
    assert screening.num_kept == 8 == sum(split.num_sequences for split in report.index.splits.values())
    rows = [line.split("\t") for line in (report.path / "screening.tsv").read_text().splitlines()]
    assert [row for row in rows if row[0] == "dropped"] == [
        ["dropped", "no residues", "no_residues.fasta", "1", "first"],
        ["dropped", "no residues", "no_residues.fasta", "4", "third"],
        ["dropped", "X only, nothing to predict", "x_only.fasta", "1", "first"],
        ["dropped", "no residues", "stops.fasta", "5", "only"],
    ]


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"], ids=ascii)
def test_a_character_that_ends_lines_to_some_adds_no_line_to_the_list(write_fasta, tmp_path, letter):
    report = ingest([write_fasta([("first", "MKV"), (f"se{letter}cond", "")])], tmp_path / "corpus")
    _, row = (report.path / "screening.tsv").read_text().splitlines()
    assert row == f"dropped\tno residues\tproteins.fasta\t3\tse{letter.encode('unicode_escape').decode()}cond"


def test_substitutions_are_counted_over_what_is_kept(tmp_path):
    report = ingest([FILES / "rare_letters.fasta", FILES / "x_only.fasta"], tmp_path / "corpus")
    assert report.index.substitutions == {"J": 2, "lower case": 7}


def test_settings_are_remembered(tmp_path):
    config = IngestionConfig(screening=ScreeningConfig(max_length=50), reading=FastaConfig(gaps="keep"))
    index = ingest([FILES / "gaps.fasta"], tmp_path / "corpus", config=config).index
    assert index.settings["screening"]["max_length"] == 50
    reading = {"gaps": "keep", "strict": False, "identifier_column": None, "sequence_column": None}
    assert index.settings["reading"] == reading


def test_proteins_outside_the_clusters_are_counted_and_not_held_out(write_fasta, tmp_path):
    clusters = tmp_path / "clusters.tsv"
    clusters.write_text("P00001\tP00001\n")
    config = IngestionConfig(splitting=SplittingConfig(validation_share=0, ood_share=0.999))
    proteins = [("sp|P00001|A", "MKTAYIAKQR"), ("unknown", "MSILVTRPSP")]
    index = ingest([write_fasta(proteins)], tmp_path / "corpus", config=config, clusters=clusters).index
    assert index.clusters.num_unclustered == 1
    assert index.splits["validation_ood"].num_sequences == 1
    assert index.splits["train"].num_sequences == 1


@pytest.mark.parametrize("duplicates", ["count", "ignore"])
@pytest.mark.parametrize("rule", ["identifier", "list"])
def test_equal_sequences_that_names_part_are_counted_whatever_is_done_with_duplicates(
    write_fasta, tmp_path, duplicates, rule
):
    proteins = write_fasta([(f"p{number}", "MKV" if number % 2 else "MKVL" + "A" * number) for number in range(40)])
    (tmp_path / "list.txt").write_text("p3\n")
    by_name = SplittingConfig(validation_share=0.5, validation_by="identifier")
    splitting = by_name if rule == "identifier" else SplittingConfig(validation_share=0)
    config = IngestionConfig(splitting=splitting, screening=ScreeningConfig(duplicates=duplicates))
    held_out = HeldOutFiles(names=tmp_path / "list.txt") if rule == "list" else None
    corpus = open_corpus(ingest([proteins], tmp_path / "corpus", config=config, held_out=held_out).path)
    texts = [(split, text) for split, _, text in _all_sequences(corpus)]
    in_train = {text for split, text in texts if split == "train"}
    expected = {name: sum(text in in_train for split, text in texts if split == name) for name in corpus.index.leaks}
    assert {name: leak.equal_sequences for name, leak in corpus.index.leaks.items()} == expected
    assert sum(expected.values()) > 0


@pytest.mark.parametrize("name", ["empty", "digit_in_sequence", "utf16"])
def test_faulty_input_leaves_no_output(tmp_path, name):
    with pytest.raises(FastaError):
        ingest([FILES / "plain.fasta", FILES / f"{name}.fasta"], tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_gaps_alone_is_dropped_though_gaps_are_kept(write_fasta, tmp_path):
    config = IngestionConfig(reading=FastaConfig(gaps="keep"))
    index = ingest([write_fasta([("first", "--.."), ("second", "M-V")])], tmp_path / "corpus", config=config).index
    assert index.screening.dropped == {"X only, nothing to predict": 1}


def test_input_of_which_nothing_can_be_kept_is_refused(write_fasta, tmp_path):
    path = write_fasta([("first", ""), ("second", "XXX")])
    with pytest.raises(FastaError, match="none of 2 records can be kept: 1 X only, nothing to predict, 1 no residues"):
        ingest([path], tmp_path / "corpus")


def test_existing_output_is_left_alone(tmp_path):
    ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    before = (tmp_path / "corpus" / "corpus.json").read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        ingest([FILES / "gaps.fasta"], tmp_path / "corpus")
    assert (tmp_path / "corpus" / "corpus.json").read_bytes() == before


def test_a_full_disk_is_an_error_that_leaves_no_output(sample_manifest, tmp_path):
    # a limit on the size of files stands for the end of the disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"/train-00000\.h5\.tokens: cannot be written \([Ff]ile too large\)"):
            ingest_manifest(sample_manifest, tmp_path / "corpus")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
