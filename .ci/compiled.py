"""Run the tests of compiled loops as on a processor without vector instructions, and see that none was left out.

The machine that checks a change has wider vectors than most that people have, and a loop may be compiled to something
else for each. The code is compiled into a folder of its own and not kept.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# the least that calls every compiled function, and compares it with something plain
TESTS = (
    "tests/sequence/test_scanning.py",
    "tests/sequence/test_token_counts.py",
    "tests/sequence/test_usual_text.py",
    "tests/sequence/test_xxh3.py",
    "tests/sequence/test_xxh3_stream.py",
    "tests/sequence/test_block_reader.py::test_odd_files_are_read_or_refused_alike",
    "tests/corpus/test_record_gathering.py",
    "tests/corpus/test_shard_tokens.py",
    "tests/corpus/test_splitting.py::test_splits_are_those_computed_one_by_one",
    "tests/corpus/test_splitting.py::test_identifiers_of_uniref_are_clusters_of_their_own",
    "tests/corpus/test_cluster_table.py::test_a_table_answers_as_a_dict_does",
    "tests/batches/test_first_fit.py",
    "tests/batches/test_gathering.py",
)


def functions() -> set[str]:
    """Return every compiled function, as numba names its file."""
    found = set()
    for path in (ROOT / "proteinlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("njit" in ast.unparse(name) for name in node.decorator_list):
                found.add(f"{path.stem}.{node.name}")
    return found


def main() -> None:
    """Run the tests; exit with 1 if one fails or a compiled function is called by none of them."""
    with tempfile.TemporaryDirectory() as folder:
        processor = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": folder}
        # the one test that compiles for yet another processor has no need of this one
        command = [
            sys.executable,
            "-m",
            "pytest",
            *TESTS,
            "--deselect",
            f"{TESTS[0]}::test_lesser_processors_find_the_same",
        ]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | processor, check=False)
        compiled = {path.name.rpartition("-")[0] for path in Path(folder).rglob("*.nbi")}
    if missed := sorted(functions() - compiled):
        print(f"compiled loops that no test of {Path(__file__).name} calls: {', '.join(missed)}", file=sys.stderr)
    sys.exit(done.returncode or bool(missed))


if __name__ == "__main__":
    main()
