"""Bad input ends in one clear line and no output; odd input is treated and counted. For every verb that reads FASTA."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from proteinlm.cli.main import main

PROTEINS = b"".join(b">sp|P%05d|X\nMKTAYIAKQRQISFVKSHFSRQ\nLEERLGLIEV\n" % number for number in range(50))

# what the file holds (None: there is none), and what the line on stderr says
REFUSED = {
    "empty file": (b"", "holds no record"),
    "blank lines only": (b"\n\n", "holds no record"),
    "no FASTA": (b"@read\nACGT\n+\n!!!!\n", "is no FASTA but looks like FASTQ"),
    "text before the first header": (b"MKV\n>a\nMKV\n", ":1: text before the first header"),
    "cut off gzip": (gzip.compress(PROTEINS)[:-20], "the gzip data end before their end mark"),
    "NUL byte": (PROTEINS + b">a\nMK\0V\n", ":152: a NUL byte"),
    "missing file": (None, "no such file"),
}
# what the file holds, the options that embed needs, and what ingest and embed say they did
TREATED = {
    "record without residues": (
        b">a\nMKV\n>b\n",
        ["--on-error", "skip"],
        "1 dropped: 1 no residues",
        "1 sequences failed",
    ),
    "duplicate identifiers": (
        b">a\nMKV\n>a\nMKL\n",
        [],
        "1 duplicate identifier",
        "1 identifiers occur more than once",
    ),
    "CR LF": (b">a\r\nMKV\r\nLAG\r\n", [], "read 1 records, 6 residues", "read 1 sequences, 6 residues"),
    "lower case": (b">a\nmkv\n", [], "3 lower case", "3 lower case"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from proteinlm.attention import SoftmaxConfig
    from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint

    settings = ModelConfig(num_layers=1, hidden_size=8, num_heads=2, feed_forward_size=8, attention=SoftmaxConfig())
    path = tmp_path_factory.mktemp("run") / "checkpoint"
    save_checkpoint(path, MaskedLM(settings, seed=0), {"packing": {"context": "isolated", "window_length": 64}}, step=1)
    return path


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a verb on a file of some content; return the exit code and what stderr has."""
    own = checkpoint

    def run(
        verb: str,
        content: bytes | None,
        *options: str,
        checkpoint: Path = own,
        corpus: Path | None = None,
        name: str = f"{tmp_path}/proteins.fasta",
    ) -> tuple[int, str]:
        path = tmp_path / "proteins.fasta"
        if content is not None:
            path.write_bytes(content)
        words = {
            "ingest": ["-o", f"{tmp_path}/new/corpus"],
            "embed": ["-o", f"{tmp_path}/new/out.h5", "--checkpoint", str(checkpoint), "--device", "cpu", *options],
            "compare": ["-o", f"{tmp_path}/new/report", "--checkpoint", str(checkpoint), "--features", "8"],
            "evaluate": ["--corpus", str(corpus)],
        }
        with pytest.raises(SystemExit) as end:
            main([verb, str(checkpoint) if verb == "evaluate" else name, *words[verb]])
        return int(end.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.parametrize("verb", ["ingest", "embed"])
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_exit_1_one_line_and_no_output(run, tmp_path: Path, verb: str, name: str):
    content, message = REFUSED[name]
    code, printed = run(verb, content)
    assert code == 1
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("proteinlm:"))
    assert f"{tmp_path}/proteins.fasta" in line
    assert message in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["ingest", "embed"])
@pytest.mark.parametrize("name", TREATED)
def test_odd_input_is_treated_and_counted(run, tmp_path: Path, verb: str, name: str):
    content, options, *messages = TREATED[name]
    code, printed = run(verb, content, *options)
    # embed says by its exit code that a sequence has no embedding
    assert code == (1 if verb == "embed" and options else 0), printed
    assert "proteinlm:" not in printed
    assert messages[verb == "embed"] in printed
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


NUCLEOTIDES = (
    b">gene\nACGTACGTACGTACGTACGTACGTACGTACGTACGT\n>rna\nacguacguacguacguacguacguacguacgunnn\n>protein\nMKTAYIAKQRQ\n"
)


@pytest.mark.parametrize("verb", ["ingest", "embed", "compare"])
def test_nucleotides_are_warned_of_in_the_same_words(run, verb: str):
    code, printed = run(verb, NUCLEOTIDES)
    assert code == 0, printed
    (line,) = (line for line in printed.splitlines() if line.startswith("warning:") and "like nucleotides" in line)
    assert line.split(";")[0] == "warning: 2 sequences look like nucleotides, not like a protein"


def test_nucleotides_of_standard_input_are_warned_of(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(NUCLEOTIDES)))
    code, printed = run("embed", None, name="-")
    assert code == 0, printed
    assert printed.count("warning: 2 sequences look like nucleotides, not like a protein") == 1


@pytest.mark.parametrize("verb", ["embed", "compare", "evaluate"])
def test_a_weight_that_is_not_finite_is_refused_by_name(
    run, checkpoint: Path, tmp_path: Path, tiny_corpus: Path, verb: str
):
    from proteinlm.model import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint)
    name = "encoder.blocks.0.feed_forward.outer.weight"
    weights = {key: weight.clone() for key, weight in loaded.model.state_dict().items()}
    weights[name][0, 0] = float("nan")
    damaged = tmp_path / "damaged"
    save_checkpoint(damaged, loaded.model, loaded.recipe, step=1, weights=weights)
    code, printed = run(verb, PROTEINS, checkpoint=damaged, corpus=tiny_corpus)
    assert code == 1
    (line,) = (line for line in printed.splitlines() if line.startswith("proteinlm:"))
    assert f"{damaged}/model.safetensors: weight '{name}' holds 1 value that is not finite" in line
    assert not (tmp_path / "new").exists()
