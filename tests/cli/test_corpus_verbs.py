"""The commands ``proteinlm download``, ``verify`` and ``export``."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from proteinlm.cli.main import main
from proteinlm.corpus import export_fasta, open_corpus


@pytest.fixture
def run(capfd):
    """Run the program; return the exit code and what was written to stdout and stderr."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main([*map(str, words)])
        written = capfd.readouterr()
        return caught.value.code or 0, written.out, written.err

    return run


def test_verify_passes_a_whole_corpus(run, tiny_corpus):
    code, out, _ = run("verify", tiny_corpus)
    assert code == 0
    assert out.startswith(f"{tiny_corpus}: whole: 300 sequences, ")


def test_verify_prints_json(run, tiny_corpus):
    code, out, _ = run("verify", tiny_corpus, "--json")
    assert (code, json.loads(out)["num_sequences"]) == (0, 300)


def test_verify_and_inspect_name_the_same_damaged_bytes(run, tiny_corpus, tmp_path):
    import shutil

    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    shard = tmp_path / "corpus" / "train-00000.h5"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    message = f"proteinlm: {shard}: is damaged, first in bytes 0 to {len(data):,}; ingest again\n"
    for words in (["verify", tmp_path / "corpus"], ["inspect", tmp_path / "corpus", "--verify"]):
        assert run(*words) == (1, "", message)


def test_verify_of_what_is_no_corpus_is_an_error(run, tmp_path):
    code, out, err = run("verify", tmp_path)
    assert (code, out) == (1, "")
    assert "is no corpus" in err


def test_verify_of_a_file_says_how_to_make_a_corpus_of_it_beside_it(run, tmp_path):
    (tmp_path / "few.fasta").write_bytes(b">a\nMKV\n")
    code, _, err = run("verify", tmp_path / "few.fasta")
    advice = f"build a corpus of it with 'proteinlm ingest {tmp_path}/few.fasta -o corpus/'"
    assert (code, err) == (1, f"proteinlm: {tmp_path}/few.fasta: is a file and no corpus; {advice}\n")


def test_export_writes_a_split_to_a_file(run, tiny_corpus, tmp_path):
    code, out, err = run("export", tiny_corpus, "--split", "validation_iid", "-o", tmp_path / "out.fasta.gz")
    num_sequences = open_corpus(tiny_corpus).splits["validation_iid"].num_sequences
    assert (code, out) == (0, "")
    assert f"wrote {num_sequences} sequences, " in err
    assert gzip.decompress((tmp_path / "out.fasta.gz").read_bytes()).count(b">") == num_sequences


def test_export_to_standard_output_is_what_a_file_holds(tiny_corpus, tmp_path):
    export_fasta(open_corpus(tiny_corpus), tmp_path / "out.fasta")
    words = [sys.executable, "-m", "proteinlm", "export", str(tiny_corpus), "-o", "-"]
    done = subprocess.run(words, capture_output=True, check=True)
    assert done.stdout == (tmp_path / "out.fasta").read_bytes()


def test_export_of_an_unknown_split_names_the_known_ones(run, tiny_corpus, tmp_path):
    code, _, err = run("export", tiny_corpus, "--split", "test", "-o", tmp_path / "out.fasta")
    assert code == 1
    assert "has no split 'test'; it has train, validation_iid, validation_ood" in err


@pytest.fixture
def publisher():
    """A server that has one FASTA file."""
    fasta = b">first\nMKTAYIAKQRQISFVKSHFSRQ\n"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/tiny.fasta"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(fasta) if found else 0))
            self.end_headers()
            self.wfile.write(fasta if found else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", fasta
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def manifest(publisher, tmp_path):
    import hashlib

    address, fasta = publisher

    def write(name="tiny.fasta"):
        path = tmp_path / "tiny.toml"
        path.write_text(
            'name = "tiny"\nrelease = "1"\ndescription = "one protein"\nlicence = "CC0 1.0"\nlicence_url = "none"\n'
            'credit = "nobody"\ncitation = "none"\nheader_grammar = ">NAME"\n'
            f'[[files]]\npath = "{name}"\nurl = "{address}/{name}"\nsha256 = "{hashlib.sha256(fasta).hexdigest()}"\n'
        )
        return path

    return write


def test_download_says_what_came_and_how_to_ingest_it(run, manifest, publisher, tmp_path):
    code, out, err = run("download", manifest(), "-o", tmp_path / "out")
    assert (code, out) == (0, "")
    assert (tmp_path / "out" / "tiny.fasta").read_bytes() == publisher[1]
    command = f"proteinlm ingest --manifest {tmp_path / 'out' / 'tiny.toml'} -o corpus/"
    assert err.splitlines()[-1] == f"ingest it with: {command}"
    code, out, err = run("download", manifest(), "-o", tmp_path / "out", "--json")
    assert "was there already" in err
    assert json.loads(out)["files"][0]["num_bytes"] == len(publisher[1])


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_all_that_is_written_has_the_permissions_that_were_asked_for(run, manifest, tmp_path, mask):
    (tmp_path / "source.fasta").write_bytes(b"".join(b">P%d\nMKTAYIAKQRQ%s\n" % (n, b"K" * n) for n in range(40)))
    output = tmp_path / "out"
    before = os.umask(mask)
    try:
        assert run("ingest", tmp_path / "source.fasta", "-o", output / "corpus", "--drop-duplicates")[0] == 0
        assert run("export", output / "corpus", "-o", output / "all.fasta.xz")[0] == 0
        assert run("download", manifest(), "-o", output / "release")[0] == 0
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in [output, *output.rglob("*")]}
    assert found.keys() > {"corpus.json", "train-00000.h5", "screening.tsv", "all.fasta.xz", "tiny.fasta", "tiny.toml"}
    folders = {"out", "corpus", "release"}
    assert found == {name: (0o777 if name in folders else 0o666) & ~mask for name in found}


def test_download_of_what_is_not_there_is_an_error_with_its_address(run, manifest, publisher, tmp_path):
    code, out, err = run("download", manifest("other.fasta"), "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert (
        err == f"proteinlm: {publisher[0]}/other.fasta: the server has no such file; the release may have moved (404)\n"
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_release_to_fetch_is_inspected_with_its_rough_counts(run, project_root):
    code, out, _ = run("inspect", project_root / "data_manifests" / "uniref50.toml")
    assert code == 0
    assert "uniref50.fasta.gz: 60,300,000 records, 17,300,000,000 residues, 12,700,000,000 bytes (approximate" in out
    assert "fetch it with: proteinlm download" in out
