"""Reading addresses over HTTP(S): limited in time and size, never to another scheme, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from rtdetr_tool.errors import DownloadError
from rtdetr_tool.files import replacing
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)

SCHEMES = ("http", "https")
STALL = 30.0  # seconds without a byte after which a connection counts as dead
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt; twice as long before each further one
_PART = 1 << 18  # bytes read at once


class _Interrupted(Exception):
    """The connection ended too early; another attempt may go on from there."""


def is_url(text: str) -> bool:
    """Whether a text is an address of any scheme (`https://...`) and not a path."""
    return "://" in text and urlsplit(text).scheme != ""


def read_url(url: str, *, max_bytes: int, seconds: float) -> bytes:
    """The content at an address.

    Raises:
        DownloadError: another scheme than http and https, also after a redirection; no answer, or not all of it, within
            `seconds`; more than `max_bytes`; an answer that is an error.
    """
    content = bytearray()
    try:
        with _open(url, seconds) as response:
            expected = _length(response)
            if expected is not None and expected > max_bytes:
                raise DownloadError(f"{shown(url)} has {_size(expected)}; at most {_size(max_bytes)} are read")
            for part in _parts(response, seconds):
                content += part
                if len(content) > max_bytes:
                    raise DownloadError(f"{shown(url)} has more than {_size(max_bytes)}; more is not read")
    except _Interrupted as error:
        raise DownloadError(f"{shown(url)} cannot be read: {error}") from None
    return bytes(content)


def download(
    url: str, path: str | os.PathLike, *, md5: str | None, seconds: float = 3600.0, stall: float = STALL
) -> Path:
    """The content at an address as the file `path`, which appears when it is complete and right.

    What a broken connection left is kept in `.<name>.part` and gone on from, by the next attempt or the next call.
    Processes that want the same file wait for the first one.

    Args:
        md5: of the content, in hexadecimal digits.
        seconds: for all attempts together.
        stall: without a byte.

    Raises:
        DownloadError: as `read_url`, or because of a wrong hash or a full disk.
    """
    path = Path(path)
    end = time.monotonic() + seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_name(f".{path.name}.part")
        with partial_file.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():  # another process was faster
                partial_file.unlink(missing_ok=True)
                return path
            _fill(url, partial_file, md5, end, stall)
            with replacing(path) as temporary:
                os.replace(partial_file, temporary)
    except OSError as error:
        raise DownloadError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _fill(url: str, file: Path, md5: str | None, end: float, stall: float) -> None:
    """Bring `file` to the whole content at `url`; a wrong hash is tried anew once when old bytes were part of it."""
    resumed = file.stat().st_size > 0
    _fetch_rest(url, file, end, stall)
    if md5 is None or (found := md5_of(file)) == md5:
        return
    os.truncate(file, 0)
    if resumed:
        return _fill(url, file, md5, end, stall)
    raise DownloadError(f"{shown(url)} is not the published file: its MD5 is {found}, published is {md5}")


def _fetch_rest(url: str, file: Path, end: float, stall: float) -> None:
    reason = ""
    for attempt in range(ATTEMPTS):
        left = end - time.monotonic()
        if left <= 0:
            break
        if attempt:
            time.sleep(min(PAUSE * 2 ** (attempt - 1), left))
            logger.info("%s: going on from %s (%s)", shown(url), _size(file.stat().st_size), reason)
        try:
            _append(url, file, left, stall)
            return
        except _Interrupted as error:
            reason = str(error)
    reason = reason or "the time was over"
    raise DownloadError(f"{shown(url)} cannot be downloaded: {reason}; what came is kept in {file}")


def _append(url: str, file: Path, seconds: float, stall: float) -> None:
    """One connection: ask for what `file` lacks and append it."""
    have = file.stat().st_size
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _open(url, seconds, headers, stall, tolerated=(416,)) as response:
        if response.status == 416:  # more bytes here than there: not its beginning
            os.truncate(file, 0)
            raise _Interrupted("the server has less than was here")
        if have and response.status != 206:  # it sends everything
            os.truncate(file, 0)
        with file.open("ab") as stream:
            for part in _parts(response, seconds):
                stream.write(part)


class _Redirections(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, request, answer, code, message, headers):
        target = urljoin(request.full_url, headers.get("location", ""))
        _check_scheme(target, f"{shown(request.full_url)} leads to ")
        return super().http_error_302(request, answer, code, message, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Http(urllib.request.HTTPHandler):
    """Opens connections that `remember` is told of."""

    def __init__(self, remember: Callable[[http.client.HTTPConnection], None]) -> None:
        super().__init__()
        self.remember = remember

    def http_open(self, request):
        return self.do_open(partial(_remembered, http.client.HTTPConnection, self.remember), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, remember: Callable[[http.client.HTTPConnection], None]) -> None:
        super().__init__()
        self.remember = remember

    def https_open(self, request):
        return self.do_open(partial(_remembered, http.client.HTTPSConnection, self.remember), request)


def _remembered(kind: type, remember: Callable, host: str, **options) -> http.client.HTTPConnection:
    connection = kind(host, **options)
    remember(connection)
    return connection


@contextmanager
def _open(
    url: str,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    stall: float = STALL,
    tolerated: tuple[int, ...] = (),
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for `url`, its head read within `seconds`.

    `_Interrupted` when the connection fails, DownloadError when the server answers with an error or asking is in vain.
    """
    _check_scheme(url)
    connections: list[http.client.HTTPConnection] = []
    handlers = (
        urllib.request.ProxyHandler(), _Http(connections.append), _Https(connections.append), _Redirections(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
    )  # fmt: skip
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler)
    agent = {"User-Agent": f"rtdetr/{package_version()}", "Accept-Encoding": "identity"}
    watch = threading.Timer(seconds, _cut, (connections,))  # a server may send its head byte by byte
    watch.daemon = True
    watch.start()
    start = time.monotonic()
    try:
        request = urllib.request.Request(url, headers={**agent, **(headers or {})})
        response = opener.open(request, timeout=min(seconds, stall))
    except urllib.error.HTTPError as error:
        if error.code not in tolerated:
            error.close()
            raise _refusal(url, error) from None
        response = error
    except (OSError, http.client.HTTPException, ValueError) as error:
        over = time.monotonic() - start >= seconds or isinstance(getattr(error, "reason", error), TimeoutError)
        raise _Interrupted(f"no answer within {min(seconds, stall):g} s" if over else _reason(error)) from None
    finally:
        watch.cancel()
    with response:
        yield response


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in (429, 500, 502, 503, 504):
        return _Interrupted(f"the server answers {error.code} {error.reason}")
    return DownloadError(f"{shown(url)} cannot be read: the server answers {error.code} {error.reason}")


def _parts(response: http.client.HTTPResponse, seconds: float) -> Iterator[bytes]:
    """The body in pieces as they come; `_Interrupted` when it ends before its stated length or time is over."""
    end, last, left = time.monotonic() + seconds, time.monotonic(), _length(response)
    while True:
        try:
            part = response.read1(_PART)
        except TimeoutError:
            raise _Interrupted(f"nothing came for {time.monotonic() - last:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_reason(error)) from None
        if not part:
            break
        last = time.monotonic()
        left = None if left is None else left - len(part)
        yield part
        if last > end:
            raise _Interrupted(f"it takes longer than {seconds:g} s")
    if left:
        raise _Interrupted(f"the connection was cut, {_size(left)} are missing")


def _cut(connections: list[http.client.HTTPConnection]) -> None:
    for connection in connections:
        if connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed in the meantime
                continue


def _check_scheme(url: str, before: str = "") -> None:
    if urlsplit(url).scheme.lower() not in SCHEMES:
        raise DownloadError(f"{before}{shown(url)}: only {' and '.join(SCHEMES)} addresses are read")


def _length(response: http.client.HTTPResponse) -> int | None:
    stated = response.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def shown(url: str) -> str:
    """An address for messages: without user, password, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


def md5_of(path: str | os.PathLike) -> str:
    """Of a file's content, in hexadecimal digits: a check against damage, as publishers state it."""
    found = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.1f} MB"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
