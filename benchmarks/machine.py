"""What a measurement ran on, without naming the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from held_memory import is_memory_held


def describe() -> dict[str, Any]:
    """Return processor, cores, memory in bytes, whether free memory was kept from a host, and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory_is_held": is_memory_held(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
