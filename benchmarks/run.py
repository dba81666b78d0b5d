"""Run all benchmarks, or those named: python benchmarks/run.py [--hold-memory] [attention ...].

A benchmark is a file beside this one that defines main(). Each runs in a process of its own and
writes its tables and pictures into benchmarks/results/. With --hold-memory free memory does not go back
to the host of a virtual machine meanwhile (held_memory.py says why).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from held_memory import held_memory

FOLDER = Path(__file__).resolve().parent
HOLD = "--hold-memory"


def discover() -> dict[str, Path]:
    """Return the benchmarks by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem != "run" and _defines_main(path)}


def _defines_main(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def run(benchmark: Path) -> bool:
    """Run one and say whether it did not fail."""
    print(f"== {benchmark.stem}", flush=True)
    # a checkout that is not installed is measured too
    folders = filter(None, (str(FOLDER.parent), os.getenv("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    return not subprocess.run([sys.executable, str(benchmark)], env=environment, check=False).returncode


def main() -> int:
    """Run them one after the other; the exit code is 1 if one failed, 2 if a name is unknown."""
    known = discover()
    names = [name for name in sys.argv[1:] if name != HOLD] or list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"no benchmark {', '.join(unknown)}; expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    with held_memory() if HOLD in sys.argv else nullcontext():
        failed = [name for name in names if not run(known[name])]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
