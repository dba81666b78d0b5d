"""The quickstart goes on wherever it was interrupted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

# says what it is asked to do, one line a command; the verbs themselves are tested elsewhere
COMMAND = '#!/bin/sh\necho "proteinlm $*"\n'
RUN = ["corpus/corpus.json", "run/training_state/newest"]
EMBEDDINGS = ["embeddings.h5", "embeddings.per_tok.h5"]


def commands(root: Path, folder: Path, present: list[str]) -> list[str]:
    """Return the verbs, with --resume, that the script runs where the files ``present`` are there."""
    for name in present:
        (folder / "quickstart" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "quickstart" / name).touch()
    (folder / "proteinlm").write_text(COMMAND)
    (folder / "proteinlm").chmod(0o755)
    done = subprocess.run(
        ["sh", "pipelines/quickstart.sh", str(folder / "quickstart")],
        cwd=root,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    typed = [line.split() for line in done.stdout.splitlines() if line.startswith("proteinlm ")]
    return [" ".join([words[1], *(word for word in words if word == "--resume")]) for words in typed]


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], ["ingest --resume", "train", "embed", "compare"]),
        (["corpus/corpus.json"], ["train", "embed", "compare"]),
        (["corpus/corpus.json", "run/run.json"], ["train", "embed", "compare"]),
        (RUN, ["train --resume", "embed", "compare"]),
        ([*RUN, "embeddings.h5.partial/journal.jsonl"], ["train --resume", "embed --resume", "compare"]),
        ([*RUN, "embeddings.h5", "embeddings.h5.partial/x"], ["train --resume", "embed --resume", "compare"]),
        ([*RUN, *EMBEDDINGS, "embeddings.h5.partial/x"], ["train --resume", "embed --resume", "compare"]),
        ([*RUN, "embeddings.h5"], ["train --resume", "embed", "compare"]),
        ([*RUN, *EMBEDDINGS], ["train --resume", "compare"]),
        ([*RUN, *EMBEDDINGS, "report/report.html"], ["train --resume"]),
        (["corpus/corpus.json", *EMBEDDINGS, "report/report.html"], ["train", "embed", "compare"]),
    ],
    ids=lambda value: ",".join(value) if value and "/" in "".join(value) else None,
)
def test_what_is_whole_is_kept_and_what_is_not_goes_on(project_root, tmp_path, present, expected):
    assert commands(project_root, tmp_path, present) == expected
