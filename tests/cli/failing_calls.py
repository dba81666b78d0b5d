"""A process that runs a verb again and again, each time with another call into the file system failing.

It is begun with the library of failing_calls.c preloaded, which HDF5 and numpy cannot pass by.
"""

from __future__ import annotations

import contextlib
import ctypes
import filecmp
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

REASONS = ("Permission denied", "No space left on device", "Input/output error")
RECORDS = b"".join(
    b">sp|P%05d|X\n%s\n" % (number, bytes(random.Random(number % 30).choices(b"ACDEFGHIKLMNPQRSTVWYX*", k=40)))
    for number in range(40)
)


class Verb(NamedTuple):
    """What is typed, what it writes, and what is typed to go on after a failure."""

    words: list[str]
    output: Path | None
    again: list[str]


class Outcome(NamedTuple):
    code: int
    errors: list[str]
    traceback: str


def main(root: Path) -> None:
    """Print all that was found wrong, one fault a line."""
    calls = ctypes.CDLL(None)
    calls.failing_calls_call.restype = ctypes.c_char_p
    for name, verb in _verbs(root).items():
        num_failed = 0
        for place in _places(calls, verb):
            _remove(verb.output)
            outcome = _outcome(calls, verb.words, place)
            call, path = calls.failing_calls_call(place).decode().split(" ", 1)
            num_failed += outcome.code == 1
            for fault in _faults(verb, outcome, path):
                print(f"{name}: {call} of {path}, call {place}: {fault}")
        print(f"{name} failed: {num_failed}")


def _verbs(root: Path) -> dict[str, Verb]:
    source, clusters, held_out = root / "in" / "p.fasta", root / "in" / "c.tsv", root / "in" / "h.txt"
    source.parent.mkdir()
    source.write_bytes(RECORDS)
    clusters.write_text("".join(f"P{number // 4 * 4:05d}\tP{number:05d}\n" for number in range(40)))
    held_out.write_text("P00001\n")
    sources = [str(source), *_table(root / "in" / "p.parquet")]
    corpus = root / "corpus"
    ingest = ["ingest", str(source), "-o", str(corpus), "--jobs", "1"]
    with contextlib.redirect_stderr(io.StringIO()):
        _run(ingest)
    manifest = root / "in" / "m.toml"
    manifest.write_text(_manifest())
    written = root / "new"
    ingest = ["ingest", *sources, "-o", str(written / "corpus"), "--jobs", "1", "--drop-duplicates"]
    ingest += ["--clusters", str(clusters), "--ood-share", "0.2", "--held-out", str(held_out)]
    export = ["export", str(corpus), "-o", str(written / "all.fasta.gz")]
    download = ["download", str(manifest), "-o", str(written)]
    return {
        "verify": Verb(["verify", str(corpus)], None, ["verify", str(corpus)]),
        "export": Verb(export, written, export),
        "download": Verb(download, written, download),
        "ingest": Verb(ingest, written, [*ingest, "--resume"]),
    }


def _table(path: Path) -> list[str]:
    """Return a table if this machine can read one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []
    parquet.write_table(pyarrow.table({"id": ["Q1", "Q2"], "sequence": ["MKVL", "MKTAY"]}), path)
    return [str(path)]


def _manifest() -> str:
    class Publisher(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(RECORDS)))
            self.end_headers()
            self.wfile.write(RECORDS)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fields = ("name", "release", "description", "licence", "licence_url", "credit", "citation")
    lines = [f'{field} = "x"' for field in fields] + ['header_grammar = "uniprot"', "[[files]]", 'path = "p.fasta"']
    lines += [f'url = "http://127.0.0.1:{server.server_port}/p.fasta"', f"bytes = {len(RECORDS)}"]
    return "\n".join([*lines, f'sha256 = "{hashlib.sha256(RECORDS).hexdigest()}"'])


def _places(calls: ctypes.CDLL, verb: Verb) -> list[int]:
    """Return, of a run in which none fails, one of each kind of call on each file: the first, or the last."""
    _remove(verb.output)
    outcome = _outcome(calls, verb.words, -1)
    assert outcome.code == 0, outcome
    if verb.output is not None:
        shutil.rmtree(_whole(verb.output), ignore_errors=True)
        verb.output.rename(_whole(verb.output))
    firsts: dict[bytes, int] = {}
    lasts: dict[bytes, int] = {}
    for place in range(1, calls.failing_calls_made() + 1):
        call = calls.failing_calls_call(place)
        firsts.setdefault(call, place)
        lasts[call] = place
    return sorted((firsts if number % 2 else lasts)[call] for number, call in enumerate(firsts))


def _outcome(calls: ctypes.CDLL, words: list[str], place: int) -> Outcome:
    written = io.StringIO()
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        calls.failing_calls_begin(ctypes.c_long(place))
        try:
            code, traceback = _run(words), ""
        except BaseException as error:
            code, traceback = -1, repr(error)
        calls.failing_calls_end()
    return Outcome(code, [line for line in written.getvalue().splitlines() if line.startswith("proteinlm:")], traceback)


def _run(words: list[str]) -> int:
    from proteinlm.cli.main import main

    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _faults(verb: Verb, outcome: Outcome, path: str) -> Iterator[str]:
    if outcome.code not in {0, 1} or outcome.traceback:
        yield f"exit {outcome.code} {outcome.traceback}"
    if outcome.code == 1:
        (line,) = outcome.errors if len(outcome.errors) == 1 else ("",)
        if not line.startswith("proteinlm: /") or not any(reason in line for reason in REASONS):
            yield f"does not say in one line what failed: {outcome.errors}"
        is_written = verb.output is not None and str(verb.output) in path
        if path not in line and not (is_written and str(verb.output) in line):
            yield f"names another file: {line}"
    if verb.output is None:
        return
    if outcome.code == 1 and not _is_same(verb.output):
        outcome = _outcome_of(_run, verb.again)
    if outcome.code != 0 and not _is_same(verb.output):
        yield f"cannot be gone on with: {outcome}"
    elif not _is_same(verb.output):
        yield f"what it has written is not whole: {[*verb.output.rglob('*')]}"


def _outcome_of(run: Callable[[list[str]], int], words: list[str]) -> Outcome:
    written = io.StringIO()
    with contextlib.redirect_stderr(written):
        return Outcome(run(words), written.getvalue().splitlines(), "")


def _is_same(output: Path) -> bool:
    """Say whether the output is the one of a run without a failure; what could not be tidied away is hidden."""
    whole = _whole(output)
    names = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()]
    return filecmp.cmpfiles(whole, output, names, shallow=False)[0] == names


def _whole(output: Path) -> Path:
    return output.with_name("whole")


def _remove(output: Path | None) -> None:
    if output is not None:
        shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    sys.path.insert(0, json.loads(sys.argv[1]))
    main(Path(os.environ["FAILING_PATH"]))
