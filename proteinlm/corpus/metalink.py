"""A publisher's checksum file: sizes and digests of the files of a release, as a metalink says them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from proteinlm.errors import DownloadError

# the strongest first
_ALGORITHMS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the content of a file must be; ``num_bytes`` is None where only the digest is known."""

    algorithm: str  # sha256 or md5
    digest: str
    num_bytes: int | None


@dataclass(frozen=True, slots=True)
class Metalink:
    """A release, ``version`` empty where it is not said, and the checksums of its files by name."""

    version: str
    files: Mapping[str, Checksum]


def read_metalink(data: bytes, *, source: str) -> Metalink:
    """Read a metalink of version 3 or 4.

    Raises:
        DownloadError: if it is no metalink, or a digest in it is none.
    """
    from xml.etree import ElementTree

    # entities that expand without end need a document type, and a metalink has none
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DownloadError(f"{source}: has a document type, which no metalink needs")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DownloadError(f"{source}: is no metalink ({error})") from error
    if _tag(root) != "metalink":
        raise DownloadError(f"{source}: is no metalink (it begins with <{_tag(root)}>)")
    version = next((child.text or "" for child in root if _tag(child) == "version"), "")
    files = {}
    for element in root.iter():
        if _tag(element) == "file" and (checksum := _checksum(element, source)) is not None:
            files[element.get("name", "").rpartition("/")[2]] = checksum
    return Metalink(version.strip(), files)


def _checksum(file: object, source: str) -> Checksum | None:
    from xml.etree.ElementTree import Element

    assert isinstance(file, Element)
    name, size, digests = file.get("name", ""), None, {}
    for element in file.iter():
        text = (element.text or "").strip()
        # pieces have digests too, which are not the file's
        if _tag(element) == "hash" and element.get("piece") is None:
            digests[(element.get("type") or "").lower().replace("-", "")] = text.lower()
        elif _tag(element) == "size":
            size = text
    if size is not None and not re.fullmatch(r"[0-9]+", size):
        raise DownloadError(f"{source}: the size of {name} is '{size}'; expected a number of bytes")
    for algorithm, length in _ALGORITHMS.items():
        if (digest := digests.get(algorithm)) is None:
            continue
        if not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
            raise DownloadError(f"{source}: the {algorithm} of {name} is '{digest}'; expected {length} hex digits")
        return Checksum(algorithm, digest, None if size is None else int(size))
    return None


def _tag(element: object) -> str:
    # names of elements come with their namespace in braces
    return str(getattr(element, "tag", "")).rpartition("}")[2]
