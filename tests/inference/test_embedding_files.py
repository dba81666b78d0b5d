"""Embeddings are written as the programs that read them expect."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.errors import ConfigError, OutputError
from proteinlm.inference.embedding_files import dataset_name, file_name, output_of, unique_names, write_files
from proteinlm.inference.partial_results import Column, Entry, PartialResults

IDENTIFIERS = ["P2", "P1", "a/b", "P2", "."]
RESIDUES = [b"MKVL", b"A", b"WW", b"MKV", b"GGGGG"]
NAMES = ["P2", "P1", "a%2Fb", "P2#2", "%2E"]
WIDTH = 6


def array_of(place: int, column: Column) -> numpy.ndarray:
    rows = numpy.arange(len(RESIDUES[place]) * WIDTH, dtype=numpy.float32).reshape(-1, WIDTH)
    rows = rows + 1000 * place + 100_000 * column.layer
    return {"per_tok": rows, "mean": rows.mean(axis=0), "bos": -rows[0]}[column.kind]


def results_of(folder: Path, *columns: Column) -> PartialResults:
    results = PartialResults(folder / "partial", columns, dtype="float32", width=WIDTH, settings={}, resume=False)
    places = range(len(IDENTIFIERS))
    entries = [Entry(IDENTIFIERS[place], place, len(RESIDUES[place]), "0") for place in places]
    arrays = {column: [array_of(place, column) for place in places] for column in columns}
    results.append(entries, b"".join(RESIDUES), arrays)
    return results


MEAN, PER_TOK = Column("mean", 2), Column("per_tok", 2)


def write(folder: Path, path: str, *columns: Column, layout: str = "uniprot") -> list[str]:
    output = output_of(f"{folder}/{path}", layout)  # type: ignore[arg-type]
    with closing(results_of(folder, *columns)) as results:
        written = write_files(output, results, {"step": 5})
    return [file.path.name for file in written]


@pytest.mark.parametrize("column", [MEAN, PER_TOK], ids=["mean", "per_tok"])
def test_uniprot_layout_is_one_dataset_a_protein_in_input_order(tmp_path: Path, column: Column):
    write(tmp_path, "out.h5", column)
    with h5py.File(tmp_path / "out.h5") as file:
        found = [(name, dataset[:]) for name, dataset in file.items()]
    assert [name for name, _ in found] == NAMES
    for place, (_, array) in enumerate(found):
        numpy.testing.assert_array_equal(array, array_of(place, column))


def test_file_says_which_kind_layer_and_step_it_holds(tmp_path: Path):
    write(tmp_path, "out.h5", PER_TOK)
    with h5py.File(tmp_path / "out.h5") as file:
        assert {name: file.attrs[name] for name in ("kind", "layer", "step")} == {
            "kind": "per_tok",
            "layer": 2,
            "step": 5,
        }


def test_renamed_dataset_keeps_its_identifier(tmp_path: Path):
    write(tmp_path, "out.h5", MEAN)
    with h5py.File(tmp_path / "out.h5") as file:
        assert [dataset.attrs.get("identifier", name) for name, dataset in file.items()] == IDENTIFIERS


@pytest.mark.parametrize("column", [MEAN, PER_TOK], ids=["mean", "per_tok"])
def test_flat_layout_reads_as_scikit_bio_reads_it(tmp_path: Path, column: Column):
    write(tmp_path, "out.h5", column, layout="flat")
    with h5py.File(tmp_path / "out.h5") as file:
        start, letters = 0, 0
        for place, (end, last) in enumerate(zip(file["embedding_ptr"][:], file["idptr"][:], strict=True)):
            assert file["id"][letters:last].tobytes() == RESIDUES[place]
            rows = array_of(place, column)
            numpy.testing.assert_array_equal(file["embedding"][start:end], rows.reshape(-1, WIDTH))
            start, letters = end, last
        assert start == len(file["embedding"])


def test_flat_layout_names_proteins_as_the_input_does(tmp_path: Path):
    write(tmp_path, "out.h5", MEAN, layout="flat")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["identifiers"].asstr()[:].tolist() == IDENTIFIERS


def test_flat_layout_has_its_rows_under_both_names_once(tmp_path: Path):
    write(tmp_path, "out.h5", MEAN, layout="flat")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["embeddings"] == file["embedding"]


def test_npz_holds_one_array_a_protein(tmp_path: Path):
    write(tmp_path, "out.npz", PER_TOK)
    with numpy.load(tmp_path / "out.npz") as file:
        assert file.files == NAMES
        for place, name in enumerate(NAMES):
            numpy.testing.assert_array_equal(file[name], array_of(place, PER_TOK))


def test_flat_npz_holds_what_the_flat_hdf5_does(tmp_path: Path):
    write(tmp_path, "out.npz", PER_TOK, layout="flat")
    with numpy.load(tmp_path / "out.npz") as file:
        assert file["identifiers"].tolist() == IDENTIFIERS
        assert file["idptr"].tolist() == file["embedding_ptr"].tolist() == [4, 5, 7, 10, 15]
        assert file["id"].tobytes() == b"".join(RESIDUES)
        assert file["embedding"].shape == (15, WIDTH)


def test_pt_folder_holds_what_esm_extract_writes(tmp_path: Path):
    columns = [Column(kind, layer) for kind in ("mean", "per_tok", "bos") for layer in (0, 2)]  # type: ignore[arg-type]
    write(tmp_path, "pt/", *columns)
    content = torch.load(tmp_path / "pt" / "P2.pt", weights_only=True)
    assert content["label"] == "P2"
    keys = {"mean": "mean_representations", "per_tok": "representations", "bos": "bos_representations"}
    for column in columns:
        found = content[keys[column.kind]][column.layer]
        numpy.testing.assert_array_equal(found, array_of(0, column))


def test_pt_folder_has_one_file_a_protein(tmp_path: Path):
    write(tmp_path, "pt/", MEAN)
    assert {path.name for path in (tmp_path / "pt").iterdir()} == {
        *("P2.pt", "P1.pt", "a%2Fb.pt", "P2#2.pt", "%2E.pt"),
    }


def test_pt_file_holds_no_more_than_its_own_protein(tmp_path: Path):
    write(tmp_path, "pt/", PER_TOK)
    content = torch.load(tmp_path / "pt" / "P1.pt", weights_only=True)
    assert content["representations"][2].untyped_storage().nbytes() == 1 * WIDTH * 4


def test_pt_file_holds_the_dicts_of_all_proteins_by_identifier(tmp_path: Path):
    assert write(tmp_path, "out.pt", MEAN, PER_TOK) == ["out.pt"]
    contents = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(contents) == ["P2", "P1", "a/b", "P2#2", "."]
    assert [content["label"] for content in contents.values()] == IDENTIFIERS
    for place, content in enumerate(contents.values()):
        numpy.testing.assert_array_equal(content["representations"][2], array_of(place, PER_TOK))
        numpy.testing.assert_array_equal(content["mean_representations"][2], array_of(place, MEAN))


@pytest.mark.parametrize("path", ["out.h5", "out.npz", "out.pt", "pt/"])
@pytest.mark.parametrize("layout", ["uniprot", "flat"])
def test_same_results_make_the_same_bytes(tmp_path: Path, path: str, layout: str):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, path, PER_TOK, layout=layout)
    first = sorted(file for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert all(
        file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes() for file in first
    )


def test_one_kind_takes_the_name_as_typed(tmp_path: Path):
    assert write(tmp_path, "out.h5", PER_TOK) == ["out.h5"]


def test_mean_takes_the_name_as_typed_among_several_kinds(tmp_path: Path):
    assert write(tmp_path, "out.h5", MEAN, PER_TOK, Column("bos", 2)) == ["out.h5", "out.per_tok.h5", "out.bos.h5"]


def test_several_layers_are_named(tmp_path: Path):
    columns = [Column(kind, layer) for layer in (0, 2) for kind in ("mean", "per_tok")]  # type: ignore[arg-type]
    names = ["out.layer0.npz", "out.layer0.per_tok.npz", "out.layer2.npz", "out.layer2.per_tok.npz"]
    assert write(tmp_path, "out.npz", *columns) == names


@pytest.mark.parametrize("path", ["out.txt", "out", ".", "../", "/"])
def test_output_whose_name_says_no_format_is_refused(path: str):
    with pytest.raises(ConfigError, match="does not say which format"):
        output_of(path)


@pytest.mark.parametrize("path", ["e", "e.txt", "results/e.csv"])
def test_refusal_of_a_name_shows_the_names_that_are_taken(path: str):
    name = Path(path).name
    with pytest.raises(ConfigError, match=rf"expected {name}\.h5, {name}\.npz, {name}\.pt, or {name}/ for a folder"):
        output_of(path)


@pytest.mark.parametrize(
    ("path", "is_folder"), [("e.pt", False), ("e/", True), ("e.pt/", True), ("there", True), ("there.h5", True)]
)
def test_pt_is_a_file_or_a_folder_as_the_name_or_what_is_there_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_folder: bool
):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("there.h5").mkdir()
    output = output_of(path)
    assert (output.container, output.is_folder) == ("pt", is_folder)


def test_file_in_the_way_of_a_folder_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make this folder"):
        write(tmp_path, "file/out.h5", MEAN)


@given(st.text(min_size=1))
def test_dataset_name_is_undone_by_unquote(identifier: str):
    assert unquote(dataset_name(identifier)) == identifier


@given(st.text())
def test_dataset_name_is_a_single_step_in_a_file(identifier: str):
    name = dataset_name(identifier)
    assert name not in ("", ".")
    assert "/" not in name
    assert "\0" not in name


@given(st.text())
def test_file_name_stays_in_its_folder_and_fits_a_file_system(identifier: str):
    name = file_name(identifier)
    assert Path("/folder", f"{name}.pt").resolve().parent == Path("/folder")
    assert not name.startswith(".")
    assert 0 < len(name.encode()) <= 200


@pytest.mark.parametrize("identifier", ["../../etc/passwd", "..", "~root", "a\0b", "-rf", "CON\n"])
def test_file_name_of_a_hostile_identifier_is_harmless(tmp_path: Path, identifier: str):
    (tmp_path / f"{file_name(identifier)}.pt").touch()
    assert len(list(tmp_path.iterdir())) == 1


def test_long_identifiers_that_differ_at_the_end_have_two_file_names():
    assert file_name("x" * 300 + "a") != file_name("x" * 300 + "b")


@given(st.lists(st.sampled_from(["A", "A#2", "A#2#2", "B", "A#3"]), max_size=12))
def test_names_are_unique_whatever_the_identifiers(identifiers: list[str]):
    names = list(unique_names(identifiers, dataset_name))
    assert len(set(names)) == len(identifiers)


def test_repeated_identifiers_are_numbered():
    assert list(unique_names(["A", "B", "A", "A"], dataset_name)) == ["A", "B", "A#2", "A#3"]
