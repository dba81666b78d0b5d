"""What is said to a web server, what its answers mean, and when to ask again."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proteinlm.errors import DownloadError
from proteinlm.progress import SILENT, Progress

if TYPE_CHECKING:
    from urllib.request import Request

# what a server says that may be otherwise a moment later
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_REASONS = {
    401: "asks for a name and a password",
    403: "refuses to give it",
    404: "has no such file; the release may have moved",
    410: "has it no more; the release may have moved",
}

Pause = Callable[[float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How patient a download is."""

    num_retries: int = 6  # in a row, none of which brought a byte further than before
    first_wait: float = 1.0  # seconds; doubled with every retry
    longest_wait: float = 60.0  # seconds
    timeout: float = 60.0  # seconds without a byte

    def __post_init__(self) -> None:
        if self.num_retries < 0:
            raise ValueError(f"num_retries is {self.num_retries}; expected 0 or more")
        for name in ("first_wait", "longest_wait", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


class PassingError(Exception):
    """A failure after which another attempt may do; ``wait`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class NoSuchRangeError(PassingError):
    """The server has no such part of the file as was asked for."""


class Patience:
    """Counts attempts that brought nothing, and waits longer after each."""

    def __init__(self, url: str, config: DownloadConfig, pause: Pause, progress: Progress = SILENT) -> None:
        self.num_retries = 0
        self._in_a_row = 0
        self._url = url
        self._config = config
        self._pause = pause
        self._progress = progress

    def renew(self) -> None:
        """Forget the failures: there was progress since."""
        self._in_a_row = 0

    def wait(self, failure: PassingError) -> None:
        """Wait before the next attempt.

        Raises:
            DownloadError: if there have been enough.
        """
        if self._in_a_row == self._config.num_retries:
            attempts = f"{self._in_a_row + 1} attempts" if self._in_a_row else "1 attempt"
            raise DownloadError(f"{self._url}: cannot be fetched ({failure}; {attempts})") from failure
        self._in_a_row += 1
        self.num_retries += 1
        wait = min(self._config.first_wait * 2 ** (self._in_a_row - 1), self._config.longest_wait)
        self._progress.advance(0, retry=f"{self._in_a_row} of {self._config.num_retries} ({failure})")
        # a server that says when to come back is taken at its word, within reason
        self._pause(max(wait, min(failure.wait, self._config.longest_wait)))


def fetch_bytes(url: str, *, limit: int, config: DownloadConfig | None = None, pause: Pause = time.sleep) -> bytes:
    """Return a small file whole.

    Raises:
        DownloadError: if it cannot be fetched or is longer than ``limit`` bytes.
    """
    config = config or DownloadConfig()
    patience = Patience(url, config, pause)
    while True:
        try:
            with responding(url, {}, config.timeout) as response:
                data = read(response, limit + 1)
                if len(data) > limit:
                    raise DownloadError(f"{url}: is longer than {limit:,} bytes")
                if response.length:
                    raise PassingError("the connection ended early")
                return data
        except PassingError as failure:
            patience.wait(failure)


@contextmanager
def responding(url: str, headers: dict[str, str], timeout: float) -> Iterator[Any]:
    """Yield the server's answer, of status 200 or 206.

    Raises:
        PassingError: if another attempt may do.
        DownloadError: if none will.
    """
    import ssl
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        response = urlopen(_request(url, headers), timeout=timeout)
    except HTTPError as error:
        with error:
            raise _refusal(url, error) from error
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{url}: the server cannot prove who it is ({error.reason})") from error
        raise PassingError(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(f"no connection: {_said(error)}") from error
    with response:
        if response.status not in {200, 206}:
            raise DownloadError(f"{url}: the server says {response.status} {response.reason}")
        yield response


def _request(url: str, headers: dict[str, str]) -> Request:
    from urllib.request import Request

    # a server that compresses on the way would count other bytes than those of the file
    return Request(url, headers={"User-Agent": "proteinlm", "Accept-Encoding": "identity", **headers})


def _refusal(url: str, answer: Any) -> Exception:
    if answer.code == 416:
        return NoSuchRangeError("the server has no such part of the file")
    if answer.code in _PASSING:
        asked = answer.headers.get("Retry-After", "")
        wait = float(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else 0.0
        return PassingError(f"the server says {answer.code} {answer.reason}", wait)
    reason = _REASONS.get(answer.code, f"says {answer.reason}")
    return DownloadError(f"{url}: the server {reason} ({answer.code})")


def read(response: Any, size: int) -> bytes:
    """Return the next bytes of an answer, none at its end."""
    try:
        data: bytes = response.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(f"the connection broke: {_said(error)}") from error
    return data


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def validator_of(response: Any) -> str:
    """Return what tells this version of a file from another, empty if nothing does."""
    etag: str = response.headers.get("ETag", "")
    # a weak one is the same for other bytes of the same meaning
    if etag and not etag.startswith("W/"):
        return etag
    return str(response.headers.get("Last-Modified", ""))


def first_byte(response: Any) -> int:
    """Return where in the file an answer begins; -1 for a part that does not say which it is."""
    if response.status != 206:
        return 0
    found = re.match(r"bytes ([0-9]+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def total_bytes(response: Any) -> int | None:
    """Return the size of the whole file of which an answer brings a part, if it says."""
    if found := re.search(r"/([0-9]+)$", response.headers.get("Content-Range", "")):
        return int(found[1])
    length = response.headers.get("Content-Length", "")
    return int(length) if response.status != 206 and re.fullmatch(r"[0-9]+", length) else None
