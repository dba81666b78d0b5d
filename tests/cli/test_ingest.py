"""The command ``proteinlm ingest``."""

from __future__ import annotations

import filecmp
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from proteinlm.cli.ingest import _time_line
from proteinlm.cli.main import main
from proteinlm.corpus import ingest, open_corpus

FILES = Path(__file__).parent.parent / "data" / "fasta"


@pytest.fixture
def proteinlm(capsys):
    """Run a command; return its exit code and what it wrote to stdout and stderr."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        written = capsys.readouterr()
        return caught.value.code or 0, written.out, written.err

    return run


def test_report_says_what_was_read_kept_and_written(proteinlm, tmp_path):
    names = [f"{name}.fasta" for name in ("plain", "no_residues", "stops", "lower_case")]
    code, out, err = proteinlm("ingest", *(FILES / name for name in names), "-o", tmp_path / "corpus")
    assert (code, out) == (0, "")
    # stops.fasta has an inner stop, so 22 + 23 + 0 residues
    assert f"read 10 records, 155 residues from {', '.join(names)} (3 dropped: 3 no residues)" in err
    assert "met: 1 sequences with a stop inside, 2 stops at the end" in err
    assert "replaced residues: 1 *, 27 lower case" in err
    assert f"wrote 7 sequences, 155 residues to {tmp_path / 'corpus'} (" in err


def test_json_on_stdout_is_the_index_of_the_corpus(proteinlm, tmp_path):
    code, out, _ = proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "corpus" / "corpus.json").read_text())


def test_standard_input_is_read(proteinlm, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((FILES / "plain.fasta").read_bytes())))
    code, _, err = proteinlm("ingest", "-", "-o", tmp_path / "corpus")
    assert code == 0
    assert "read 2 records, 44 residues from standard input" in err


def test_standard_input_that_does_not_wait_is_read_to_its_end(proteinlm, tmp_path, monkeypatch):
    source, target = os.pipe()
    os.set_blocking(source, False)

    def write():
        with open(target, "wb", buffering=0) as file:
            for record in (b">a\nMKV\n", b">b\nMKL\n"):
                time.sleep(0.2)
                file.write(record)

    writer = threading.Thread(target=write)
    with open(source) as file:
        monkeypatch.setattr(sys, "stdin", file)
        writer.start()
        code, _, err = proteinlm("ingest", "-", "-o", tmp_path / "corpus")
        writer.join()
    assert code == 0
    assert "read 2 records, 6 residues from standard input" in err


@pytest.mark.parametrize(
    ("output", "reason"),
    [("/", "has no name of its own"), ("a" * 300, "cannot be written (File name too long)")],
    ids=["root", "too long"],
)
def test_an_output_that_cannot_be_is_refused_by_name(proteinlm, tmp_path, output, reason):
    code, _, err = proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / output)
    assert code == 1
    assert f"{tmp_path / output}: {reason}" in err


def test_a_file_with_the_name_of_standard_input_is_read(proteinlm, tmp_path, monkeypatch):
    (tmp_path / "-").write_bytes((FILES / "plain.fasta").read_bytes())
    monkeypatch.chdir(tmp_path)
    code, _, err = proteinlm("ingest", "./-", "-o", "corpus")
    assert code == 0
    assert "read 2 records, 44 residues from -" in err


def test_a_name_that_is_no_text_is_escaped(tmp_path):
    path = tmp_path / "od\udcffd.fasta"
    path.write_bytes((FILES / "plain.fasta").read_bytes())
    ingest([path], tmp_path / "corpus")
    assert open_corpus(tmp_path / "corpus").index.sources[0].name == r"od\udcffd.fasta"


def test_an_input_that_cannot_be_is_refused_by_name(proteinlm, tmp_path):
    code, _, err = proteinlm("ingest", tmp_path / ("a" * 300), "-o", tmp_path / "corpus")
    assert code == 1
    assert f"{'a' * 300}: cannot be read (File name too long)" in err


def test_manifest_of_the_sample_is_ingested_by_its_name(proteinlm, tmp_path):
    code, _, err = proteinlm("ingest", "--manifest", "uniprotkb_sample", "-o", tmp_path / "corpus")
    assert code == 0, err
    assert "validation_ood: 941 sequences, 573,997 residues (0 equal to one in train, 0 of a cluster in train)" in err


@pytest.mark.parametrize("duplicates", ["--drop-duplicates", "--duplicates drop"])
def test_options_become_settings_of_the_corpus(proteinlm, tmp_path, duplicates):
    words = "--strict --gaps keep --min-length 2 --max-length 99 --seed 5 --validation-share 0.25"
    words += f" --max-ambiguous 0.5 --drop-fragments {duplicates}"
    code, _, err = proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus", *words.split())
    assert code == 0, err
    assert open_corpus(tmp_path / "corpus").index.settings == {
        "reading": {"gaps": "keep", "strict": True, "identifier_column": None, "sequence_column": None},
        "screening": {
            "min_length": 2,
            "max_length": 99,
            "max_ambiguous": 0.5,
            "drop_fragments": True,
            "duplicates": "drop",
        },
        "splitting": {
            "validation_share": 0.25,
            "ood_share": 0.05,
            "seed": 5,
            "validation_by": "sequence",
            "largest_clusters": 0,
            "cluster_source": "file",
            "cluster_columns": [],
        },
        "shard_residues": 2**26,
        "source_sha256": False,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([FILES / "nul.fasta"], f"proteinlm: {FILES / 'nul.fasta'}:2: a NUL byte"),
        ([FILES / "nowhere.fasta"], "nowhere.fasta: no such file"),
        ([FILES / "plain.fasta", "--validation-share", "1.5"], "splitting: validation_share is 1.5"),
        (["--manifest", FILES / "nowhere.toml"], "nowhere.toml: no such file"),
    ],
    ids=["faulty file", "missing file", "share above 1", "missing manifest"],
)
def test_errors_are_one_line_exit_1_and_leave_no_output(proteinlm, tmp_path, words, message):
    code, out, err = proteinlm("ingest", *words, "-o", tmp_path / "corpus")
    assert (code, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        [FILES / "plain.fasta", "--manifest", "m.toml"],
        ["--manifest", "m.toml", "--clusters", "c.tsv"],
        [FILES / "plain.fasta", "--drop-duplicates", "--duplicates", "count"],
    ],
    ids=["nothing to read", "files and manifest", "manifest and clusters", "duplicates dropped and counted"],
)
def test_wrong_usage_exits_2(proteinlm, tmp_path, words):
    code, _, err = proteinlm("ingest", *words, "-o", tmp_path / "corpus")
    assert code == 2
    assert "Usage: proteinlm ingest" in err


def test_nucleotides_and_empty_splits_are_warned_of(proteinlm, tmp_path):
    _, _, err = proteinlm("ingest", FILES / "nucleotides.fasta", "-o", tmp_path / "corpus")
    assert "warning: 1 sequence looks like nucleotides" in err
    assert "warning: validation_iid is empty" in err


def test_a_share_of_clusters_without_clusters_is_warned_of(proteinlm, tmp_path):
    _, _, err = proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus", "--ood-share", "0.1")
    assert "warning: --ood-share has no effect without --clusters" in err


def test_a_pipe_is_read_to_its_end(tmp_path, project_root):
    words = [sys.executable, "-m", "proteinlm", "ingest", "-", "-o", str(tmp_path / "corpus")]
    text = (FILES / "plain.fasta").read_bytes() * 5000
    done = subprocess.run(words, cwd=project_root, input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"read 10,000 records, 220,000 residues from standard input" in done.stderr


@pytest.fixture
def _interruptible():
    """Processes that are started hear Ctrl-C, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("sent", [b"", (FILES / "plain.fasta").read_bytes()], ids=["nothing", "a beginning"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_anything_is_worth_keeping_leaves_nothing(tmp_path, project_root, number, sent):
    words = [sys.executable, "-m", "proteinlm", "ingest", "-", "-o", f"{tmp_path}/new/corpus", "--jobs", "2"]
    process = subprocess.Popen(words, cwd=project_root, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(sent)
    process.stdin.flush()
    while process.poll() is None and not list(tmp_path.rglob("screening.tsv")):
        time.sleep(0.005)
    # a thread now waits for the rest, or soon
    process.send_signal(number)
    expected = (143, b"") if number == signal.SIGTERM else (1, b"\nAborted!\n")
    assert (process.wait(60), process.stderr.read()) == expected
    assert list(tmp_path.iterdir()) == []
    process.stdin.close()
    process.stderr.close()


def test_a_signal_says_how_to_go_on_and_going_on_gives_the_same(proteinlm, tmp_path, project_root):
    sequences = "".join(f">p{n}\n{'MKTAYIAKQR' * (n % 7 + 1)}\n" for n in range(3000))
    (tmp_path / "proteins.fasta").write_text(sequences)
    words = ["ingest", tmp_path / "proteins.fasta", "-o", tmp_path / "corpus", "--shard-residues", "2000"]
    # after its only block, so that what is written by then can be gone on with
    slow = (
        "import sys, time; from proteinlm.corpus import corpus_builder; from proteinlm.cli.main import main;"
        "add = corpus_builder.CorpusBuilder.add;"
        "corpus_builder.CorpusBuilder.add = lambda self, block: (add(self, block), time.sleep(0.2))[0];"
        "main(sys.argv[1:])"
    )
    state = tmp_path / ".corpus.ingesting" / "state.json"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *map(str, words)], cwd=project_root, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    process.terminate()
    said = process.communicate()[1]
    if process.returncode == 143:
        assert "shards written) is kept; go on with it by --resume, or throw it away by --restart" in said
        assert proteinlm(*words)[0] == 1
    code, _, err = proteinlm(*words, "--resume") if state.exists() else (0, "", "")
    assert code == 0, err
    code, _, err = proteinlm("ingest", tmp_path / "proteins.fasta", "-o", tmp_path / "again", *words[-2:])
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert filecmp.cmpfiles(tmp_path / "corpus", tmp_path / "again", names, shallow=False)[0] == names


def test_patterns_stand_for_files_in_order_of_their_names(proteinlm, tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.fasta").write_text(f">{name}\nMKV\n")
    code, _, err = proteinlm("ingest", tmp_path / "[ab].fasta", tmp_path / "c.fasta", "-o", tmp_path / "corpus")
    assert code == 0, err
    assert "from a.fasta, b.fasta, c.fasta" in err
    code, _, err = proteinlm("ingest", tmp_path / "*.gz", "-o", tmp_path / "other")
    assert (code, err) == (1, f"proteinlm: {tmp_path}/*.gz: no file has a name like this\n")


def test_the_report_says_how_fast_it_was_and_where_the_time_went(proteinlm, tmp_path):
    _, _, err = proteinlm(
        "ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus", "--jobs", "1", "--memory", "64MiB"
    )
    assert re.search(r"^[\d.]+ MB/s", err, re.MULTILINE)


def test_compiling_does_not_count_as_slowness(proteinlm, tmp_path):
    report = ingest([FILES / "plain.fasta"], tmp_path / "corpus")
    report = replace(report, num_bytes=2_000_000, timings={"compile": 9.0, "scan": 0.5})
    assert _time_line(report, 10.0) == "2.0 MB/s (work: compile 9.0 s, scan 0.5 s)"


def test_going_on_and_beginning_anew_exclude_each_other(proteinlm, tmp_path):
    code, _, err = proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus", "--resume", "--restart")
    assert code == 2
    assert "leave one of the two out" in err


def test_a_sha256_of_the_sources_is_taken_when_asked_for(proteinlm, tmp_path):
    for name, words in (("with", ["--source-sha256"]), ("without", [])):
        proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / name, *words)
    data = (FILES / "plain.fasta").read_bytes()
    for name, expected in (("with", hashlib.sha256(data).hexdigest()), ("without", "")):
        (source,) = open_corpus(tmp_path / name).index.sources
        assert (source.sha256, source.xxh3_128) == (expected, xxhash.xxh3_128_hexdigest(data))


def test_sigterm_is_what_it_was_after_a_command(proteinlm, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus")
    assert signal.getsignal(signal.SIGTERM) is before


def _write(path, text):
    path.write_text(text)
    return path


def test_proteins_are_held_out_by_list_family_and_cluster(proteinlm, tmp_path):
    residues = ("MKTAYIAKQR", "MSILVTRPSP", "MENFQKVEKI", "MAHHGWWLLK", "MDDDRRLLAA")
    fasta = _write(tmp_path / "five.fasta", "".join(f">P{n}\n{text}\n" for n, text in enumerate(residues)))
    words = ["--held-out", _write(tmp_path / "list.txt", "P0\nP7\n"), "--validation-share", "0", "--ood-share", "0"]
    words += ["--held-out-families", _write(tmp_path / "families.txt", "F1\nF2\n")]
    words += ["--families", _write(tmp_path / "families.tsv", "P1\tF1\nP4\tF3\n")]
    words += ["--clusters", _write(tmp_path / "clusters.tsv", "cluster\tx\tprotein\nC\t1\tP1\nC\t1\tP2\n")]
    code, _, err = proteinlm("ingest", fasta, "-o", tmp_path / "corpus", *words, "--cluster-columns", "cluster,protein")
    assert code == 0, err
    assert "held out by name: 1 listed, 1 of held-out families, 1 relatives by cluster" in err
    assert "warning: 1 of the 2 names of --held-out are those of no protein kept" in err
    assert "warning: 1 of the 2 families have no row in --families: F2" in err
    corpus = open_corpus(tmp_path / "corpus")
    sequences = corpus.sequences("validation_ood")
    assert [sequences.identifier(number) for number in range(len(sequences))] == ["P0", "P1", "P2"]
    assert corpus.index.held_out.files.keys() == {"held_out", "held_out_families", "families"}


def test_families_that_come_with_the_program_are_held_out_by_the_name_of_their_list(proteinlm, tmp_path):
    fasta = _write(tmp_path / "two.fasta", ">P1\nMKTAYIAKQR\n>P2\nMSILVTRPSP\n")
    table = _write(tmp_path / "families.tsv", "P1\tPF04680\nP2\tPF00001\n")
    words = ["--held-out-families", "performer_pfam_families", "--families", table]
    code, _, err = proteinlm("ingest", fasta, "-o", tmp_path / "corpus", *words)
    assert code == 0, err
    assert open_corpus(tmp_path / "corpus").sequences("validation_ood").identifier(0) == "P1"


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("--validation-by identifier --validation-share 0.5", "--validation-by sequence keeps equal ones together"),
        ("--held-out list.txt --validation-share 0", "hold out their equals too"),
        ("--clusters clusters.tsv --validation-share 0 --ood-share 0.5", "mend the table of clusters"),
    ],
)
@pytest.mark.parametrize("duplicates", ["count", "ignore"])
def test_a_warning_of_equal_sequences_says_what_keeps_them_together(
    proteinlm, tmp_path, monkeypatch, words, cure, duplicates
):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "equal.fasta", "".join(f">P{number}\nMKTAYIAKQR\n" for number in range(20)))
    _write(tmp_path / "list.txt", "P3\n")
    _write(tmp_path / "clusters.tsv", "".join(f"P{number}\tP{number}\n" for number in range(20)))
    code, _, err = proteinlm("ingest", "equal.fasta", "-o", "corpus", *words.split(), "--duplicates", duplicates)
    assert code == 0, err
    assert f"are also in train; {cure}" in err


def test_a_typed_share_takes_the_place_of_the_largest_clusters_of_a_manifest(proteinlm, tmp_path, project_root):
    manifest = project_root / "data_manifests" / "uniprotkb_sample.toml"
    proteinlm("ingest", "--manifest", manifest, "-o", tmp_path / "corpus", "--ood-share", "0.05")
    splits = open_corpus(tmp_path / "corpus").splits
    assert {name: split.num_sequences for name, split in splits.items()} == {
        "train": 17_397,
        "validation_iid": 467,
        "validation_ood": 895,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--held-out-families f.toml", "name both"),
        ("--families f.tsv", "name both"),
        ("--ood-share 0.1 --largest-clusters 3 --clusters c.tsv", "are two rules for one split"),
        ("--cluster-source header --clusters c.tsv", "takes no --clusters"),
        ("--largest-clusters 3", "--largest-clusters needs --clusters"),
        ("--cluster-columns a,b", "--cluster-columns needs --clusters"),
        ("--validation-by cluster", "needs --clusters or --cluster-source header"),
    ],
)
def test_options_of_splits_that_cannot_go_together_exit_2(proteinlm, tmp_path, words, message):
    code, _, err = proteinlm("ingest", FILES / "plain.fasta", "-o", tmp_path / "corpus", *words.split())
    assert code == 2
    assert message in " ".join(err.split())
