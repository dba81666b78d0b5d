"""Work that breaks off goes on, and the corpus is the one that it would have been."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from proteinlm import config as configuration
from proteinlm.corpus import Effort, IngestionConfig, ingest, layout, open_corpus, unfinished, verify_corpus
from proteinlm.corpus.work_folder import work_folder, work_folder_of
from proteinlm.errors import FastaError, OutputError, ProteinLMError
from tests.corpus.interrupted import ingested

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def _proteins(seed, amount):
    """Return proteins of which some repeat others, are empty, long, odd or like nucleotides."""
    draw = random.Random(seed)
    found = []
    for number in range(amount):
        kind = draw.random()
        if found and kind < 0.25:
            name, residues = found[draw.randrange(len(found))]
            found.append((name if kind < 0.05 else f"again{number}", residues))
            continue
        length = 0 if kind < 0.28 else 1500 if kind < 0.3 else draw.randrange(5, 90)
        letters = "ACGT" if kind > 0.97 else LETTERS + "X*j"
        found.append((f"sp|P{number:05d}|NAME", "".join(draw.choices(letters, k=length))))
    return found


@pytest.fixture(scope="module")
def about(tmp_path_factory):
    """Two sources, clusters, and settings with which every stage has something to do."""
    folder = tmp_path_factory.mktemp("inputs")
    inputs = []
    for seed in (1, 2):
        path = folder / f"proteins_{seed}.fasta"
        path.write_text("".join(f">{name}\n{residues}\n" for name, residues in _proteins(seed, 400)))
        inputs.append(str(path))
    clusters = folder / "clusters.tsv"
    clusters.write_text("".join(f"P{number // 4 * 4:05d}\tP{number:05d}\n" for number in range(0, 400, 2)))
    settings = {
        "reading": {},
        "screening": {"duplicates": "drop"},
        "splitting": {"validation_share": 0.1, "ood_share": 0.2},
        "shard_residues": 1000,
    }
    return {"inputs": inputs, "clusters": str(clusters), "settings": settings, "jobs": 2, "block_bytes": 1500}


@pytest.fixture(scope="module")
def uninterrupted(about, project_root, tmp_path_factory):
    """The corpus as it should be, and how often a process that builds it touches the file system."""
    output = tmp_path_factory.mktemp("whole") / "corpus"
    return output, ingested(project_root, output, about)


def _is_same(first, second):
    names = sorted(os.listdir(first))
    return names == sorted(os.listdir(second)) and filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


def _survives(project_root, about, uninterrupted, output, seed):
    whole, num_touched = uninterrupted
    draw = random.Random(seed)
    about = about | {"jobs": 1 + seed % 3}
    for _ in range(draw.randrange(1, 4)):
        if output.exists():
            break
        ingested(project_root, output, about, kill_at=draw.randrange(1, num_touched))
    if not output.exists():
        ingested(project_root, output, about)
    assert _is_same(whole, output)
    # a process that dies between its last two steps leaves what the next one removes
    with pytest.raises(OutputError, match="already exists"):
        ingest(about["inputs"], output)
    assert os.listdir(output.parent) == ["corpus"]


def test_the_inputs_of_these_tests_reach_every_stage(uninterrupted):
    corpus = open_corpus(uninterrupted[0])
    index = corpus.index
    assert all(len(split.shards) > 1 for split in index.splits.values())
    assert index.screening.dropped["duplicate sequence"] > 100
    assert index.screening.noted.keys() == {"duplicate identifier", "looks like nucleotides"}
    assert uninterrupted[1] > 300
    verify_corpus(corpus)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_ingestion_goes_on_to_the_same_bytes(project_root, about, uninterrupted, tmp_path, seed):
    _survives(project_root, about, uninterrupted, tmp_path / "corpus", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_killed_at_many_moments_it_goes_on_to_the_same_bytes(project_root, about, uninterrupted, tmp_path, seed):
    _survives(project_root, about, uninterrupted, tmp_path / "corpus", seed)


def _config(about):
    return configuration.parse(IngestionConfig, about["settings"], source="test")


def _ingest(about, output, *, config=None, inputs=None, **effort):
    return ingest(
        inputs or about["inputs"],
        output,
        config=config or _config(about),
        clusters=Path(about["clusters"]),
        effort=Effort(**effort),
    )


@pytest.mark.parametrize(("jobs", "block_bytes"), [(1, 1500), (2, 1500), (4, 700), (1, 100), (2, 1 << 20)], ids=str)
def test_neither_threads_nor_the_size_of_blocks_change_a_byte(about, uninterrupted, tmp_path, jobs, block_bytes):
    _ingest(about, tmp_path / "corpus", jobs=jobs, block_bytes=block_bytes)
    assert _is_same(uninterrupted[0], tmp_path / "corpus")


@pytest.fixture(scope="module")
def killed(about, uninterrupted, project_root, tmp_path_factory):
    """What a process leaves that is killed when about half is done."""
    output = tmp_path_factory.mktemp("killed") / "corpus"
    assert not ingested(project_root, output, about, kill_at=uninterrupted[1] // 3)
    assert work_folder_of(output).state.exists()
    return work_folder_of(output).path


@pytest.fixture
def broken_off(killed, tmp_path):
    """An output of which about half is done."""
    output = tmp_path / "corpus"
    shutil.copytree(killed, work_folder_of(output).path)
    return output


def test_what_broke_off_is_neither_overwritten_nor_gone_on_with_unasked(about, broken_off):
    with pytest.raises(OutputError, match=r"records read, .* shards written\); go on .* --resume, .* --restart"):
        _ingest(about, broken_off)
    assert "records read" in unfinished(broken_off)


def test_what_broke_off_is_thrown_away_when_asked(about, broken_off, uninterrupted):
    _ingest(about, broken_off, restart=True)
    assert _is_same(uninterrupted[0], broken_off)
    assert unfinished(broken_off) is None


def test_going_on_where_nothing_lies_begins(about, uninterrupted, tmp_path):
    _ingest(about, tmp_path / "corpus", resume=True)
    assert _is_same(uninterrupted[0], tmp_path / "corpus")


def test_other_settings_are_refused_by_name_with_both_values(about, broken_off, uninterrupted):
    other = replace(_config(about), shard_residues=2000)
    with pytest.raises(OutputError, match=r"settings\.shard_residues was 1000 and is now 2000"):
        _ingest(about, broken_off, config=other, resume=True)
    with pytest.raises(OutputError, match=r"inputs was \['proteins_1.fasta', 'proteins_2.fasta'\] and is now"):
        _ingest(about, broken_off, inputs=about["inputs"][::-1], resume=True)
    _ingest(about, broken_off, resume=True)
    assert _is_same(uninterrupted[0], broken_off)


@pytest.fixture
def own_inputs(about, tmp_path):
    """The same as ``about`` with copies of the sources that a test may change."""
    (tmp_path / "inputs").mkdir()
    return about | {"inputs": [shutil.copy(path, tmp_path / "inputs") for path in about["inputs"]]}


@pytest.mark.parametrize("share", [3, 1], ids=["in the first source", "in the second, the first changed"])
def test_a_source_that_has_changed_is_refused_and_what_is_done_kept(
    own_inputs, uninterrupted, project_root, tmp_path, share
):
    output = tmp_path / "corpus"
    assert not ingested(project_root, output, own_inputs, kill_at=uninterrupted[1] // 4 * (2 if share == 1 else 1))
    source = Path(own_inputs["inputs"][0])
    before = source.read_bytes()
    source.write_bytes(before.replace(b"\nM", b"\nV", 1) if b"\nM" in before else b"A" + before)
    with pytest.raises(FastaError, match=r"proteins_1\.fasta: has changed since the work broke off"):
        _ingest(own_inputs, output, resume=True)
    source.write_bytes(before)
    _ingest(own_inputs, output, resume=True)
    assert _is_same(uninterrupted[0], output)


@pytest.mark.parametrize(
    "pattern",
    [
        *("corpus/*.h5", "open/*.tokens", "open/*.offsets", "shards.jsonl", "state.json", "corpus/screening.tsv"),
        "digests/*.u64",
    ],
)
def test_damage_to_what_is_done_is_found(about, broken_off, pattern):
    folder = work_folder_of(broken_off)
    state = json.loads(folder.state.read_text())
    # a shard that began after the state is not gone on with
    named = {layout.shard_file(shard["split"], shard["number"]) for shard in state["open_shards"]}
    paths = [path for path in folder.path.glob(pattern) if path.parent != folder.open_shards or path.stem in named]
    path = max(paths, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with pytest.raises(OutputError, match=r"begin anew with --restart"):
        _ingest(about, broken_off, resume=True, jobs=3)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    _ingest(about, broken_off, restart=True)


def test_a_pipe_is_not_gone_on_with_and_one_that_was_read_to_its_end_is_left_alone(
    own_inputs, uninterrupted, project_root, tmp_path
):
    source = Path(own_inputs["inputs"][0])
    for output, kill_at in ((tmp_path / "first", 4), (tmp_path / "second", 2)):
        assert not ingested(project_root, output, own_inputs, kill_at=uninterrupted[1] // kill_at)
    source.unlink()
    # nobody writes to it: whoever opens it waits for ever
    os.mkfifo(source)
    with pytest.raises(OutputError, match=r"proteins_1\.fasta cannot be read again from its beginning"):
        _ingest(own_inputs, tmp_path / "first", resume=True)
    assert unfinished(tmp_path / "first") is not None
    _ingest(own_inputs, tmp_path / "second", resume=True, jobs=1)
    assert _is_same(uninterrupted[0], tmp_path / "second")


def test_more_files_than_can_be_told_apart_are_refused_before_any_is_read(about, tmp_path):
    with pytest.raises(FastaError, match="65,537 files; expected at most 65,536"):
        _ingest(about, tmp_path / "corpus", inputs=["missing.fasta"] * 65537)
    assert not os.listdir(tmp_path)


def test_two_at_once_into_one_output_are_one_too_many(about, tmp_path):
    with work_folder(tmp_path / "corpus") as folder:
        with pytest.raises(OutputError, match=rf"is being ingested by process {os.getpid()} on "):
            _ingest(about, tmp_path / "corpus", resume=True)
        folder.corpus.mkdir()
    assert os.listdir(tmp_path) == ["corpus"]


def test_a_folder_that_may_not_be_written_is_an_error(about, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("needs a user who may not write everywhere")
    with pytest.raises(OutputError, match=r"cannot be made \(Permission denied\)"):
        _ingest(about, folder / "corpus")


@contextmanager
def _small_disk(folder, size):
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("room", "jobs"),
    [
        *(("200k", 1), ("400k", 2), ("700k", 3)),
        *(pytest.param(room, jobs, marks=pytest.mark.slow) for room, jobs in [("200k", 2), ("400k", 3), ("700k", 1)]),
        *(pytest.param(room, jobs, marks=pytest.mark.slow) for room, jobs in [("200k", 3), ("400k", 1), ("700k", 2)]),
    ],
)
def test_after_a_full_disk_work_goes_on_when_there_is_room(about, uninterrupted, tmp_path, jobs, room):
    with _small_disk(tmp_path / "disk", room) as disk:
        output = disk / "corpus"
        with pytest.raises(ProteinLMError, match="No space left on device") as caught:
            _ingest(about, output, jobs=jobs, block_bytes=1500)
        is_resumable = work_folder_of(output).state.exists()
        assert ("go on with it by --resume" in str(caught.value)) == is_resumable
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        _ingest(about, output, jobs=jobs, resume=True)
        assert _is_same(uninterrupted[0], output)
        assert os.listdir(disk) == ["corpus"]
