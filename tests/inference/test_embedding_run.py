"""A run writes whole results or none, and an interrupted one ends as if it had not been."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

import proteinlm
from proteinlm.attention import SoftmaxConfig
from proteinlm.errors import ConfigError, FastaError, OutputError
from proteinlm.inference.embedding_files import output_of
from proteinlm.inference.embedding_run import EmbeddingReport, RunConfig, embed_to_files, survey
from proteinlm.inference.embeddings import EmbeddingConfig
from proteinlm.inference.pretrained import PretrainedModel
from proteinlm.sequence.fasta import FastaRecord, accession

CONFIG = EmbeddingConfig(include=("mean", "per_tok"), repr_layers=(0, -1), toks_per_batch=600)


def run(
    pretrained: PretrainedModel, records: object, path: str, config: EmbeddingConfig = CONFIG, **settings
) -> EmbeddingReport:
    output = output_of(path)
    return embed_to_files(pretrained, records, output, config, RunConfig(**settings))  # type: ignore[arg-type]


def interrupted(records: list[FastaRecord], place: int) -> Iterator[FastaRecord]:
    yield from records[:place]
    raise KeyboardInterrupt


def interrupt(pretrained: PretrainedModel, records: list[FastaRecord], path: str, place: int = 8) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pretrained, interrupted(records, place), path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(identifier: str, residues: bytes) -> FastaRecord:
    return FastaRecord(identifier, "", residues, "x.fasta", 1)


def test_datasets_are_accessions_in_input_order(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    run(pretrained, proteins, f"{tmp_path}/out.h5", EmbeddingConfig())
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == [accession(protein.identifier) for protein in proteins]


@pytest.mark.parametrize("naming", ["first-word", "full"])
def test_names_follow_the_part_of_the_header_asked_for(pretrained: PretrainedModel, tmp_path: Path, naming: str):
    records = [FastaRecord("sp|P1|X", "some protein", b"MKV", "x.fasta", 1)]
    run(pretrained, records, f"{tmp_path}/out.h5", EmbeddingConfig(), naming=naming)
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == [{"first-word": "sp|P1|X", "full": "sp|P1|X some protein"}[naming]]


def test_nothing_but_the_results_remains(pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path):
    report = run(pretrained, proteins, f"{tmp_path}/out.h5")
    assert set(files_of(tmp_path)) == {file.path.name for file in report.files}


def test_report_counts_sequences_and_residues(pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path):
    report = run(pretrained, proteins, f"{tmp_path}/out.h5")
    num_residues = sum(len(protein.residues) for protein in proteins)
    assert (report.num_sequences, report.num_residues, report.num_failed) == (len(proteins), num_residues, 0)


def test_report_counts_what_was_changed(pretrained: PretrainedModel, tmp_path: Path):
    records = [record("a", b"MKVJ"), record("a", b"MK"), record("b", b"M" * 600)]
    config = dataclasses.replace(CONFIG, truncation_seq_length=550)
    report = run(pretrained, records, f"{tmp_path}/out.h5", config)
    found = (report.substitutions, report.num_cut, report.num_cut_residues, report.num_repeated)
    assert found == ({"J": 1}, 1, 50, 1)
    assert report.num_beyond_window == 1


@pytest.mark.parametrize("path", ["out.h5", "out.npz", "pt/"])
def test_resumed_run_writes_the_bytes_of_an_uninterrupted_one(
    checkpoint_of_each: Path, proteins: list[FastaRecord], tmp_path: Path, path: str
):
    pretrained = proteinlm.load(checkpoint_of_each)
    run(pretrained, proteins, f"{tmp_path}/whole/{path}")
    interrupt(pretrained, proteins, f"{tmp_path}/resumed/{path}")
    report = run(pretrained, proteins, f"{tmp_path}/resumed/{path}", resume=True)
    assert 0 < report.num_resumed < len(proteins)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_interrupted_run_leaves_no_result_but_its_partial_one(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5.partial"]


def test_run_that_breaks_off_before_its_first_batch_leaves_nothing(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5", place=0)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_is_not_begun_again_unasked(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    with pytest.raises(OutputError, match=r"out\.h5\.partial: holds an interrupted run; add --resume"):
        run(pretrained, proteins, f"{tmp_path}/out.h5")


def test_resume_without_an_interrupted_run_starts_one(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    report = run(pretrained, proteins, f"{tmp_path}/out.h5", resume=True)
    assert (report.num_resumed, report.num_sequences) == (0, len(proteins))


def test_resume_with_another_setting_is_refused(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    config = dataclasses.replace(CONFIG, toks_per_batch=700)
    with pytest.raises(OutputError, match="was begun with toks_per_batch = 600, now it is 700"):
        run(pretrained, proteins, f"{tmp_path}/out.h5", config, resume=True)


def test_resume_with_another_checkpoint_is_refused(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path, make_checkpoint
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    other = proteinlm.load(make_checkpoint(weight_scale=0.2))
    with pytest.raises(OutputError, match="was begun with weights_sha256"):
        run(other, proteins, f"{tmp_path}/out.h5", resume=True)


def test_resume_with_another_mechanism_of_the_same_weights_is_refused(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    other = dataclasses.replace(pretrained, model=pretrained.model.with_attention(SoftmaxConfig()))
    with pytest.raises(OutputError, match="was begun with model"):
        run(other, proteins, f"{tmp_path}/out.h5", resume=True)


def test_resume_with_other_residues_is_refused_by_name(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    first = proteins[0]._replace(residues=proteins[0].residues[::-1])
    with pytest.raises(OutputError, match=f"'{accession(first.identifier)}' or other residues"):
        run(pretrained, [first, *proteins[1:]], f"{tmp_path}/out.h5", resume=True)


def test_resume_with_fewer_sequences_is_refused(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5")
    with pytest.raises(OutputError, match="begun with more sequences than the input has"):
        run(pretrained, proteins[:1], f"{tmp_path}/out.h5", resume=True)


def test_failed_sequence_stops_the_run(pretrained: PretrainedModel, tmp_path: Path):
    with pytest.raises(FastaError, match=r"x\.fasta:1: 'b' has no residues"):
        run(pretrained, [record("a", b"MKV"), record("b", b"")], f"{tmp_path}/out.h5")
    assert list(tmp_path.iterdir()) == []


def cut_off(records: list[FastaRecord], place: int) -> Iterator[FastaRecord]:
    yield from records[:place]
    raise FastaError("x.fasta: the gzip data end before their end mark; the file is cut off")


def test_input_that_proves_faulty_on_the_way_leaves_nothing(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    with pytest.raises(FastaError):
        run(pretrained, cut_off(proteins, 8), f"{tmp_path}/new/newer/out.h5")
    assert list(tmp_path.iterdir()) == []


def test_faulty_input_does_not_cost_what_an_earlier_run_has_done(
    pretrained: PretrainedModel, proteins: list[FastaRecord], tmp_path: Path
):
    interrupt(pretrained, proteins, f"{tmp_path}/out.h5", place=5)
    with pytest.raises(FastaError):
        run(pretrained, cut_off(proteins, 8), f"{tmp_path}/out.h5", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5.partial"]


@pytest.mark.parametrize("letter", ["\t", "\x0b", "\u2028"], ids=ascii)
def test_a_character_that_ends_lines_to_some_adds_no_line_to_the_list_of_failures(
    pretrained: PretrainedModel, tmp_path: Path, letter: str
):
    run(pretrained, [record(f"a{letter}b", b"")], f"{tmp_path}/out.h5", EmbeddingConfig(), on_error="skip")
    _, row = (tmp_path / "out.h5.failed.tsv").read_text().splitlines()
    assert row.count("\t") == 3


def test_skipped_sequence_is_listed_and_the_others_embedded(pretrained: PretrainedModel, tmp_path: Path):
    records = [record("a", b"MKV"), record("b", b""), record("c", b"MKL")]
    report = run(pretrained, records, f"{tmp_path}/out.h5", EmbeddingConfig(), on_error="skip")
    assert (report.num_sequences, report.num_failed) == (2, 1)
    assert (tmp_path / "out.h5.failed.tsv").read_text().splitlines() == [
        "index\tidentifier\tresidues\treason",
        "1\tb\t0\tx.fasta:1: 'b' has no residues; nothing can be embedded",
    ]
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["a", "c"]


def test_run_without_failures_removes_an_older_list_of_them(pretrained: PretrainedModel, tmp_path: Path):
    run(pretrained, [record("a", b"")], f"{tmp_path}/out.h5", EmbeddingConfig(), on_error="skip")
    run(pretrained, [record("a", b"MKV")], f"{tmp_path}/out.h5", EmbeddingConfig(), on_error="skip")
    assert set(files_of(tmp_path)) == {"out.h5"}


@pytest.mark.parametrize("path", ["out.h5", "out.npz"])
def test_older_result_is_replaced(pretrained: PretrainedModel, tmp_path: Path, path: str):
    (tmp_path / path).write_text("older")
    run(pretrained, [record("a", b"MKV")], f"{tmp_path}/{path}", EmbeddingConfig())
    assert (tmp_path / path).read_bytes() != b"older"


def test_folder_that_holds_something_is_refused_before_the_work(pretrained: PretrainedModel, tmp_path: Path):
    (tmp_path / "pt").mkdir()
    (tmp_path / "pt" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="already exists and is not empty"):
        run(pretrained, interrupted([], 0), f"{tmp_path}/pt/")


@pytest.mark.parametrize("settings", [{"naming": "gene"}, {"on_error": "ignore"}], ids=["naming", "on_error"])
def test_senseless_run_setting_is_a_config_error(settings: dict):
    with pytest.raises(ConfigError, match="expected one of"):
        RunConfig(**settings)


def test_survey_counts_the_input(queries: Path):
    found = survey([queries])
    assert (found.num_sequences, found.num_residues) == (404, 197_046)


def test_survey_finds_a_record_without_residues_before_the_work(tmp_path: Path):
    (tmp_path / "x.fasta").write_text(">a\nMKV\n>b\n>c\nMK\n")
    with pytest.raises(FastaError, match=r"x\.fasta:3: 'b' has no residues; skip such records with --on-error skip"):
        survey([tmp_path / "x.fasta"])
