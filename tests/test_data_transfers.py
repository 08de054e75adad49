"""Single downloads against a server on this machine; nothing here needs a network."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.data import transfers
from micronet_lib.lab.data.transfers import download, file_status, locked

PAYLOAD = os.urandom(600_000)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@dataclass
class Shelf:
    """A server of `PAYLOAD`: where, how it misbehaves, and what it saw."""

    root: str = ""
    names: set[str] = field(default_factory=lambda: {"net.t7"})  # every other one is a 404
    cut_next: int = 0  # how many of the next answers stop half-way
    stall_s: float = 0.0  # how long such an answer stays silent before it ends
    knows_range: bool = True
    status: int = 0  # answer every request with this error
    pause_s: float = 0.0  # between two pieces
    asked: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    bytes_sent: int = 0

    def url(self, name: str = "net.t7") -> str:
        return f"{self.root}/{name}"


@pytest.fixture
def shelf(monkeypatch):
    """A `Shelf` served on 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfers, "PAUSE_S", 0.01)
    shelf = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, asked = self.path.removeprefix("/"), self.headers["Range"]
            shelf.asked.append(name)
            shelf.ranges.append(asked)
            if shelf.status or name not in shelf.names:
                self.send_error(shelf.status or 404)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if not shelf.knows_range:
                start = 0
            end = len(PAYLOAD)
            if start >= end:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if shelf.cut_next:
                shelf.cut_next -= 1
                end = (start + end) // 2
            for at in range(start, end, 8192):
                piece = PAYLOAD[at : min(at + 8192, end)]
                # Counted first: the client may have read it, and the test ended,
                # before this thread goes on.
                shelf.bytes_sent += len(piece)
                try:
                    self.wfile.write(piece)
                except OSError:
                    return
                time.sleep(shelf.pause_s)
            if end < len(PAYLOAD):
                time.sleep(shelf.stall_s)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    shelf.root = f"http://127.0.0.1:{server.server_port}"
    yield shelf
    server.shutdown()
    server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "kaist" / "net.t7"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def get(urls: list[str], target: Path, digest: str = SHA256) -> None:
    download(urls, target, digest, "sha256")


def test_plain_download(shelf, target, capsys, monkeypatch):
    # TQDM_DISABLE may be set around the tests; an argument wins over it.
    monkeypatch.setattr(transfers, "tqdm", partial(transfers.tqdm, disable=False))
    get([shelf.url()], target)
    assert target.read_bytes() == PAYLOAD
    assert names_in(target.parent) == {"net.t7"}
    assert shelf.ranges == [None]
    seen = capsys.readouterr()
    assert "net.t7:" in seen.err, "the progress bar belongs on stderr"
    assert seen.out == ""


def test_cut_connection_resumes_with_a_range(shelf, target):
    shelf.cut_next = 1
    get([shelf.url()], target)
    assert target.read_bytes() == PAYLOAD
    assert shelf.ranges == [None, f"bytes={len(PAYLOAD) // 2}-"]
    assert shelf.bytes_sent == len(PAYLOAD)


def test_silent_server_times_out_and_resumes(shelf, target, monkeypatch):
    monkeypatch.setattr(transfers, "TIMEOUT_S", 0.3)
    shelf.cut_next, shelf.stall_s = 1, 20.0
    begun = time.monotonic()
    get([shelf.url()], target)
    assert time.monotonic() - begun < 10
    assert target.read_bytes() == PAYLOAD
    assert shelf.ranges == [None, f"bytes={len(PAYLOAD) // 2}-"]


def test_server_without_range_starts_again(shelf, target):
    shelf.cut_next, shelf.knows_range = 1, False
    get([shelf.url()], target)
    assert target.read_bytes() == PAYLOAD
    assert shelf.ranges[1] is not None


def test_connection_that_is_always_cut_gives_up_and_keeps_the_part(shelf, target):
    shelf.cut_next = 100
    with pytest.raises(InputError, match="the connection ended after"):
        get([shelf.url()], target)
    assert len(shelf.ranges) == transfers.ATTEMPTS
    assert names_in(target.parent) == {"net.t7.part"}
    shelf.cut_next = 0
    get([shelf.url()], target)
    assert target.read_bytes() == PAYLOAD
    assert shelf.bytes_sent == len(PAYLOAD)


def test_partial_file_longer_than_the_published_one_is_dropped(shelf, target):
    target.parent.mkdir()
    target.with_name("net.t7.part").write_bytes(b"x" * (len(PAYLOAD) + 1))
    get([shelf.url()], target)
    assert target.read_bytes() == PAYLOAD


def test_whole_partial_file_needs_no_network(target):
    target.parent.mkdir()
    target.with_name("net.t7.part").write_bytes(PAYLOAD)
    get(["http://127.0.0.1:1/net.t7"], target)
    assert names_in(target.parent) == {"net.t7"}


def test_wrong_digest_deletes_and_tells_both(shelf, target):
    with pytest.raises(InputError) as raised:
        get([shelf.url("old/net.t7"), shelf.url()], target, digest="0" * 64)
    message = str(raised.value)
    assert message.startswith(f"net.t7 from {shelf.url()} has the wrong sha256")
    assert "expected " + "0" * 64 in message
    assert f"got {SHA256}" in message
    assert names_in(target.parent) == set()


def test_address_without_the_file_gives_way_to_the_next(shelf, target):
    # The connection breaks too: the address that has the file must be the one to go on with.
    shelf.cut_next = 1
    get([shelf.url("old/net.t7"), shelf.url(), shelf.url("third/net.t7")], target)
    assert target.read_bytes() == PAYLOAD
    assert shelf.asked == ["old/net.t7", "net.t7", "net.t7"]
    assert shelf.ranges == [None, None, f"bytes={len(PAYLOAD) // 2}-"]


def test_partial_file_goes_on_at_the_next_address(shelf, target):
    target.parent.mkdir()
    target.with_name("net.t7.part").write_bytes(PAYLOAD[:1000])
    get([shelf.url("old/net.t7"), shelf.url()], target)
    assert target.read_bytes() == PAYLOAD
    assert shelf.bytes_sent == len(PAYLOAD) - 1000


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (404, ["net.t7", "other/net.t7"]),
        (403, ["net.t7"]),
        (503, ["net.t7"] * transfers.ATTEMPTS),
    ],
)
def test_http_error_is_one_line_with_the_way_by_hand(shelf, target, status, asked):
    shelf.status = status
    with pytest.raises(InputError, match=f"HTTP Error {status}") as raised:
        get([shelf.url(), shelf.url("other/net.t7")], target)
    message = str(raised.value)
    assert "\n" not in message
    for part in (shelf.url(), shelf.url("other/net.t7"), SHA256, str(target)):
        assert part in message
    assert shelf.asked == asked


def test_no_server_is_one_line_at_once(target, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("no network, so no retry"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(InputError, match=r"cannot download net\.t7") as raised:
        get([f"http://127.0.0.1:{port}/net.t7"], target)
    message = str(raised.value)
    assert "\n" not in message
    for part in (SHA256, str(target)):
        assert part in message


DOWNLOAD_SCRIPT = """
import sys
from pathlib import Path
from micronet_lib.lab.data.transfers import download, locked
url, target, digest = sys.argv[1:]
with locked(Path(target).parent):
    download([url], Path(target), digest, "sha256")
"""


def test_killed_download_goes_on(shelf, tmp_path):
    target, part = tmp_path / "net.t7", tmp_path / "net.t7.part"
    shelf.pause_s = 0.02
    child = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD_SCRIPT, shelf.url(), str(target), SHA256],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 100_000):
            assert child.poll() is None, "the download ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(InputError, match="another fetch into"), locked(tmp_path):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert names_in(tmp_path) == {"net.t7.part"}
    kept = part.stat().st_size
    shelf.pause_s = 0.0
    with locked(tmp_path):
        get([shelf.url()], target)
    assert target.read_bytes() == PAYLOAD
    assert names_in(tmp_path) == {"net.t7"}
    assert shelf.ranges == [None, f"bytes={kept}-"]


def test_file_status_tells_four_cases(tmp_path):
    path = tmp_path / "net.t7"
    assert file_status(path, SHA256, "sha256") == "missing"
    path.write_bytes(PAYLOAD)
    assert file_status(path, SHA256, "sha256") == "ok"
    assert file_status(path, hashlib.md5(PAYLOAD).hexdigest(), "md5") == "ok"
    assert file_status(path / "below", SHA256, "sha256") == "missing"
    path.write_bytes(PAYLOAD[:-1])
    assert file_status(path, SHA256, "sha256") == "wrong digest"
    assert file_status(tmp_path, SHA256, "sha256") == "unreadable"
