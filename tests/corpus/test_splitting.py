"""Splits depend on the protein, its cluster and the seed alone, and do not leak."""

from __future__ import annotations

import json
import lzma
import math
from collections import Counter

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.corpus.held_out import HeldOutFiles
from proteinlm.corpus.layout import SPLITS
from proteinlm.corpus.splitting import SplittingConfig, prepare_splitter
from proteinlm.errors import ConfigError
from proteinlm.randomness import stream, stream_key
from proteinlm.sequence import FastaRecord, accession, read_fasta
from proteinlm.sequence.record_blocks import ReadingPosition, block_of, blocks_of_records

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def _record(identifier, residues="MKTAYIAKQR"):
    return FastaRecord(identifier, identifier, residues.encode(), "test.fasta", 1)


def _block(records):
    return block_of(records, ReadingPosition(0, 0, 1, 0, 0))


def _splits(splitter, records):
    """Return {identifier: (split, cluster)}."""
    splits, clusters = splitter.splits_of(_block(records), np.ones(len(records), dtype=bool))
    numbers = [None] * len(records) if clusters is None else clusters.tolist()
    names = [record.identifier for record in records]
    return {name: (SPLITS[split], number) for name, split, number in zip(names, splits.tolist(), numbers, strict=True)}


def _hash_below(text, seed, split, share):
    return xxhash.xxh3_64_intdigest(text, stream_key(seed, "split", split)) < share * 2.0**64


def _plain_split(record, representative, config):
    """Return the split of a protein, computed one by one."""
    if representative and _hash_below(representative.encode(), config.seed, "validation_ood", config.ood_share):
        return "validation_ood"
    digest = xxhash.xxh3_128_digest(_block([record]).tokens.tobytes())
    is_validation = _hash_below(digest, config.seed, "validation_iid", config.validation_share)
    return "validation_iid" if is_validation else "train"


def _write_clusters(folder, cluster_of):
    path = folder / "clusters.tsv"
    path.write_text("".join(f"{cluster}\t{member}\n" for member, cluster in cluster_of.items()))
    return path


@pytest.fixture
def world(tmp_path):
    """Records, most of them in clusters, some equal in sequence; and the table of the clusters."""
    draw = stream(0, "world")
    records = []
    for number in range(600):
        residues = "".join(LETTERS[letter] for letter in draw.integers(0, 20, size=draw.integers(5, 40)))
        name = [f"sp|P{number:05d}|N{number}", f"tr|A{number:05d}|N{number}", f"UniRef50_U{number}", f"plain{number}"]
        records.append(_record(name[number % 4], residues))
    records += [_record(f"copy{number}", records[number].residues.decode()) for number in range(0, 600, 7)]
    clustered = [record for record in records if draw.random() < 0.9]
    cluster_of = {accession(record.identifier): f"R{draw.integers(0, 80)}" for record in clustered}
    return records, cluster_of, _write_clusters(tmp_path, cluster_of)


@pytest.mark.parametrize("seed", [0, 3])
def test_splits_are_those_computed_one_by_one(world, tmp_path, seed):
    records, cluster_of, table = world
    config = SplittingConfig(validation_share=0.2, ood_share=0.3, seed=seed)
    found = _splits(prepare_splitter(config, tmp_path / "arrays", clusters=table), records)
    expected = {
        record.identifier: _plain_split(record, cluster_of.get(accession(record.identifier)), config)
        for record in records
    }
    assert {name: split for name, (split, _) in found.items()} == expected
    assert set(expected.values()) == set(SPLITS)


def test_without_clusters_nothing_is_held_out_as_ood_and_no_cluster_is_known(world, tmp_path):
    records, _, _ = world
    splitter = prepare_splitter(SplittingConfig(validation_share=0.2, ood_share=0.9), tmp_path)
    assert splitter.splits == ("train", "validation_iid")
    assert splitter.clusters_entry() is splitter.held_out_entry() is None
    assert set(_splits(splitter, records).values()) == {("train", None), ("validation_iid", None)}


def test_only_what_is_kept_is_split(world, tmp_path):
    records, _, table = world
    splitter = prepare_splitter(SplittingConfig(), tmp_path / "arrays", clusters=table)
    all_splits, all_clusters = splitter.splits_of(_block(records), np.ones(len(records), dtype=bool))
    kept = np.arange(len(records)) % 3 == 0
    splits, clusters = splitter.splits_of(_block(records), kept)
    assert splits.tolist() == all_splits[kept].tolist()
    assert clusters.tolist() == all_clusters[kept].tolist()
    assert (splits.dtype, clusters.dtype) == (np.uint8, np.uint64)
    splits, clusters = splitter.splits_of(_block(records), np.zeros(len(records), dtype=bool))
    assert len(splits) == len(clusters) == 0


def test_a_protein_in_no_cluster_has_one_of_its_own_and_is_counted(world, tmp_path):
    records, cluster_of, table = world
    config = SplittingConfig(validation_share=0, ood_share=0.999999)
    splitter = prepare_splitter(config, tmp_path / "arrays", clusters=table)
    found = _splits(splitter, records)
    for record in records:
        name = accession(record.identifier)
        expected = xxhash.xxh3_64_intdigest(
            cluster_of.get(name, name).encode(), stream_key(0, "split", "validation_ood")
        )
        split = "validation_ood" if name in cluster_of else "train"
        assert found[record.identifier] == (split, expected)
    assert splitter.clusters_entry().num_unclustered == sum(
        accession(record.identifier) not in cluster_of for record in records
    )


@pytest.mark.parametrize("largest_clusters", [0, 9])
@pytest.mark.parametrize("spelling", ["R{}", "sp|R{}|NAME"])
def test_a_representative_is_in_its_cluster_though_no_row_says_so(tmp_path, spelling, largest_clusters):
    pairs = [(number, f"M{number}_{member}") for number in range(60) for member in range(1 + number % 3)]
    path = tmp_path / "clusters.tsv"
    path.write_text("".join(f"{spelling.format(number)}\t{member}\n" for number, member in pairs))
    config = SplittingConfig(validation_share=0.2, ood_share=0.3, largest_clusters=largest_clusters)
    splitter = prepare_splitter(config, tmp_path / "arrays", clusters=path)
    records = [_record(f"tr|R{number}|OTHER", LETTERS[: number % 19 + 1]) for number in range(60)]
    found = _splits(splitter, records + [_record(member) for _, member in pairs])
    held_out = {cluster for split, cluster in found.values() if split == "validation_ood"}
    assert len(held_out) == 9 if largest_clusters else held_out
    for number, member in pairs:
        representative = found[f"tr|R{number}|OTHER"]
        assert representative[1] == found[member][1]
        assert (representative[0] == "validation_ood") == (representative[1] in held_out)
    assert splitter.clusters_entry().num_unclustered == 0


@pytest.mark.parametrize("validation_by", ["sequence", "identifier", "cluster"])
def test_a_protein_keeps_its_split_when_others_come_and_go(world, tmp_path, validation_by):
    records, _, table = world
    config = SplittingConfig(validation_share=0.3, ood_share=0.2, validation_by=validation_by)
    whole = _splits(prepare_splitter(config, tmp_path / "arrays", clusters=table), records)
    splitter = prepare_splitter(config, tmp_path / "others", clusters=table)
    parts = [_splits(splitter, part) for part in (records[::-2], records[::2][:100])]
    assert all(part.items() <= whole.items() for part in parts)
    assert {split for split, _ in whole.values()} == set(SPLITS)


@pytest.mark.parametrize(
    ("validation_by", "together"),
    [
        ("sequence", lambda record, cluster: record.residues),
        ("identifier", lambda record, cluster: accession(record.identifier)),
        ("cluster", lambda record, cluster: cluster),
    ],
)
def test_what_the_validation_split_is_drawn_by_stays_together(world, tmp_path, validation_by, together):
    records, _, table = world
    config = SplittingConfig(validation_share=0.3, ood_share=0, validation_by=validation_by)
    found = _splits(prepare_splitter(config, tmp_path / "arrays", clusters=table), records)
    splits = {}
    for record in records:
        split, cluster = found[record.identifier]
        splits.setdefault(together(record, cluster), set()).add(split)
    assert {len(one) for one in splits.values()} == {1}
    assert set.union(*splits.values()) == {"train", "validation_iid"}


def test_an_entry_that_is_renamed_keeps_its_split_by_identifier(tmp_path):
    splitter = prepare_splitter(SplittingConfig(validation_share=0.5, validation_by="identifier"), tmp_path)
    before = _splits(splitter, [_record(f"tr|P{number}|OLD", "MKV") for number in range(50)])
    after = _splits(splitter, [_record(f"sp|P{number}|NEW", "MKVL") for number in range(50)])
    assert list(before.values()) == list(after.values())
    assert len(set(before.values())) == 2


@pytest.mark.parametrize(("split", "share"), [("validation_ood", 0.2), ("validation_iid", 0.8 * 0.1)])
def test_shares_are_as_asked(tmp_path, split, share):
    num = 4_000
    records = [
        _record(f"P{number}", f"M{number}".translate(str.maketrans("0123456789", LETTERS[:10])))
        for number in range(num)
    ]
    table = _write_clusters(tmp_path, {record.identifier: record.identifier for record in records})
    config = SplittingConfig(validation_share=0.1, ood_share=0.2, seed=3)
    splits = _splits(prepare_splitter(config, tmp_path / "arrays", clusters=table), records)
    found = sum(one == split for one, _ in splits.values())
    # binomial: five standard deviations
    assert abs(found - num * share) < 5 * math.sqrt(num * share * (1 - share))


def test_the_largest_clusters_are_held_out_and_no_others(world, tmp_path):
    records, cluster_of, table = world
    sizes = Counter(cluster_of.values())
    largest = sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster))[:7]
    config = SplittingConfig(ood_share=0.9, largest_clusters=7)
    found = _splits(prepare_splitter(config, tmp_path / "arrays", clusters=table), records)
    held_out = {name for name, (split, _) in found.items() if split == "validation_ood"}
    assert held_out == {
        record.identifier for record in records if cluster_of.get(accession(record.identifier)) in largest
    }


def test_identifiers_of_uniref_are_clusters_of_their_own(world, tmp_path):
    records, _, _ = world
    config = SplittingConfig(validation_share=0, ood_share=0.5, cluster_source="header")
    splitter = prepare_splitter(config, tmp_path)
    found = _splits(splitter, records)
    for name, (split, _) in found.items():
        is_held_out = name.startswith("UniRef50_") and _hash_below(name.encode(), 0, "validation_ood", 0.5)
        assert split == ("validation_ood" if is_held_out else "train")
    entry = splitter.clusters_entry()
    assert (entry.num_clusters, entry.num_unclustered) == (150, len(records) - 150)


def _held_out(folder, **texts):
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name}.txt"
        paths[name].write_text(text)
    return HeldOutFiles(**paths)


def test_listed_proteins_and_members_of_families_are_held_out_under_any_of_their_names(tmp_path):
    records = [_record(name) for name in ("sp|P1|A", "tr|P2|B", "P3", "UniRef50_P4", "sp|P5|C", "sp|P6|D", "sp|P7|E")]
    files = _held_out(
        tmp_path,
        names="# ours\nP1\ntr|P2|OLD_NAME  # renamed\n\nUniRef50_P4\nP999\n",
        families="PF00001\n",
        membership="P5\tPF00001\nP6\tPF00002\nP1\tPF00001\nsp|P3|X\tPF00001\nP5\tPF00001\n",
    )
    splitter = prepare_splitter(SplittingConfig(validation_share=0), tmp_path / "arrays", held_out=files)
    found = _splits(splitter, records)
    held_out = [name for name, (split, _) in found.items() if split == "validation_ood"]
    assert held_out == ["sp|P1|A", "tr|P2|B", "P3", "UniRef50_P4", "sp|P5|C"]
    entry = splitter.held_out_entry()
    assert (entry.num_names, entry.num_unmatched) == (4, 1)
    assert (entry.num_listed, entry.num_of_families, entry.num_relatives) == (3, 2, 0)
    assert entry.families == {"PF00001": 3}
    assert set(entry.files) == {"held_out", "held_out_families", "families"}


def test_relatives_of_a_held_out_protein_go_with_it(world, tmp_path):
    records, cluster_of, table = world
    listed = [accession(record.identifier) for record in records[:200:40]]
    member = accession(records[300].identifier)
    files = _held_out(tmp_path, names="\n".join(listed), families="F", membership=f"{member}\tF\n")
    config = SplittingConfig(validation_share=0.2, ood_share=0)
    splitter = prepare_splitter(config, tmp_path / "arrays", clusters=table, held_out=files)
    found = _splits(splitter, records)
    related = {cluster_of[name] for name in [*listed, member] if name in cluster_of}
    for record in records:
        name = accession(record.identifier)
        is_held_out = name in {*listed, member} or cluster_of.get(name) in related
        assert (found[record.identifier][0] == "validation_ood") == is_held_out
    entry = splitter.held_out_entry()
    num_held_out = sum(split == "validation_ood" for split, _ in found.values())
    assert entry.num_listed + entry.num_of_families + entry.num_relatives == num_held_out
    assert entry.num_relatives > 0


def test_a_listed_member_takes_the_records_that_stand_for_its_cluster_along(tmp_path):
    # the corpus holds clusters, the list names a member that is in none of its records
    table = tmp_path / "levels.tsv"
    table.write_text("uniref50\tmember\nUniRef50_A\tA\nUniRef50_A\tB\nUniRef50_C\tC\n")
    files = _held_out(tmp_path, names="B\n")
    config = SplittingConfig(validation_share=0, ood_share=0)
    splitter = prepare_splitter(config, tmp_path / "arrays", clusters=table, held_out=files)
    found = _splits(splitter, [_record("UniRef50_A"), _record("UniRef50_C")])
    assert [split for split, _ in found.values()] == ["validation_ood", "train"]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()),
        min_size=1,
        max_size=40,
        unique_by=lambda row: row[0],
    )
)
def test_no_cluster_is_held_out_in_part(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("leaks")
    table = _write_clusters(folder, {f"P{member}": f"R{cluster}" for member, cluster, _ in rows})
    listed = [f"P{member}" for member, _, is_listed in rows if is_listed] or ["P99"]
    files = _held_out(folder, names="\n".join(listed))
    config = SplittingConfig(validation_share=0.3, ood_share=0.2)
    splitter = prepare_splitter(config, folder / "arrays", clusters=table, held_out=files)
    found = _splits(splitter, [_record(f"P{number}", "MKV" + LETTERS[number]) for number in range(10)])
    held_out = {cluster for split, cluster in found.values() if split == "validation_ood"}
    assert not held_out & {cluster for split, cluster in found.values() if split != "validation_ood"}


def test_counts_go_on_after_an_interruption(world, tmp_path):
    records, _, table = world
    files = _held_out(
        tmp_path, names="\n".join(accession(record.identifier) for record in records[::50]) + "\nmissing\n"
    )
    config = SplittingConfig(validation_share=0.1)

    def prepared():
        return prepare_splitter(config, tmp_path / "arrays", clusters=table, held_out=files)

    whole, first, second = prepared(), prepared(), prepared()
    _splits(whole, records)
    _splits(first, records[:321])
    second.restore(json.loads(json.dumps(first.state())))
    _splits(second, records[321:])
    assert second.state() == whole.state()
    assert second.held_out_entry() == whole.held_out_entry()
    assert second.clusters_entry() == whole.clusters_entry()
    assert second.held_out_entry().num_unmatched == 1


def test_splits_of_the_sample_are_those_computed_one_by_one(sample, tmp_path):
    path = sample / "uniprotkb_sample.clusters30.tsv.xz"
    rows = lzma.decompress(path.read_bytes()).decode().splitlines()[1:]
    representatives = dict(row.split("\t")[::-1] for row in rows)
    config = SplittingConfig(validation_share=0.025)
    splitter = prepare_splitter(config, tmp_path / "arrays", clusters=path)
    records = list(read_fasta([sample / "uniprotkb_sample.fasta.xz"]))[:3000]
    found = [
        SPLITS[split]
        for block in blocks_of_records(records, source=0)
        for split in splitter.splits_of(block, np.ones(len(block), dtype=bool))[0].tolist()
    ]
    assert found == [_plain_split(record, representatives[accession(record.identifier)], config) for record in records]


@pytest.mark.parametrize(
    ("settings", "names", "message"),
    [
        ({"largest_clusters": 2}, (), "largest_clusters needs a table of clusters"),
        ({"cluster_columns": ("a", "b")}, (), "cluster_columns needs a table of clusters"),
        ({"validation_by": "cluster"}, (), "validation_by cluster needs a table of clusters"),
        ({"cluster_source": "header"}, ("clusters",), "has no use, for cluster_source is header"),
        ({}, ("families",), "held_out_families and families, .* need each other"),
        ({}, ("membership",), "held_out_families and families, .* need each other"),
    ],
)
def test_what_cannot_go_together_is_refused(tmp_path, settings, names, message):
    path = tmp_path / "table.tsv"
    path.write_text("A\tB\n")
    files = HeldOutFiles(**{name: path for name in names if name != "clusters"})
    clusters = path if "clusters" in names else None
    with pytest.raises(ConfigError, match=message):
        prepare_splitter(SplittingConfig(**settings), tmp_path / "arrays", clusters=clusters, held_out=files)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"largest_clusters": -1}, "largest_clusters is -1; expected 0 or more"),
        ({"cluster_columns": ("a",)}, "cluster_columns is a; expected two names"),
        ({"cluster_columns": ("a", "a")}, "cluster_columns is a,a; expected two names"),
        ({"cluster_source": "header", "largest_clusters": 3}, "which knows neither sizes of clusters nor columns"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SplittingConfig(**settings)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="expected a share"):
        SplittingConfig(validation_share=share)
