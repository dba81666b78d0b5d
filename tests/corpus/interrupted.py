"""A process that ingests and is killed at a chosen moment: at the n-th time that it touches the file system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

_TOUCHES = {"open", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.mkdir", "fcntl.flock"}


def ingested(root: Path, output: Path, about: dict, *, kill_at: int = 0) -> int:
    """Ingest in a process of its own; return how often it touched the file system, or 0 if it was killed.

    ``about`` holds: inputs, clusters, settings (a table), jobs, block_bytes.
    """
    words = [sys.executable, __file__, json.dumps(about | {"output": str(output), "kill_at": kill_at})]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode == -signal.SIGKILL:
        return 0
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def _main(about: dict) -> None:
    from proteinlm import config
    from proteinlm.corpus import Effort, IngestionConfig, corpus_builder, ingest

    corpus_builder.CHECKPOINT_SECONDS = 0.0
    settings = config.parse(IngestionConfig, about["settings"], source="test")
    effort = Effort(jobs=about["jobs"], resume=True, memory_bytes=1 << 16, block_bytes=about["block_bytes"])
    clusters = about["clusters"] and Path(about["clusters"])
    num_touched = 0

    def heard(event: str, arguments: tuple) -> None:
        nonlocal num_touched
        # what is only read leaves no trace
        if event in _TOUCHES and (event != "open" or arguments[1] not in {"r", "rb", None}):
            num_touched += 1
            if num_touched == about["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
    ingest(about["inputs"], Path(about["output"]), config=settings, clusters=clusters, effort=effort)
    print(num_touched)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
