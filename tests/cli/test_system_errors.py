"""Whatever the system refuses, at any moment, ends in one line with its reason, by the verbs that run a model."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proteinlm.attention import FavorConfig
from proteinlm.cli.main import main
from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint

PACKAGE = Path(__file__).parent.parent.parent / "proteinlm"
# what the package and pathlib ask of the system, by a path
CALLS = [
    *((io, "open"), (os, "open"), (os, "stat"), (os, "lstat"), (os, "mkdir"), (os, "scandir"), (os, "listdir")),
    *((os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir")),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run."""
    return make_run(tmp_path / "run")


def make_run(folder: Path) -> Path:
    attention = FavorConfig(num_random_features=8)
    settings = ModelConfig(num_layers=1, hidden_size=8, num_heads=1, feed_forward_size=8, attention=attention)
    recipe = {"packing": {"context": "isolated", "window_length": 64}}
    metadata = {"training_token_counts": [1] * 33}
    save_checkpoint(folder / "checkpoint", MaskedLM(settings, seed=0), recipe, step=1, metadata=metadata)
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 3.0}\n')
    (folder / "x.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMKLAG\n")
    return folder


def proteinlm(capsys, *words: object) -> tuple[int, str]:
    """Run a command; return its exit code and what it says of an error."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("proteinlm: ")]
    return int(end.value.code or 0), "\n".join(said)


class FailingCalls:
    """Refuses calls below a folder that come from one place of the package, and records the places."""

    def __init__(self, folder: Path, place: tuple[str, str, int] | None) -> None:
        self._folder = str(folder)
        self._place = place
        self.places: dict[tuple[str, str, int], None] = {}

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for module, name in CALLS:
            real = getattr(module, name)
            patch.setattr(module, name, self._failing(name, real))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and str(path).startswith(self._folder):
                place = (name, *_caller())
                self.places[place] = None
                if place == self._place:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call


def _caller() -> tuple[str, int]:
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(f"{PACKAGE}/"):
        frame = frame.f_back  # type: ignore[assignment]
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


VERBS = {
    "embed": ["embed", "{run}/x.fasta", "--checkpoint", "{run}", "-o", "{out}/new/e.h5", "--device", "cpu"],
    "embed pt/": ["embed", "{run}/x.fasta", "--checkpoint", "{run}", "-o", "{out}/new/e/", "--device", "cpu"],
    "compare": [
        *("compare", "{run}/x.fasta", "--checkpoint", "{run}", "-o", "{out}/new/report", "--device", "cpu"),
        *("--features", "8", "--draws", "1"),
    ],
    "inspect run": ["inspect", "{run}"],
    "inspect checkpoint": ["inspect", "{run}/checkpoint"],
    "inspect file": ["inspect", "{run}/x.fasta"],
}


# a comparison takes a second for each place
OF_EACH_VERB = [pytest.param(verb, marks=[pytest.mark.slow] * (verb == "compare")) for verb in VERBS]


@pytest.mark.parametrize("verb", OF_EACH_VERB)
def test_a_refusal_at_any_place_is_one_line_with_its_reason(run: Path, tmp_path: Path, capsys, verb: str):
    out = tmp_path / "out"

    def attempt(place: tuple[str, str, int] | None) -> tuple[int, str, FailingCalls]:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        calls = FailingCalls(tmp_path, place)
        with pytest.MonkeyPatch.context() as patch:
            calls.patch(patch)
            code, said = proteinlm(capsys, *(word.format(run=run, out=out) for word in VERBS[verb]))
        return code, said, calls

    code, said, calls = attempt(None)
    assert code == 0, said
    assert len(calls.places) >= 3
    refused = 0
    for place in calls.places:
        code, said, _ = attempt(place)
        refused += code
        # what may be left undone, such as tidying, may fail without a word
        assert code == 0 or "Permission denied" in said, (place, said)
        assert len(said.splitlines()) == code, (place, said)
    assert refused >= 2


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["e.h5", "e.npz", "e.pt", "e/", "flat.h5"])
def test_a_disk_that_fills_up_while_embeddings_are_written_is_named(run: Path, tmp_path: Path, capsys, name: str):
    (run / "x.fasta").write_text("".join(f">p{number}\nMKTAYIAKQ\n" for number in range(100)))
    words = ["embed", run / "x.fasta", "--checkpoint", run, "-o", f"{tmp_path}/new/{name}", "--device", "cpu"]
    words += ["--layout", "flat"] if name == "flat.h5" else []
    codes = []
    for num_bytes in (0, 300, 1_500, 14_000, 24_000, 1_000_000):
        with files_of_at_most(num_bytes):
            code, said = proteinlm(capsys, *words)
        codes.append(code)
        assert code == 0 or said.endswith("cannot be written (File too large)"), (num_bytes, said)
        assert code == 0 or not (tmp_path / "new" / name).exists()
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert codes[:3] == [1, 1, 1]
    assert codes[-1] == 0


def test_a_disk_that_fills_up_while_a_report_is_written_is_named(run: Path, tmp_path: Path, capsys):
    words = ["compare", run / "x.fasta", "--checkpoint", run, "-o", tmp_path / "report", "--device", "cpu"]
    with files_of_at_most(10_000):
        code, said = proteinlm(capsys, *words, "--features", "8", "--draws", "1")
    assert (code, said) == (1, f"proteinlm: {tmp_path}/report: cannot be written (File too large)")
    assert not (tmp_path / "report").exists()


@pytest.fixture(scope="module")
def everything_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what the verbs import by need: nobody may be forbidden to look into Python's own folders."""
    import proteinlm.analysis.figures
    import proteinlm.analysis.report
    import proteinlm.recipe  # noqa: F401

    run, out = make_run(tmp_path_factory.mktemp("first") / "run"), tmp_path_factory.mktemp("out")
    for words in VERBS.values():
        with pytest.raises(SystemExit, match="0"):
            main([word.format(run=run, out=out) for word in words])


@pytest.fixture
def place_of_nobody(everything_imported: None) -> Iterator[Path]:
    """A folder that everybody may look into, as pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up what lets root pass every permission."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("closed", "mode", "words"),
    [
        ("run/checkpoint", 0o000, ["inspect", "{0}/run/checkpoint"]),
        ("run", 0o000, ["inspect", "{0}/run"]),
        ("run/x.fasta", 0o000, ["inspect", "{0}/run/x.fasta"]),
        ("run/metrics.jsonl", 0o000, ["inspect", "{0}/run"]),
        ("run/checkpoint", 0o000, ["embed", "{0}/run/x.fasta", "--checkpoint", "{0}/run/checkpoint", "-o", "{0}/e.h5"]),
        ("run/checkpoint", 0o000, ["embed", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/e.h5"]),
        (
            "run/checkpoint/model.safetensors",
            0o000,
            ["embed", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/e.h5"],
        ),
        (
            "run/checkpoint/recipe.json",
            0o000,
            ["compare", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/out/r"],
        ),
        ("run/checkpoint/model.safetensors", 0o000, ["evaluate", "{0}/run", "--corpus", "{0}/corpus"]),
        ("out", 0o555, ["embed", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/out/e.h5"]),
        ("out", 0o000, ["embed", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/out/e.h5"]),
        ("out", 0o000, ["embed", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/out/sub/e/"]),
        ("out", 0o000, ["compare", "{0}/run/x.fasta", "--checkpoint", "{0}/run", "-o", "{0}/out/report"]),
        ("out", 0o555, ["inspect", "{0}/run/x.fasta", "--picture", "{0}/out/lengths.png"]),
    ],
    ids=lambda value: oct(value) if isinstance(value, int) else value if isinstance(value, str) else value[0],
)
def test_what_permissions_forbid_keeps_its_name(
    place_of_nobody: Path, capsys, closed: str, mode: int, words: list[str]
):
    make_run(place_of_nobody / "run")
    out = place_of_nobody / "out"
    out.mkdir()
    out.chmod(0o777)
    (place_of_nobody / closed).chmod(mode)
    with as_nobody():
        code, said = proteinlm(capsys, *(word.format(place_of_nobody) for word in words))
    with suppress(FileNotFoundError):
        (place_of_nobody / closed).chmod(0o777)
    assert code == 1
    assert "Permission denied" in said
    assert "no such" not in said.lower()
    assert len(said.splitlines()) == 1
    assert list(out.iterdir()) == []
