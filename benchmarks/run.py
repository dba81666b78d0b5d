"""Run all benchmarks, or those named: python benchmarks/run.py [attention ...].

A benchmark is a file beside this one that defines main(). Each runs in a process of its own and
writes its tables and pictures into benchmarks/results/.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def discover() -> dict[str, Path]:
    """Return the benchmarks by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem != "run" and _defines_main(path)}


def _defines_main(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def main() -> int:
    """Run them one after the other; the exit code is 1 if one failed, 2 if a name is unknown."""
    known = discover()
    names = sys.argv[1:] or list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"no benchmark {', '.join(unknown)}; expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    # a checkout that is not installed is measured too
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER.parent), os.getenv("PYTHONPATH"))))
    }
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(known[name])], env=environment, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
