"""A release comes whole from the worst of servers, or not at all and with the reason."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import resource
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from proteinlm.corpus import DownloadConfig, download, find_manifest, ingest_manifest, read_manifest, shipped_manifests
from proteinlm.corpus.metalink import Checksum, read_metalink
from proteinlm.corpus.transfer import fetch_file
from proteinlm.corpus.web_server import fetch_bytes
from proteinlm.errors import DownloadError, ManifestError, OutputError

# larger than what sockets hold, and of no size that is a multiple of anything
DATA = random.Random(1).randbytes(700_001)
OTHER = random.Random(2).randbytes(650_003)
FASTA = b">first\nMKTAYIAKQRQISFVKSHFSRQ\n>second\nMSILVTRPSP\n"
METALINK = """<?xml version="1.0" encoding="UTF-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/" type="static">
 <publisher><name>nobody</name></publisher>
 <version>2026_01</version>
 <files><file name="{name}">
  <size>{size}</size>
  <verification><hash type="md5">{md5}</hash></verification>
 </file></files>
</metalink>
"""


class Server:
    """A web server of one file that does to each request what the next of its moods says."""

    def __init__(self):
        self.data = DATA
        self.etag = '"one"'
        self.files = {}
        self.moods = []  # one for each request; then all goes well
        self.requests = []  # the Range of each, None for the whole
        self.serves_ranges = True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, handler):
        handler.close_connection = True
        if handler.path in self.files:
            body = self.files[handler.path]
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
            return
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        mood = self.moods.pop(0) if self.moods else {}
        if status := mood.get("status"):
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.send_header("Retry-After", mood.get("retry_after", ""))
            handler.end_headers()
            return
        self._send(handler, wanted, mood)

    def _send(self, handler, wanted, mood):
        start = 0
        if wanted and self.serves_ranges and handler.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            handler.send_response(206)
            shown = mood.get("shown_start", start)
            handler.send_header("Content-Range", f"bytes {shown}-{len(self.data) - 1}/{len(self.data)}")
        else:
            handler.send_response(200)
        body = bytearray(self.data[start:])
        if (place := mood.get("corrupt")) is not None:
            body[place] ^= 1
        if mood.get("says_length", True):
            handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        body += mood.get("more", b"")
        try:
            handler.wfile.write(body[: mood.get("drop_after", len(body))])
            handler.wfile.flush()
        except ConnectionError:
            pass
        if after := mood.get("then"):
            after()

    def change_file(self):
        self.data, self.etag = OTHER, '"two"'


@pytest.fixture
def server():
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()
    found.thread.join()


def _checksum(data=DATA, algorithm="sha256"):
    return Checksum(algorithm, hashlib.new(algorithm, data).hexdigest(), len(data))


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch the server's file; waits are noted and not waited for."""

    def run(checksum=None, num_retries=6, **options):
        run.waits = []
        return fetch_file(
            f"{server.address}/data",
            tmp_path / "data",
            checksum or _checksum(),
            config=DownloadConfig(num_retries=num_retries, timeout=5.0),
            pause=run.waits.append,
            **options,
        )

    return run


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_comes_whole_and_alone(fetch, tmp_path, algorithm):
    transfer = fetch(_checksum(DATA, algorithm))
    assert (tmp_path / "data").read_bytes() == DATA
    assert _names(tmp_path) == ["data"]
    assert (transfer.num_bytes, transfer.num_fetched, transfer.num_retries) == (len(DATA), len(DATA), 0)
    assert transfer.sha256 == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("seed", range(8))
def test_connections_dropped_at_random_bytes_cost_no_byte_twice(fetch, server, tmp_path, seed):
    draws = random.Random(seed)
    server.moods = [{"drop_after": draws.randrange(1, 200_000)} for _ in range(4)]
    transfer = fetch()
    assert (tmp_path / "data").read_bytes() == DATA
    assert transfer.num_fetched == len(DATA)
    assert [request is not None for request in server.requests] == [False] + [True] * 4


def test_a_later_run_goes_on_where_a_failed_one_ended(fetch, server, tmp_path):
    server.moods = [{"drop_after": 300_000}, {"status": 503}]
    with pytest.raises(DownloadError, match=r"/data: cannot be fetched \(the server says 503 .*; 2 attempts\)"):
        fetch(num_retries=1)
    assert _names(tmp_path) == ["data.part", "data.part.json"]
    kept = (tmp_path / "data.part").stat().st_size
    assert kept == 300_000
    transfer = fetch()
    assert server.requests[-1] == f"bytes={kept}-"
    assert transfer.num_fetched == len(DATA) - kept
    assert (tmp_path / "data").read_bytes() == DATA
    assert _names(tmp_path) == ["data"]


def test_a_server_without_ranges_sends_the_whole_file_again(fetch, server, tmp_path):
    server.serves_ranges = False
    server.moods = [{"drop_after": 300_000}, {"drop_after": 200_000}]
    transfer = fetch()
    assert (tmp_path / "data").read_bytes() == DATA
    assert transfer.num_fetched == len(DATA) + 500_000


def test_a_server_without_ranges_that_always_drops_is_given_up(fetch, server, tmp_path):
    server.serves_ranges = False
    server.moods = [{"drop_after": 300_000}] * 20
    with pytest.raises(DownloadError, match="the connection ended early; 4 attempts"):
        fetch(num_retries=3)
    assert "data" not in _names(tmp_path)


def test_a_file_that_changes_between_attempts_is_not_spliced(fetch, server, tmp_path):
    server.moods = [{"drop_after": 300_000, "then": server.change_file}]
    fetch(Checksum("sha256", hashlib.sha256(OTHER).hexdigest(), None))
    assert (tmp_path / "data").read_bytes() == OTHER


def test_a_file_that_changes_between_runs_is_not_spliced(fetch, server, tmp_path):
    server.moods = [{"drop_after": 300_000}]
    with pytest.raises(DownloadError):
        fetch(num_retries=0)
    server.change_file()
    transfer = fetch(_checksum(OTHER))
    assert (tmp_path / "data").read_bytes() == OTHER
    assert transfer.num_fetched == len(OTHER)


@pytest.mark.parametrize("etag", ["", 'W/"weak"'], ids=["no validator", "weak validator"])
def test_without_a_validator_a_part_is_not_gone_on_with(fetch, server, tmp_path, etag):
    server.etag = etag
    server.moods = [{"drop_after": 300_000}]
    fetch()
    assert server.requests == [None, None]
    assert (tmp_path / "data").read_bytes() == DATA


def test_a_part_of_another_place_than_asked_for_is_not_taken(fetch, server, tmp_path):
    server.moods = [{"drop_after": 300_000}, {"shown_start": 200_000}]
    fetch()
    assert (tmp_path / "data").read_bytes() == DATA


def test_a_corrupted_byte_is_fetched_once_more(fetch, server, tmp_path):
    server.moods = [{"corrupt": 1234}]
    transfer = fetch()
    assert (tmp_path / "data").read_bytes() == DATA
    assert transfer.num_fetched == 2 * len(DATA)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_bytes_that_stay_corrupted_leave_nothing(fetch, server, tmp_path, algorithm):
    server.moods = [{"corrupt": 1234}] * 2
    with pytest.raises(DownloadError, match=rf"/data: has {algorithm} [0-9a-f]+ where [0-9a-f]+ is expected"):
        fetch(_checksum(DATA, algorithm))
    assert _names(tmp_path) == []
    assert len(server.requests) == 2


def test_a_byte_that_goes_wrong_on_the_disk_between_runs_is_found(fetch, server, tmp_path):
    server.moods = [{"drop_after": 300_000}]
    with pytest.raises(DownloadError):
        fetch(num_retries=0)
    part = bytearray((tmp_path / "data.part").read_bytes())
    part[1000] ^= 1
    (tmp_path / "data.part").write_bytes(part)
    fetch()
    assert (tmp_path / "data").read_bytes() == DATA


def test_a_part_longer_than_the_file_is_begun_again(fetch, tmp_path):
    (tmp_path / "data.part").write_bytes(DATA + b"more")
    fetch()
    assert (tmp_path / "data").read_bytes() == DATA


def test_a_whole_part_is_put_in_place_without_the_network(fetch, server, tmp_path):
    (tmp_path / "data.part").write_bytes(DATA)
    about = {"url": f"{server.address}/data", "validator": server.etag}
    (tmp_path / "data.part.json").write_text(json.dumps(about))
    assert fetch().num_fetched == 0
    assert server.requests == []
    assert _names(tmp_path) == ["data"]


def test_a_part_of_another_address_is_not_gone_on_with(fetch, server, tmp_path):
    (tmp_path / "data.part").write_bytes(DATA[:1000])
    (tmp_path / "data.part.json").write_text(json.dumps({"url": "http://other", "validator": server.etag}))
    fetch()
    assert server.requests == [None]


def test_a_body_of_another_length_than_expected_is_refused(fetch, server, tmp_path):
    server.data = DATA[:-5]
    with pytest.raises(DownloadError, match="the server has 699,996 bytes where 700,001 are expected"):
        fetch()
    assert _names(tmp_path) == []


def test_a_body_without_a_length_that_is_too_long_is_refused(fetch, server, tmp_path):
    server.moods = [{"says_length": False, "more": b"x" * 10}]
    with pytest.raises(DownloadError, match="sends more than the 700,001 bytes that are expected"):
        fetch()
    assert _names(tmp_path) == []


def test_a_body_without_a_length_that_is_too_short_is_found(fetch, server, tmp_path):
    server.moods = [{"says_length": False, "drop_after": 1000}]
    fetch()
    assert (tmp_path / "data").read_bytes() == DATA


def test_503_is_waited_for_as_long_as_the_server_asks(fetch, server):
    server.moods = [{"status": 503, "retry_after": "17"}, {"status": 429}, {"status": 500}]
    assert fetch().num_retries == 3
    assert fetch.waits == [17.0, 2.0, 4.0]


def test_progress_of_a_byte_renews_the_patience(fetch, server):
    server.moods = [mood for n in range(4) for mood in ({"status": 503}, {"drop_after": 1000 + n})]
    assert fetch(num_retries=2).num_retries == 8


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, r"has no such file; the release may have moved \(404\)"), (403, "refuses to give it"), (410, "no more")],
)
def test_a_refusal_is_told_at_once(fetch, server, tmp_path, status, message):
    server.moods = [{"status": status}]
    with pytest.raises(DownloadError, match=f"http://127.*/data: the server {message}|{message}"):
        fetch()
    assert (fetch.waits, _names(tmp_path)) == ([], [])


def test_no_network_is_told_by_address(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/data"
    config = DownloadConfig(num_retries=2)
    with pytest.raises(DownloadError, match=rf"{url}: cannot be fetched \(no connection: .*; 3 attempts\)"):
        fetch_file(url, tmp_path / "data", _checksum(), config=config, pause=lambda _: None)
    assert _names(tmp_path) == []


def test_a_server_that_says_nothing_is_left_after_the_timeout(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data"
        config = DownloadConfig(num_retries=0, timeout=0.2)
        with pytest.raises(DownloadError, match=r"cannot be fetched \(.*timed out"):
            fetch_file(url, tmp_path / "data", _checksum(), config=config)


def test_a_disk_too_small_is_told_before_a_byte_is_fetched(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="needs 700,001 bytes more, and the disk has 1,000"):
        fetch()
    assert _names(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_has_come(fetch, server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"data\.part: cannot be written \(File too large\); .*goes on with it"):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = (tmp_path / "data.part").stat().st_size
    assert 0 < kept <= 400_000
    assert fetch().num_fetched == len(DATA) - kept
    assert (tmp_path / "data").read_bytes() == DATA


def test_two_downloads_of_one_file_do_not_mix(fetch, server, tmp_path):
    seen = []

    def second():
        try:
            fetch_file(f"{server.address}/data", tmp_path / "data", _checksum())
        except OutputError as error:
            seen.append(str(error))

    server.moods = [{"drop_after": 1000, "then": second}]
    fetch()
    assert seen == [f"{tmp_path / 'data.part'}: another download is writing it"]
    assert (tmp_path / "data").read_bytes() == DATA


def test_progress_adds_up_to_the_size_of_the_file(fetch, server):
    events = []

    class Listener:
        def start(self, task, total, unit, done=0):
            events[:] = [done]
            assert (task, total, unit) == ("downloading data", len(DATA), "B")

        def advance(self, amount, **figures):
            events.append(amount)

        def finish(self):
            pass

    server.moods = [{"drop_after": 123_456}]
    fetch(progress=Listener())
    assert sum(events) == len(DATA)


def test_a_checksum_file_too_long_or_cut_off_is_refused(server):
    server.files["/sums"] = METALINK.encode()
    with pytest.raises(DownloadError, match="is longer than 10 bytes"):
        fetch_bytes(f"{server.address}/sums", limit=10)
    assert fetch_bytes(f"{server.address}/sums", limit=10_000) == METALINK.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html></html>", "is no metalink"),
        ("not XML", "is no metalink"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><metalink/>', "has a document type"),
        (METALINK.format(name="a", size="many", md5="0" * 32), "the size of a is 'many'"),
        (METALINK.format(name="a", size="1", md5="abc"), "the md5 of a is 'abc'; expected 32 hex digits"),
    ],
)
def test_what_is_no_metalink_is_refused(text, message):
    with pytest.raises(DownloadError, match=f"sums: {message}"):
        read_metalink(text.encode(), source="sums")


def test_a_metalink_of_version_4_is_read_by_its_strongest_digest():
    text = (
        '<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="x/a.gz"><size>5</size>'
        f'<hash type="md5">{"1" * 32}</hash><hash type="sha-256">{"2" * 64}</hash></file></metalink>'
    )
    assert read_metalink(text.encode(), source="sums").files == {"a.gz": Checksum("sha256", "2" * 64, 5)}


@pytest.fixture
def release(server, tmp_path):
    """A release of one FASTA file whose publisher has a metalink."""
    server.data = FASTA
    md5 = hashlib.md5(FASTA).hexdigest()
    server.files["/RELEASE.metalink"] = METALINK.format(name="tiny.fasta", size=len(FASTA), md5=md5).encode()
    path = tmp_path / "tiny.toml"
    path.write_text(
        'name = "tiny"\nrelease = "current_release"\ndescription = "two \\"proteins\\""\nlicence = "CC0 1.0"\n'
        'licence_url = "none"\ncredit = "nobody"\ncitation = "none"\nheader_grammar = ">NAME"\n'
        f'[[files]]\npath = "tiny.fasta"\nurl = "{server.address}/tiny.fasta"\n'
        f'checksums = "{server.address}/RELEASE.metalink"\n[files.approximate]\n'
        'as_of = "now"\nsource = "me"\nrecords = 2\n'
    )
    return path


def test_a_release_is_fetched_pinned_and_ingested(release, tmp_path):
    report = download(release, tmp_path / "out")
    assert (report.release, _names(tmp_path / "out")) == ("2026_01", ["tiny.fasta", "tiny.toml"])
    pinned, loose = read_manifest(report.manifest), read_manifest(release)
    (file,) = pinned.files
    assert (file.sha256, file.bytes, file.checksums) == (hashlib.sha256(FASTA).hexdigest(), len(FASTA), "")
    assert (pinned.description, file.approximate) == (loose.description, loose.files[0].approximate)
    index = ingest_manifest(report.manifest, tmp_path / "corpus").index
    assert (index.manifest["release"], index.screening.num_kept) == ("2026_01", 2)


def test_a_file_that_is_there_is_verified_and_not_fetched_again(release, server, tmp_path):
    download(release, tmp_path / "out")
    (file,) = download(release, tmp_path / "out").files
    assert (file.is_new, len(server.requests)) == (False, 1)


def test_a_file_that_is_there_but_another_is_kept_and_told(release, server, tmp_path):
    download(release, tmp_path / "out")
    (tmp_path / "out" / "tiny.fasta").write_bytes(FASTA.replace(b"M", b"A"))
    with pytest.raises(DownloadError, match=r"tiny\.fasta: has md5 .* is expected.*; move it away"):
        download(release, tmp_path / "out")
    assert (tmp_path / "out" / "tiny.fasta").read_bytes() == FASTA.replace(b"M", b"A")


def test_a_pinned_manifest_refuses_a_later_release(release, server, tmp_path):
    report = download(release, tmp_path / "out")
    server.data = FASTA.replace(b"M", b"A")
    with pytest.raises(DownloadError, match=r"tiny\.fasta: has sha256 .* is expected"):
        download(report.manifest, tmp_path / "again")
    assert _names(tmp_path / "again") == []


def test_a_file_that_the_metalink_does_not_name_is_refused(release, server, tmp_path):
    server.files["/RELEASE.metalink"] = METALINK.format(name="other", size=1, md5="0" * 32).encode()
    with pytest.raises(DownloadError, match=r"RELEASE\.metalink: has no checksum of tiny\.fasta"):
        download(release, tmp_path / "out")


def test_a_damaged_file_is_refused_at_ingestion(release, tmp_path):
    report = download(release, tmp_path / "out")
    (tmp_path / "out" / "tiny.fasta").write_bytes(FASTA.replace(b"M", b"A"))
    with pytest.raises(ManifestError, match=r"tiny\.fasta: sha256 is"):
        ingest_manifest(report.manifest, tmp_path / "corpus")


def test_the_manifest_of_files_that_lie_beside_it_has_nothing_to_download(tmp_path):
    with pytest.raises(ManifestError, match=r"has no url for sample/.*; ingest it as it is"):
        download("uniprotkb_sample", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_manifests_are_found_by_path_and_by_name(release):
    assert find_manifest(release) == release
    assert find_manifest("uniref50") == shipped_manifests()["uniref50"]
    with pytest.raises(
        ManifestError, match=r"unirf50: no such file, and no manifest of that name; did you mean 'uniref50'\?"
    ):
        find_manifest("unirf50")
    with pytest.raises(ManifestError, match="expected a path, or one of swissprot, trembl"):
        find_manifest(Path("nowhere.xyz"))
