"""Memory that is freed stays with the process that asked for that, and only there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from proteinlm.training.freed_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

is_kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(3):
    torch.ones(1 << 24)
before = faults()
for _ in range(4):
    torch.ones(1 << 24)
print(is_kept, faults() - before)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def _run(word, project_root, **environment):
    """Return whether memory is kept, and the page faults of four buffers of 64 MiB."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", FAULTS, word]
    environment = clean | environment | {"PYTHONPATH": str(project_root)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    is_kept, num_faults = done.stdout.split()
    return is_kept == "True", int(num_faults)


@needs_glibc
def test_kept_memory_is_used_again_without_page_faults(project_root):
    (is_kept, num_kept), (_, num_usual) = (_run(word, project_root) for word in ("keep", "leave"))
    assert is_kept
    # pages of 4 KiB, or of up to 64 KiB on other machines
    assert num_usual > 1000
    assert num_kept < num_usual / 20


@needs_glibc
@pytest.mark.parametrize(
    "setting", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}], ids=["variable", "tunable"]
)
def test_who_has_tuned_it_is_left_alone(project_root, setting):
    assert not _run("keep", project_root, **setting)[0]
