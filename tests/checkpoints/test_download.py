"""Downloads from a local server: complete and verified, or absent with a reason."""

from __future__ import annotations

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rtdetr_tool.checkpoints import download as downloads
from rtdetr_tool.checkpoints.download import download, is_url, public_url, read_url
from rtdetr_tool.errors import DownloadError

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Responds by path; requests are recorded in `server.seen`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range")))
        getattr(self, "answer_" + self.path.strip("/").split("/")[0])()
        self.close_connection = True

    def send_body(self, body: bytes, status: int = 200, stated: int | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if stated is None else stated))
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start >= len(CONTENT):
            return self.send_body(b"", 416)
        self.send_body(CONTENT[start:], 206 if start else 200)

    def answer_whole(self):  # a server without support for Range
        self.send_body(CONTENT)

    def answer_cut(self):  # every connection sends 400 kB more and breaks
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        rest = CONTENT[start:]
        self.send_body(rest[:400_000], 206 if start else 200, stated=len(rest))

    def answer_busy(self):  # twice
        busy = len(self.server.seen) < 3
        self.send_body(b"", 503) if busy else self.send_body(CONTENT)

    def answer_missing(self):
        self.send_body(b"<html>no</html>", 404)

    def answer_drip(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.trickle(b"x" * 1000)

    def answer_head(self):  # headers that never end
        self.trickle(b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 1000)

    def trickle(self, content: bytes):
        try:
            for number in range(len(content)):
                self.wfile.write(content[number : number + 1])
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            return

    def answer_silent(self):
        self.server.release.wait(20)

    def answer_endless(self):  # without a length
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.release.is_set():
                self.wfile.write(bytes(1 << 16))
        except OSError:
            return

    def answer_to(self):
        self.send_response(302)
        self.send_header("Location", self.server.location)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen, server.release, server.location = [], threading.Event(), "/good"
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.01)


def read(url: str, max_bytes: int = 2_000_000, seconds: float = 10.0) -> bytes:
    return read_url(url, max_bytes=max_bytes, seconds=seconds)


def test_a_url_is_read_after_a_redirect(server):
    assert read(f"{server.url}/good") == CONTENT
    assert read(f"{server.url}/to") == CONTENT


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_refused(server, location):
    server.location = location
    with pytest.raises(
        DownloadError, match=f"/to redirects to {location.rstrip('/')}.*not supported; use http or https"
    ):
        read(f"{server.url}/to")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/x.png", "data://text/plain,x"])
def test_only_http_is_read(url):
    with pytest.raises(DownloadError, match="not supported; use http or https"):
        read(url)


def test_a_circular_redirect_ends(server):
    server.location = "/to"
    with pytest.raises(DownloadError, match="/to cannot be read: TooManyRedirects"):
        read(f"{server.url}/to")


def test_an_invalid_url_is_reported_without_its_secrets(server):
    for url in (
        "http://me:secret@/x?token=secret",
        "http://host:port/?secret",
        "http://[1/?secret",
        "http://.a/#secret",
    ):
        assert is_url(url)
        with pytest.raises(DownloadError, match="cannot be read") as caught:
            read(url)
        assert "secret" not in str(caught.value)
    server.location = "http://[1/?secret"
    with pytest.raises(DownloadError, match="cannot be read"):
        read(f"{server.url}/to?secret")


def test_a_missing_file_is_reported_with_the_response(server):
    with pytest.raises(DownloadError, match=r"/missing cannot be read: the server returned 404 Not Found"):
        read(f"{server.url}/missing")


@pytest.mark.parametrize("path", ["good", "endless"])
def test_content_beyond_the_limit_is_not_read(server, path):
    with pytest.raises(DownloadError, match=f"/{path} is too large; expected at most 0.5 MB"):
        read(f"{server.url}/{path}", max_bytes=500_000)


@pytest.mark.parametrize("path", ["drip", "head", "silent"])
def test_a_slow_server_is_abandoned_after_the_time_limit(server, path):
    start = time.monotonic()
    with pytest.raises(DownloadError, match=f"/{path} cannot be read"):
        read(f"{server.url}/{path}", seconds=0.5)
    assert time.monotonic() - start < 15  # the server takes 20 seconds or more


def test_an_unreachable_server_is_reported():
    with pytest.raises(DownloadError, match=r"^http://127.0.0.1:9/x cannot be read: Connection refused$"):
        read("http://127.0.0.1:9/x?token=secret")


def test_a_file_is_complete_and_the_only_one(server, tmp_path):
    path = download(f"{server.url}/good", tmp_path / "new" / "file.pth", md5=MD5)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["file.pth"]


def test_a_broken_connection_is_resumed(server, tmp_path):
    path = download(f"{server.url}/cut", tmp_path / "file.pth", md5=MD5)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.seen] == [None, "bytes=400000-", "bytes=800000-"]


def test_another_call_resumes_from_the_partial_file(server, tmp_path):
    (tmp_path / ".file.pth.part").write_bytes(CONTENT[:300_000])
    assert download(f"{server.url}/good", tmp_path / "file.pth", md5=MD5).read_bytes() == CONTENT
    assert server.seen == [("/good", "bytes=300000-")]


@pytest.mark.parametrize("beginning", [b"wrong" * 10, CONTENT + b"more"])
def test_a_wrong_partial_file_is_discarded(server, tmp_path, beginning):
    (tmp_path / ".file.pth.part").write_bytes(beginning)
    assert download(f"{server.url}/good", tmp_path / "file.pth", md5=MD5).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    (tmp_path / ".file.pth.part").write_bytes(CONTENT[:1000])
    assert download(f"{server.url}/whole", tmp_path / "file.pth", md5=MD5).read_bytes() == CONTENT


def test_a_busy_server_is_retried(server, tmp_path):
    assert download(f"{server.url}/busy", tmp_path / "file.pth", md5=MD5).read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_a_wrong_hash_leaves_no_file(server, tmp_path):
    with pytest.raises(DownloadError, match=f"is not the published file: its MD5 is {MD5}; expected 0000"):
        download(f"{server.url}/good", tmp_path / "file.pth", md5="0000")
    assert not (tmp_path / "file.pth").exists()
    assert (tmp_path / ".file.pth.part").stat().st_size == 0


@pytest.mark.parametrize("path", ["silent", "drip"])
def test_a_download_ends_when_its_time_is_over(server, tmp_path, path):
    start = time.monotonic()
    with pytest.raises(DownloadError, match=f"/{path} cannot be downloaded"):
        download(f"{server.url}/{path}", tmp_path / "file.pth", md5=MD5, seconds=0.6, stall=0.2)
    assert time.monotonic() - start < 15  # the server takes 20 seconds or more
    assert not (tmp_path / "file.pth").exists()


def test_two_concurrent_downloads_load_the_file_once(server, tmp_path):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(download(f"{server.url}/cut", tmp_path / "f.pth", md5=MD5)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and (tmp_path / "f.pth").read_bytes() == CONTENT
    assert len(server.seen) == 3  # the three pieces
    assert [file.name for file in tmp_path.iterdir()] == ["f.pth"]


def test_an_unwritable_folder_is_reported(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        download(f"{server.url}/good", tmp_path / "file" / "weights.pth", md5=MD5)


def test_urls_in_messages_have_no_secrets():
    assert public_url("https://me:secret@host/a/b?token=1#x") == "https://host/a/b"
    assert [is_url(text) for text in ("http://a/b", "file:///a", "a/b.png", r"C:\a", "/a://b")] == [
        True, True, False, False, False,
    ]  # fmt: skip
