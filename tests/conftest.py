"""What every test gets: no unseeded draw, no uninitialised memory that happens to be zero."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from itertools import combinations
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
# tensors here are small: a second thread would mostly wait, and wait long where the machine is busy
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _forget_old_machine_code() -> None:
    """Remove what numba has compiled if a source is newer: it looks at a function's own file, not at those it calls."""
    compiled = [*(ROOT / "proteinlm").rglob("*.nb[ic]")]
    newest = max(path.stat().st_mtime for path in (ROOT / "proteinlm").rglob("*.py"))
    if compiled and newest > min(path.stat().st_mtime for path in compiled):
        for path in compiled:
            path.unlink()


# workers begin when it is done
if "PYTEST_XDIST_WORKER" not in os.environ:
    _forget_old_machine_code()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the combinations of a test marked ``one_in(n)``, run one in n, among which any two values meet.

    The others are slow tests: what fails for two values together is found in every run, and what takes three
    values together in most.
    """
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("one_in"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for name, found in tests.items():
        n = found[0].get_closest_marker("one_in").args[0]
        places = _places(found)
        if len(places) < math.prod(
            len(set(column)) for column in zip(*(place.values() for place in places), strict=True)
        ):
            # some were named one by one: those are wanted
            continue
        kept = [place for place in places if sum(place.values()) % n == 0]
        for item, place in zip(found, places, strict=True):
            if place not in kept:
                item.add_marker(pytest.mark.slow)
        if _pairs(kept) != _pairs(places):
            raise pytest.UsageError(f"{name}: one_in({n}) leaves two values that never meet; take a smaller number")


def _places(items: list[pytest.Item]) -> list[dict[str, int]]:
    """Return the values of each item by their places in the order of appearance."""
    known: dict[str, dict[int, int]] = defaultdict(dict)
    return [
        {name: known[name].setdefault(id(value), len(known[name])) for name, value in item.callspec.params.items()}
        for item in items
    ]


def _pairs(places: list[dict[str, int]]) -> set[tuple[tuple[str, int], ...]]:
    return {pair for place in places for pair in combinations(sorted(place.items()), 2)}


@pytest.fixture(autouse=True)
def _seeded_and_poisoned():
    """Seed torch's global generator and fill every torch.empty with NaN."""
    import torch

    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data" / "public"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder.relative_to(ROOT.parent)} beside the project, which is absent")
    return folder


@pytest.fixture(scope="session")
def sample(project_root: Path) -> Path:
    """The folder of real sequences that the project carries."""
    return project_root / "data_manifests" / "sample"


@pytest.fixture(scope="session")
def tiny_corpus(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the first 300 proteins of the sample, with both validation splits."""
    from itertools import islice

    from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest
    from proteinlm.sequence.fasta import read_fasta

    folder = tmp_path_factory.mktemp("tiny")
    with (folder / "tiny.fasta").open("wb") as file:
        for record in islice(read_fasta([sample / "uniprotkb_sample.fasta.xz"]), 300):
            file.write(f">{record.identifier}\n".encode() + record.residues + b"\n")
    settings = IngestionConfig(splitting=SplittingConfig(validation_share=0.1, ood_share=0.1))
    clusters = sample / "uniprotkb_sample.clusters30.tsv.xz"
    ingest([folder / "tiny.fasta"], folder / "corpus", config=settings, clusters=clusters)
    return folder / "corpus"
