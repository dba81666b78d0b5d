"""``proteinlm embed`` does what people type, says what it did, and leaves nothing half-written."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import h5py
import numpy
import pytest
import torch

import proteinlm
from proteinlm.attention import FavorConfig
from proteinlm.cli.main import main
from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint
from proteinlm.sequence.fasta import accession, read_fasta

Embed = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, feed_forward_size=48, attention=FavorConfig())
    path = tmp_path_factory.mktemp("runs") / "first"
    recipe = {"packing": {"context": "isolated", "window_length": 512}}
    save_checkpoint(path / "checkpoint", MaskedLM(settings, seed=3), recipe, step=5)
    return path


@pytest.fixture(scope="module")
def fasta(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 12 query proteins."""
    source = project_root / "data_manifests" / "sample" / "uniprotkb_queries.fasta.xz"
    path = tmp_path_factory.mktemp("fasta") / "sequences.fasta"
    records = islice(read_fasta([source]), 12)
    path.write_text("".join(f">{r.identifier} {r.description}\n{r.residues.decode()}\n" for r in records))
    return path


@pytest.fixture
def embed(checkpoint: Path) -> Embed:
    """Run the command with the checkpoint and return its exit code."""

    def embed(*words: object) -> int:
        with pytest.raises(SystemExit) as end:
            main(["embed", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, words)])
        return int(end.value.code or 0)

    return embed


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_mean_of_each_protein_is_written_under_its_accession(embed: Embed, fasta: Path, tmp_path: Path):
    assert embed(fasta, "-o", tmp_path / "out.h5") == 0
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == [accession(record.identifier) for record in read_fasta([fasta])]
        assert {dataset.shape for dataset in file.values()} == {(32,)}


def test_residues_are_written_beside_the_mean(embed: Embed, fasta: Path, tmp_path: Path):
    assert embed("-o", tmp_path / "out.h5", "--include", "mean", "per_tok", fasta) == 0
    with h5py.File(tmp_path / "out.per_tok.h5") as file:
        assert [len(dataset) for dataset in file.values()] == [len(record.residues) for record in read_fasta([fasta])]


def test_values_may_be_typed_before_the_file(embed: Embed, fasta: Path, tmp_path: Path):
    assert embed("-o", tmp_path / "out.npz", "--repr-layers", "-1", "0", fasta) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.layer2.npz", "out.layer0.npz"}


def test_result_is_stored_in_the_dtype_asked_for(embed: Embed, fasta: Path, tmp_path: Path):
    embed(fasta, "-o", tmp_path / "out.npz", "--dtype", "float16")
    with numpy.load(tmp_path / "out.npz") as file:
        assert file[file.files[0]].dtype == numpy.float16


def test_weights_run_with_another_attention(embed: Embed, checkpoint: Path, fasta: Path, tmp_path: Path):
    assert embed("-o", tmp_path / "exact.npz", "--include", "mean", "--set", "kind=softmax", fasta) == 0
    exact = proteinlm.load(checkpoint).with_attention(["kind=softmax"])
    expected = {one.identifier: one.mean[2] for one in exact.embed(read_fasta([fasta]))}
    with numpy.load(tmp_path / "exact.npz") as file:
        written = {name: file[name] for name in file.files}
    assert {accession(name): mean.tolist() for name, mean in expected.items()} == {
        name: mean.tolist() for name, mean in written.items()
    }
    trained = next(iter(proteinlm.load(checkpoint).embed(read_fasta([fasta]))))
    assert abs(trained.mean[2] - expected[trained.identifier]).max() > 0


def test_folder_of_pt_files_loads_without_pickle(embed: Embed, fasta: Path, tmp_path: Path):
    assert embed(fasta, "-o", f"{tmp_path}/pt/", "--include", "mean", "per_tok", "bos") == 0
    paths = list((tmp_path / "pt").iterdir())
    assert len(paths) == 12
    assert set(torch.load(paths[0], weights_only=True)) == {
        *("label", "representations", "mean_representations", "bos_representations"),
    }


def test_compressed_files_and_several_of_them_are_read_in_order(embed: Embed, fasta: Path, tmp_path: Path):
    packed = write(tmp_path / "packed.fasta.xz", lzma.compress(b">first\nMKV\n"))
    embed(packed, fasta, "-o", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert (next(iter(file)), len(file)) == ("first", 13)


def test_closing_lines_say_how_much_and_where(embed: Embed, fasta: Path, tmp_path: Path, capsys):
    embed(fasta, "-o", tmp_path / "out.h5")
    printed = capsys.readouterr()
    num_residues = sum(len(record.residues) for record in read_fasta([fasta]))
    assert f"embedded 12 sequences, {num_residues:,} residues in " in printed.err
    assert f"wrote mean of layer 2 to {tmp_path}/out.h5" in printed.err
    assert printed.out == ""


def test_report_is_printed_as_json_on_stdout(embed: Embed, fasta: Path, tmp_path: Path, capsys):
    embed(fasta, "-o", tmp_path / "out.h5", "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["num_sequences"], report["files"][0]["path"]) == (12, f"{tmp_path}/out.h5")


def test_what_was_done_to_the_residues_is_said(embed: Embed, tmp_path: Path, capsys):
    odd = write(tmp_path / "odd.fasta", ">a\nmkJ-V*\n>a\nMKVLA\n")
    embed(odd, "-o", tmp_path / "out.h5", "--truncation-seq-length", "4")
    printed = capsys.readouterr().err
    assert "1 gaps, 1 stops at the end" in printed
    assert "replaced residues (1 J, 2 lower case)" in printed
    assert "cut 1 residues off the ends of 1 sequences" in printed
    assert "1 identifiers occur more than once" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no record"),
        (b"@read\nACGT\n+\n!!!!\n", "FASTA"),
        (b">a\nMK\0V\n", "a.fasta:2: a NUL byte"),
        (b">a\nMKV\n>b\n", "a.fasta:3: 'b' has no residues"),
        (lzma.compress(b">a\nMKV\n" * 100)[:-20], "a.fasta"),
    ],
    ids=["empty", "fastq", "nul", "no residues", "truncated"],
)
def test_bad_input_is_one_clear_line_and_no_output(embed: Embed, tmp_path: Path, capsys, content: bytes, message: str):
    path = write(tmp_path / "a.fasta", content)
    assert embed(path, "-o", tmp_path / "out.h5") == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("proteinlm:"))
    assert message in line
    assert list(tmp_path.iterdir()) == [path]


def test_missing_checkpoint_is_an_error(fasta: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["embed", str(fasta), "--checkpoint", f"{tmp_path}/none", "-o", f"{tmp_path}/out.h5"])
    assert "expected model.safetensors" in capsys.readouterr().err


def test_skipped_sequence_makes_the_exit_code_1(embed: Embed, tmp_path: Path, capsys):
    path = write(tmp_path / "a.fasta", ">a\nMKV\n>b\n>c\nMKL\n")
    assert embed(path, "-o", tmp_path / "out.h5", "--on-error", "skip") == 1
    assert f"1 sequences failed; see {tmp_path}/out.h5.failed.tsv" in capsys.readouterr().err
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["a", "c"]


@pytest.mark.parametrize(
    "words", [["--layout", "tree"], ["--toks-per-batch", "0"], ["--include", "median"], ["--nonsense"]], ids=" ".join
)
def test_wrong_usage_exits_with_2(embed: Embed, fasta: Path, tmp_path: Path, words: list[str]):
    assert embed(fasta, "-o", tmp_path / "out.h5", *words) == 2


def command(checkpoint: Path, *words: object) -> list[str]:
    return [sys.executable, "-m", "proteinlm", "embed", "--checkpoint", str(checkpoint), *map(str, words)]


def test_standard_input_is_read(checkpoint: Path, fasta: Path, tmp_path: Path, project_root: Path):
    words = command(checkpoint, "-", "-o", tmp_path / "out.h5")
    subprocess.run(words, input=fasta.read_bytes(), check=True, cwd=project_root, capture_output=True)
    with h5py.File(tmp_path / "out.h5") as file:
        assert len(file) == 12


def test_killed_run_resumes_to_the_same_bytes(
    embed: Embed, checkpoint: Path, fasta: Path, tmp_path: Path, project_root: Path
):
    options = ["--include", "mean", "per_tok", "--toks-per-batch", "600"]
    long = write(tmp_path / "long.fasta", fasta.read_bytes() * 20)
    words = command(checkpoint, long, "-o", tmp_path / "killed.h5", *options)
    process = subprocess.Popen(
        words, cwd=project_root, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    journal = tmp_path / "killed.h5.partial" / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert journal.is_file(), "the run ended before it could be killed"
    assert embed(long, "-o", tmp_path / "killed.h5", *options, "--resume") == 0
    assert embed(long, "-o", tmp_path / "whole.h5", *options) == 0
    for name in ("h5", "per_tok.h5"):
        assert (tmp_path / f"killed.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()


def begin(words: list[str], folder: Path, root: Path) -> subprocess.Popen[str]:
    """Start a run and wait until it has committed a batch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True, env=environment)
    journal = folder / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.005)
    return process


def test_terminated_run_says_how_to_go_on(checkpoint: Path, fasta: Path, tmp_path: Path, project_root: Path):
    long = write(tmp_path / "long.fasta", fasta.read_bytes() * 20)
    words = command(checkpoint, long, "-o", tmp_path / "out.h5", "--toks-per-batch", "600")
    process = begin(words, tmp_path / "out.h5.partial", project_root)
    process.terminate()
    _, printed = process.communicate()
    assert process.returncode == 143, printed
    assert f"{tmp_path}/out.h5.partial: keeps what is done; go on with --resume, or remove it" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"long.fasta", "out.h5.partial"}


def test_standard_input_that_is_cut_off_leaves_nothing(
    checkpoint: Path, fasta: Path, tmp_path: Path, project_root: Path
):
    cut = gzip.compress(fasta.read_bytes() * 20)[:-20]
    words = command(checkpoint, "-", "-o", tmp_path / "out.h5", "--toks-per-batch", "600")
    done = subprocess.run(words, input=cut, cwd=project_root, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"standard input: the gzip data end before their end mark" in done.stderr
    assert list(tmp_path.iterdir()) == []
