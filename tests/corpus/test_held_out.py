"""What is held out by name is read from lists, families and who is in them, holding no more than that."""

from __future__ import annotations

import codecs
import gzip
import tracemalloc

import numpy as np
import pytest

from proteinlm.corpus.held_out import HeldOutFiles, name_hashes, read_families, read_held_out
from proteinlm.errors import ConfigError, FastaError, ManifestError
from proteinlm.randomness import stream

REGIONS = "pfamseq_acc\tseq_version\tcrc64\tmd5\tpfamA_acc\tseq_start\tseq_end\n"
FAMILIES = (
    'name = "two"\ndescription = "two families"\ndatabase = "Pfam"\nsource = "nowhere"\n'
    '[[families]]\naccession = "PF00002"\nname = "Second"\n[[families]]\naccession = "PF00009"\n'
)


def _write(path, text):
    path.write_text(text)
    return path


def test_a_list_has_one_name_a_line_and_comments(tmp_path):
    path = _write(
        tmp_path / "list.txt", "# a list\r\nP1\r\n  sp|P2|NAME # known by its accession\r\n\r\nP2\r\nUniRef50_X"
    )
    found = read_held_out(HeldOutFiles(names=path))
    assert found.listed.tolist() == name_hashes(["P1", "P2", "UniRef50_X"]).tolist()
    assert (found.files["held_out"].num_bytes, len(found.members), found.families) == (path.stat().st_size, 0, {})


def test_the_mark_of_utf8_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "list.txt").write_bytes(codecs.BOM_UTF8 + b"P1\r\nP2\r\n")
    found = read_held_out(HeldOutFiles(names=tmp_path / "list.txt"))
    assert found.list_names == {"P1", "P2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("P1\nP2 P3\n", r"list\.txt:2: expected one name a line, found 'P2 P3'"), ("# none\n", "names nothing")],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_held_out(HeldOutFiles(names=_write(tmp_path / "list.txt", text)))


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("", lambda protein, family: f"{protein}\t{family}"),
        ("family\tidentifier\n", lambda protein, family: f"{family}\t{protein}"),
        ("accession\tnote\tfamily\n", lambda protein, family: f"{protein}\t\t{family}"),
        (REGIONS, lambda protein, family: f"{protein}\t1\tC\tM\t{family}\t3\t40"),
    ],
    ids=["plain", "named", "named the other way", "Pfam-A.regions"],
)
@pytest.mark.parametrize("families", ["PF00002\nPF00009\n", FAMILIES], ids=["list", "TOML"])
def test_members_of_families_are_found_in_any_form_of_table(tmp_path, head, row, families):
    draw = stream(0, "families")
    pairs = [(f"P{protein}", f"PF{family:05d}") for protein, family in draw.integers(0, 8, size=(40, 2)).tolist()]
    table = tmp_path / "table.tsv.gz"
    table.write_bytes(gzip.compress((head + "".join(f"{row(*pair)}\n" for pair in pairs)).encode()))
    name = "families.toml" if "[[" in families else "families.txt"
    files = HeldOutFiles(families=_write(tmp_path / name, families), membership=table)
    found = read_held_out(files)
    members = {protein for protein, family in pairs if family == "PF00002"}
    assert found.members.tolist() == name_hashes(sorted(members)).tolist()
    assert found.families == {"PF00002": len(members), "PF00009": 0}
    assert found.files["families"].num_bytes == table.stat().st_size
    assert found.files["held_out_families"].num_bytes == files.families.stat().st_size


def test_rows_of_other_families_are_not_held(tmp_path):
    table = tmp_path / "regions.tsv"
    table.write_text(REGIONS + "".join(f"A0A{n:06d}\t1\tC\tM\tPF{n % 1000:05d}\t1\t9\n" for n in range(150_000)))
    files = HeldOutFiles(families=_write(tmp_path / "families.txt", "PF00007"), membership=table)
    read_held_out(files)
    tracemalloc.start()
    try:
        found = read_held_out(files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.members) == 150
    # the rows have 5 MB
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name = ", "nam = "), "nam: no such setting; did you mean 'name'"),
        (("accession = ", "acession = "), r"families\.0\.acession: no such setting; did you mean 'accession'"),
        (("PF00009", "PF00002"), "names family 'PF00002' more than once"),
        (('source = "nowhere"', ""), "source: is required"),
        (("[[families]]", "[[other]]"), "other: no such setting"),
    ],
)
def test_a_faulty_file_of_families_is_refused(tmp_path, change, message):
    path = _write(tmp_path / "families.toml", FAMILIES.replace(*change))
    with pytest.raises(ManifestError, match=message):
        read_families(path, {})


def test_families_and_their_members_need_each_other(tmp_path):
    path = _write(tmp_path / "families.txt", "PF00002")
    with pytest.raises(ConfigError, match="need each other"):
        read_held_out(HeldOutFiles(families=path))
    with pytest.raises(FastaError, match="nowhere: no such file"):
        read_held_out(HeldOutFiles(families=path, membership=tmp_path / "nowhere"))


def test_the_families_of_the_performer_paper_are_shipped(project_root):
    families = read_families(project_root / "data_manifests" / "performer_pfam_families.toml", {})
    assert len(families) == len(set(families)) == 20
    assert {"PF18369", "PF03938", "PF05318"} < set(families)


def test_every_field_of_the_families_is_explained(project_root):
    import dataclasses

    from proteinlm.corpus.held_out import Family, FamilyList

    readme = (project_root / "data_manifests" / "README.md").read_text()
    names = {field.name for kind in (Family, FamilyList) for field in dataclasses.fields(kind)}
    assert [name for name in names | {"performer_pfam_families"} if f"`{name}`" not in readme] == []


def test_names_of_the_families_are_those_of_pfam(project_root, shared_data):
    import tomllib

    text = gzip.decompress((shared_data / "sequences" / "Pfam-A.clans.tsv.gz").read_bytes()).decode()
    name_of = {line.split("\t")[0]: line.split("\t")[3] for line in text.splitlines()}
    table = tomllib.loads((project_root / "data_manifests" / "performer_pfam_families.toml").read_text())
    for family in table["families"]:
        assert family.get("name") == name_of.get(family["accession"])


def test_hashes_of_names_rise_and_come_once():
    hashes = name_hashes(["b", "a", "sp|a|X", "c"])
    assert (np.diff(hashes.astype(object)) > 0).all()
    assert len(hashes) == 3
