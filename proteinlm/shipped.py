"""What comes with the program beside its code, each known by its name.

Recipes (``pipelines/``), manifests of corpora and lists of families (``data_manifests/``) are folders beside the
package in a source tree and folders inside the package where it is installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from proteinlm.errors import ConfigError, ManifestError, ProteinLMError

_PACKAGE = Path(__file__).resolve().parent
_FAMILIES = "_families"


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the program, by name."""
    return _tables("pipelines")


def shipped_manifests() -> dict[str, Path]:
    """Return the manifests that come with the program, by name."""
    return {name: path for name, path in _tables("data_manifests").items() if not name.endswith(_FAMILIES)}


def shipped_families() -> dict[str, Path]:
    """Return the lists of families that come with the program, by name."""
    return {name: path for name, path in _tables("data_manifests").items() if name.endswith(_FAMILIES)}


def find_recipe(name: str | Path) -> Path:
    """Return the recipe that ``name`` means: a path, or else the name of one that comes with the program.

    Raises:
        ConfigError: if it is neither.
    """
    return _find(name, shipped_recipes(), "recipe", ConfigError)


def find_manifest(name: str | Path) -> Path:
    """Return the manifest that ``name`` means: a path, or else the name of one that comes with the program.

    Raises:
        ManifestError: if it is neither.
    """
    return _find(name, shipped_manifests(), "manifest", ManifestError)


def find_families(name: str | Path) -> Path:
    """Return the list of families that ``name`` means: a path, or else the name of one that comes with the program.

    Raises:
        ManifestError: if it is neither.
    """
    return _find(name, shipped_families(), "list of families", ManifestError)


def find_anything(name: str | Path) -> Path:
    """Return the file that ``name`` means: a path, or else the name of anything that comes with the program.

    Raises:
        ConfigError: if it is neither.
    """
    known = shipped_recipes() | shipped_manifests() | shipped_families()
    return _find(name, known, "recipe, manifest or list of families", ConfigError)


def _tables(folder: str) -> dict[str, Path]:
    inside = _PACKAGE / folder
    place = inside if inside.is_dir() else _PACKAGE.parent / folder
    return {path.stem: path for path in sorted(place.glob("*.toml"))}


def _find(name: str | Path, known: Mapping[str, Path], kind: str, error: type[ProteinLMError]) -> Path:
    path, found = Path(name), known.get(str(name))
    try:
        # beside a folder quickstart/, as `make quickstart` leaves it, the recipe of that name can still be meant
        if path.exists() and not (found and path.is_dir()):
            return path
    except OSError:
        # whoever reads it says why it cannot be read
        return path
    if found is not None:
        return found
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise error(
        f"{name}: no such file, and no {kind} of that name; {hint}expected a path, or one of {', '.join(known)}"
    )
