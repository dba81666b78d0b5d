"""The batch script of docs/clusters.md saves, goes back into the queue, and stops where something failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

# what SLURM and torchrun would do on one machine: the step is one process, and TERM ends it after "saving"
STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'case $1 in show) printf "node1\\nnode2\\n";; requeue) echo "requeue $2" >> "$LOG";; esac',
    "scancel": 'echo "$*" >> "$LOG"; kill -TERM "$(cat "$LOG.step")"',
    "torchrun": (
        'echo "torchrun $*" >> "$LOG"; echo $$ > "$LOG.part"\n'
        "trap 'sleep 0.3; echo saved >> \"$LOG\"; exit 1' TERM\n"
        'mv "$LOG.part" "$LOG.step"\n'
        '[ -z "$END_WITH" ] || exit "$END_WITH"\n'
        "for _ in $(seq 300); do sleep 0.1; done"
    ),
}
JOB = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}


@pytest.fixture
def job(project_root: Path, tmp_path: Path):
    """Return a function that starts the page's script in a folder of its own."""
    page = (project_root / "docs" / "clusters.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "train.sbatch").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(end_with: str = "") -> subprocess.Popen[bytes]:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, **JOB, "PATH": path, "LOG": str(tmp_path / "log"), "END_WITH": end_with}
        return subprocess.Popen(["bash", "train.sbatch"], cwd=tmp_path, env=environment)

    return start


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_a_job_whose_time_is_up_saves_and_is_queued_again(job, tmp_path):
    script = job()
    deadline = time.monotonic() + 20
    while not (tmp_path / "log.step").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(20) == 0
    started, *after = log(tmp_path)
    assert after == ["--signal=TERM 12345", "saved", "requeue 12345"]
    assert "--nnodes=2 --nproc-per-node=8" in started
    assert "--rdzv-endpoint=node1:22345" in started
    assert not started.endswith("--resume")


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_ends_by_itself_is_not_queued_again(job, tmp_path, code):
    assert job(end_with=str(code)).wait(20) == code
    assert [line.split()[0] for line in log(tmp_path)] == ["torchrun"]


def test_a_job_that_was_queued_again_resumes(job, tmp_path):
    (tmp_path / "runs" / "big").mkdir(parents=True)
    (tmp_path / "runs" / "big" / "run.json").touch()
    assert job(end_with="0").wait(20) == 0
    assert log(tmp_path)[0].endswith("--output runs/big --resume")
