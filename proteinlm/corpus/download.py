"""A corpus release from its publisher: the files of a manifest, checked, and a manifest that pins them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from proteinlm.corpus.manifest import Manifest, ManifestFile, read_manifest, write_manifest
from proteinlm.corpus.metalink import Checksum, Metalink, read_metalink
from proteinlm.corpus.transfer import Transfer, check_file, fetch_file
from proteinlm.corpus.web_server import DownloadConfig, Pause, fetch_bytes
from proteinlm.errors import DownloadError, ManifestError, OutputError
from proteinlm.outputs import file_beside
from proteinlm.progress import SILENT, Progress
from proteinlm.shipped import find_manifest

# a publisher's checksum file has some hundred bytes for a file
_LONGEST_METALINK = 1 << 26


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """A file of a release that is now there; ``is_new`` is False for one that was there before."""

    path: Path
    num_bytes: int
    sha256: str
    num_fetched: int
    num_retries: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """A release that is now there; ``manifest`` says exactly which files and can be ingested."""

    name: str
    release: str
    manifest: Path
    files: tuple[DownloadedFile, ...]


def download(
    manifest: str | Path,
    output: Path,
    *,
    config: DownloadConfig | None = None,
    progress: Progress = SILENT,
    pause: Pause = time.sleep,
) -> DownloadReport:
    """Fetch the files of a manifest into a folder.

    A file that is there and is what its publisher says now is not fetched again; one that an
    earlier attempt left unfinished is gone on with. At the end the folder has a manifest with the
    release, the size and the sha256 of what was fetched.

    Args:
        manifest: a path, or the name of a manifest that comes with the program.
        output: the folder; made if it does not exist.
        config: how patient to be.
        progress: hears of bytes.
        pause: waits so many seconds.

    Raises:
        ManifestError: if the manifest is faulty or names nothing to download.
        DownloadError: if a server does not give a file, or another than expected.
        OutputError: if a file cannot be written.
    """
    config = config or DownloadConfig()
    path = find_manifest(manifest)
    found = read_manifest(path)
    if without := [file.path for file in found.files if not file.url]:
        raise ManifestError(f"{path}: has no url for {without[0]}, which lies beside it; ingest it as it is")
    metalinks = {
        url: read_metalink(fetch_bytes(url, limit=_LONGEST_METALINK, config=config, pause=pause), source=url)
        for url in dict.fromkeys(file.checksums for file in found.files)
        if url
    }
    checksums = [_checksum(file, metalinks) for file in found.files]
    files = []
    for entry, checksum in zip(found.files, checksums, strict=True):
        place = output / entry.path
        _make_folder(place.parent)
        is_new = not place.exists()
        if is_new:
            transfer = fetch_file(entry.url, place, checksum, config=config, progress=progress, pause=pause)
        else:
            transfer = _verified(place, checksum, progress)
        files.append(DownloadedFile(place, **dataclasses.asdict(transfer), is_new=is_new))
    pinned = _pinned(found, files, metalinks)
    place = output / f"{found.name}.toml"
    with file_beside(place) as partial:
        write_manifest(partial, pinned)
    return DownloadReport(found.name, pinned.release, place, tuple(files))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make this folder ({error.strerror})") from error


def _verified(place: Path, checksum: Checksum, progress: Progress) -> Transfer:
    try:
        return check_file(place, checksum, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error}; move it away, or name another folder, to fetch it") from error


def _checksum(file: ManifestFile, metalinks: dict[str, Metalink]) -> Checksum:
    """Return what a file must be: what the manifest says, or else its publisher."""
    if file.sha256:
        return Checksum("sha256", file.sha256, file.bytes)
    name = file.url.rpartition("/")[2]
    checksum = metalinks[file.checksums].files.get(name)
    if checksum is None:
        raise DownloadError(f"{file.checksums}: has no checksum of {name}; the release may have changed")
    if file.bytes is not None and checksum.num_bytes not in {None, file.bytes}:
        raise DownloadError(
            f"{file.checksums}: says {checksum.num_bytes:,} bytes of {name} where the manifest says {file.bytes:,}"
        )
    return dataclasses.replace(checksum, num_bytes=file.bytes or checksum.num_bytes)


def _pinned(manifest: Manifest, files: list[DownloadedFile], metalinks: dict[str, Metalink]) -> Manifest:
    """Return the manifest with what was fetched in the place of what could change."""
    versions = list(dict.fromkeys(metalink.version for metalink in metalinks.values() if metalink.version))
    entries = tuple(
        dataclasses.replace(entry, checksums="", sha256=file.sha256, bytes=file.num_bytes)
        for entry, file in zip(manifest.files, files, strict=True)
    )
    return dataclasses.replace(manifest, release=", ".join(versions) or manifest.release, files=entries)
