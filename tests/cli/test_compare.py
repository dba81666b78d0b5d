"""``proteinlm compare`` as people type it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from proteinlm.cli.main import group, main
from tests.analysis.conftest import proteins, run_folder, sample, save_run  # noqa: F401


@pytest.fixture(scope="module")
def fasta(proteins, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("fasta") / "sequences.fasta"
    path.write_bytes(b"".join(b">%s\n%s\n" % (p.identifier.encode(), p.residues) for p in proteins))
    return path


FAST = ["--draws", "1", "--max-length", "200"]


@pytest.fixture(scope="module")
def compared(fasta, run_folder, tmp_path_factory):  # noqa: F811
    """What a comparison prints, and its folder."""
    folder = tmp_path_factory.mktemp("reports") / "report"
    words = ["compare", str(fasta), "--checkpoint", str(run_folder), "-o", str(folder), "--features", "8", "32", *FAST]
    result = CliRunner().invoke(group, words)
    assert result.exit_code == 0, result.output
    return result, folder


@pytest.fixture
def compare(fasta, run_folder, tmp_path):  # noqa: F811
    def compare(*arguments, sequences=fasta, checkpoint=run_folder):
        words = ["compare", str(sequences), "--checkpoint", str(checkpoint), "-o", str(tmp_path / "report")]
        return CliRunner().invoke(group, [*words, *FAST, *arguments])

    return compare


def fails_with(message, result):
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_compare_writes_a_report(compared):
    assert sorted(path.name for path in compared[1].iterdir()) == ["figures", "report.html", "report.json"]


def test_compare_prints_the_table(compared):
    first_words = [line.split("  ")[0] for line in compared[0].stdout.splitlines()]
    assert first_words[:7] == ["attention", "exact softmax", "FAVOR+ 8", "FAVOR+ 32", "uniform", "identity", "unigram"]


def test_compare_prints_the_verdict(compared):
    headline = json.loads((compared[1] / "report.json").read_text(encoding="utf-8"))["verdict"]["headline"]
    assert compared[0].stdout.splitlines()[-1] == headline


def test_notes_go_to_stderr(compared):
    result, _ = compared
    assert "read 4 records" in result.stderr
    assert "left 1 of 4 proteins out of the maps: they are longer than --max-length 200" in result.stderr
    assert "report.html" in result.stderr
    assert "read" not in result.stdout


def test_options_of_several_values_stand_anywhere_and_json_is_for_machines(fasta, run_folder, tmp_path):  # noqa: F811
    words = ["compare", "--features", "8", "16", str(fasta), "--features", "32", "--max-sequences", "3", "--draws", "1"]
    result = CliRunner().invoke(group, [*words, "--checkpoint", str(run_folder), "-o", str(tmp_path / "r"), "--json"])
    assert result.exit_code == 0, result.output
    table = json.loads(result.stdout)
    assert set(table) == {"schema_version", "verdict", "summary", "counts", "settings"}
    assert table["settings"]["num_random_features"] == [8, 16, 32]
    assert table["counts"]["num_not_drawn"] == 1


def test_standard_input_is_read(run_folder, fasta, tmp_path):  # noqa: F811
    words = ["compare", "-", "--checkpoint", str(run_folder), "-o", str(tmp_path / "r"), "--features", "8", *FAST]
    result = CliRunner().invoke(group, words, input=fasta.read_bytes())
    assert result.exit_code == 0, result.output


def test_a_missing_file_leaves_nothing_behind(compare, tmp_path):
    fails_with("nothing.fasta", compare(sequences="nothing.fasta"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_leaves_nothing_behind(compare, tmp_path):
    fails_with("no such folder", compare(checkpoint=tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_report_is_refused_before_the_work(compare, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").touch()
    fails_with("already exists", compare(sequences="nothing.fasta"))
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["mine.txt"]


def test_features_must_be_numbers(compare):
    result = compare("--features", "many")
    assert result.exit_code == 2
    assert "many" in result.stderr


def test_no_features_below_one(compare):
    assert compare("--features", "0").exit_code == 2


def test_errors_are_one_line(fasta, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(fasta), "--checkpoint", str(tmp_path / "nowhere"), "-o", str(tmp_path / "r")])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("proteinlm: ")


def test_help_ends_with_an_example():
    text = CliRunner().invoke(group, ["compare", "--help"]).stdout
    assert text.rstrip().endswith("--max-sequences 6")
