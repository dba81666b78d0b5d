"""Manifests say what a release is, and files that are not it are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil

import pytest

from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest_manifest, read_manifest, shipped_manifests
from proteinlm.corpus.manifest import write_manifest
from proteinlm.errors import ManifestError, ProteinLMError
from proteinlm.sequence import encode, read_fasta

RESIDUES = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture
def release(tmp_path):
    """A manifest of one tiny file; call it with replacements to get a faulty one."""
    fasta = f">first\n{RESIDUES}\n".encode()
    (tmp_path / "tiny.fasta").write_bytes(fasta)
    fields = {
        "path": "tiny.fasta",
        "sha256": hashlib.sha256(fasta).hexdigest(),
        "bytes": len(fasta),
        "records": 1,
        "residues": len(RESIDUES),
        "train": 1,
        "more": "",
    }

    def write(**replaced):
        values = fields | replaced
        path = tmp_path / "tiny.toml"
        path.write_text(
            'name = "tiny"\nrelease = "1"\ndescription = "one protein"\nlicence = "CC0 1.0"\nlicence_url = "none"\n'
            'credit = "nobody"\ncitation = "none"\nheader_grammar = ">NAME"\n'
            f'[[files]]\npath = "{values["path"]}"\nsha256 = "{values["sha256"]}"\nbytes = {values["bytes"]}\n'
            f"records = {values['records']}\nresidues = {values['residues']}\n{values['more']}\n"
            f"[splitting]\nvalidation_share = 0.0\n[expected.train]\nsequences = {values['train']}\nresidues = 22\n"
        )
        return path

    return write


def test_files_that_are_the_release_are_ingested_with_its_name(release, tmp_path):
    report = ingest_manifest(release(), tmp_path / "corpus")
    assert report.index.manifest["name"] == "tiny"
    assert report.index.settings["splitting"]["validation_share"] == 0.0


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"sha256": "0" * 64}, "tiny.fasta: sha256 is .* where .* says 0000"),
        ({"bytes": 5}, "tiny.fasta: has 30 bytes where .* says 5"),
        ({"records": 2}, "tiny.fasta: records is 1 where .* says 2"),
        ({"residues": 1000}, "tiny.fasta: residues is 22 where .* says 1,000"),
        ({"train": 7}, "train: sequences is 1 where .* says 7"),
        ({"sha256": "abc"}, "sha256 'abc' is not 64 hex digits"),
        ({"more": "md5 = 'x'"}, r"files\.0\.md5: no such setting"),
        ({"bytes": "'many'"}, r"files\.0\.bytes: "),
        ({"more": "checksum = 'x'"}, r"files\.0\.checksum: no such setting; did you mean 'checksums'\?"),
        ({"train": "1\nsequencs = 2"}, r"expected\.train\.sequencs: no such setting; did you mean 'sequences'\?"),
        ({"more": "url = 'ftp://x/y'"}, "tiny.fasta: 'ftp://x/y' is no address; expected https"),
        ({"more": "checksums = 'https://x/y'"}, "tiny.fasta: has checksums but no url"),
        ({"sha256": ""}, "tiny.fasta: nothing says what it must be; expected sha256, or checksums"),
        ({"path": "../tiny.fasta"}, r"path '\.\./tiny\.fasta' leads away from the manifest"),
        ({"path": "/tiny.fasta"}, "path '/tiny.fasta' leads away from the manifest"),
    ],
    ids=[
        *("sha256", "bytes", "records", "residues", "expected split", "malformed sha256", "unknown field", "type"),
        *("misspelt", "misspelt split", "ftp", "checksums alone", "no digest", "path upwards", "path from the root"),
    ],
)
def test_files_and_fields_that_do_not_fit_are_refused_and_leave_no_output(release, tmp_path, replaced, message):
    with pytest.raises(ManifestError, match=message):
        ingest_manifest(release(**replaced), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_missing_file_is_named(release, tmp_path):
    path = release()
    (tmp_path / "tiny.fasta").unlink()
    with pytest.raises(ManifestError, match=r"tiny\.fasta: no such file, though .*tiny\.toml names it"):
        ingest_manifest(path, tmp_path / "corpus")


def test_other_settings_do_not_ask_for_the_expected_splits(release, tmp_path):
    config = IngestionConfig(splitting=SplittingConfig(validation_share=0.999))
    report = ingest_manifest(release(), tmp_path / "corpus", config=config)
    assert report.index.splits["train"].num_sequences == 0


def test_a_changed_byte_of_the_sample_is_found(sample_manifest, tmp_path):
    shutil.copytree(sample_manifest.parent, tmp_path / "manifests")
    clusters = tmp_path / "manifests" / "sample" / "uniprotkb_sample.clusters30.tsv.xz"
    data = bytearray(clusters.read_bytes())
    data[-1] ^= 1
    clusters.write_bytes(data)
    with pytest.raises(ProteinLMError, match="clusters30"):
        ingest_manifest(tmp_path / "manifests" / sample_manifest.name, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_other_files_of_the_sample_are_what_its_manifest_says(sample_manifest):
    for entry in read_manifest(sample_manifest).other_files:
        path = sample_manifest.parent / entry.path
        data = path.read_bytes()
        records = list(read_fasta([path]))
        found = (
            len(data),
            hashlib.sha256(data).hexdigest(),
            len(records),
            sum(len(record.residues) for record in records),
        )
        assert found == (entry.bytes, entry.sha256, entry.records, entry.residues)


def test_every_file_beside_a_manifest_is_named_in_it(sample_manifest):
    manifest = read_manifest(sample_manifest)
    named = {entry.path for entry in (*manifest.files, *manifest.other_files, manifest.clusters)}
    folder = sample_manifest.parent
    assert named == {str(path.relative_to(folder)) for path in (folder / "sample").iterdir()}


def test_as_many_queries_are_in_the_sample_as_its_documents_say(sample_corpus, sample_manifest):
    (entry,) = read_manifest(sample_manifest).other_files
    queries = [encode(record.residues).tokens.tobytes() for record in read_fasta([sample_manifest.parent / entry.path])]
    held = {}
    for split in sample_corpus.splits:
        sequences = sample_corpus.sequences(split)
        held[split] = {sequences.tokens(number).tobytes() for number in range(len(sequences))}
    everywhere = set().union(*held.values())
    equal = [query for query in queries if query in everywhere]
    found = f"{len(equal)} of the {len(queries)}", f"{len(set(equal) & held['train'])} of {len(set(equal))} distinct"
    assert found == ("37 of the 404", "31 of 36 distinct")
    readme = " ".join((sample_manifest.parent / "README.md").read_text().split())
    assert [(part in entry.purpose, part in readme) for part in found] == [(True, True)] * 2


@pytest.mark.parametrize("name", shipped_manifests())
def test_every_manifest_that_is_shipped_can_be_read(name):
    manifest = read_manifest(shipped_manifests()[name])
    assert manifest.name == name
    for file in manifest.files:
        # either all is exact, or it is said that and when it was counted
        assert (file.sha256 and file.records) or (file.checksums and file.approximate.as_of and file.approximate.source)


@pytest.mark.parametrize("name", shipped_manifests())
def test_a_manifest_that_is_written_reads_as_the_same(name, tmp_path):
    manifest = read_manifest(shipped_manifests()[name])
    write_manifest(tmp_path / "again.toml", manifest)
    assert read_manifest(tmp_path / "again.toml") == manifest


def test_texts_of_any_characters_survive_writing(release, tmp_path):
    manifest = dataclasses.replace(read_manifest(release()), description='"quoted" \\ \t \n \x01 \x7f é \U0001f9ec')
    write_manifest(tmp_path / "again.toml", manifest)
    assert read_manifest(tmp_path / "again.toml") == manifest


def test_every_field_and_every_manifest_is_explained(project_root):
    from proteinlm.corpus.manifest import Approximation, Manifest, ManifestClusters, ManifestFile

    readme = (project_root / "data_manifests" / "README.md").read_text()
    kinds = (Manifest, ManifestFile, ManifestClusters, Approximation)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)} | set(shipped_manifests())
    assert [name for name in sorted(names) if not re.search(rf"[`.[]{name}[`\].]", readme)] == []
