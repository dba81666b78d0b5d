"""proteinlm: language models of protein sequences at full length.

``proteinlm.load(path)`` opens a checkpoint; everything else lives in the rooms named in
docs/architecture.md. Importing this package imports neither torch nor DeepSpeed.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from proteinlm.inference.pretrained import load

        return load
    raise AttributeError(f"module 'proteinlm' has no attribute '{name}'")
