"""Reading addresses over HTTP(S): limited in time and size, never to another scheme, whole or not at all."""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

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
    """The server is busy or the connection ended too early; another attempt may go on from there."""


def is_url(text: str) -> bool:
    """Whether a text is an address of any scheme (`https://...`) and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def read_url(url: str, *, max_bytes: int, seconds: float) -> bytes:
    """The content at an address.

    Raises:
        DownloadError: another scheme than http and https, also after a redirection; no answer, or not all of it, within
            `seconds`; more than `max_bytes`; an answer that is an error.
    """
    content, end = bytearray(), time.monotonic() + seconds
    try:
        with _open(url, end, STALL) as response:
            for part in _parts(response, end):
                content += part
                if len(content) > max_bytes:
                    raise DownloadError(f"{shown(url)} has more than {_size(max_bytes)}; more is not read")
    except _Interrupted as error:
        raise DownloadError(f"{shown(url)} cannot be read: {error}") from None
    return bytes(content)


def download(url: str, path: str | os.PathLike, *, md5: str, seconds: float = 3600.0, stall: float = STALL) -> Path:
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
            _complete(url, partial_file, md5, end, stall)
            with replacing(path) as temporary:
                os.replace(partial_file, temporary)
    except OSError as error:
        raise DownloadError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _complete(url: str, file: Path, md5: str, end: float, stall: float) -> None:
    """Bring `file` to the whole content at `url`, in some attempts."""
    for attempt in range(ATTEMPTS):
        try:
            return _go_on(url, file, md5, end, stall)
        except _Interrupted as error:
            reason, pause = error, PAUSE * 2**attempt
        if attempt + 1 == ATTEMPTS or time.monotonic() + pause > end:
            break
        time.sleep(pause)
        logger.info("%s: going on from %s (%s)", shown(url), _size(file.stat().st_size), reason)
    raise DownloadError(f"{shown(url)} cannot be downloaded: {reason}; what came is kept in {file}")


def _go_on(url: str, file: Path, md5: str, end: float, stall: float) -> None:
    """One attempt: ask for what `file` lacks and append it."""
    have = file.stat().st_size
    with _open(url, end, stall, have) as response:
        if response.status_code != 206:  # it sends everything, or has less than is here
            os.truncate(file, 0)
        if response.status_code == 416:
            raise _Interrupted("what was here is not its beginning")
        with file.open("ab") as stream:
            for part in _parts(response, end):
                stream.write(part)
    if (found := md5_of(file)) != md5:
        os.truncate(file, 0)
        if have:
            raise _Interrupted("what was here is not its beginning")
        raise DownloadError(f"{shown(url)} is not the published file: its MD5 is {found}, published is {md5}")


@contextmanager
def _open(url: str, end: float, stall: float, have: int = 0) -> Iterator[requests.Response]:
    """The answer to a request for what follows the first `have` bytes at `url`, its head read.

    It is asked for in a thread of its own: a server may send its head byte by byte, which no timeout of a socket ends.
    """
    _check_scheme(url)
    seconds = max(end - time.monotonic(), 0.01)
    answer: concurrent.futures.Future[requests.Response] = concurrent.futures.Future()
    threading.Thread(target=_ask, args=(answer, url, min(seconds, stall), have), daemon=True).start()
    try:
        response = answer.result(seconds)
    except (concurrent.futures.TimeoutError, requests.Timeout):
        raise _Interrupted(f"no answer within {min(seconds, stall):.3g} s") from None
    except requests.ConnectionError as error:
        raise _Interrupted(_reason(error)) from None
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(f"{shown(url)} cannot be read: {_reason(error)}") from None
    with response:
        code = response.status_code
        if code in (429, 500, 502, 503, 504):
            raise _Interrupted(f"the server answers {code} {response.reason}")
        if code // 100 != 2 and not (have and code == 416):
            raise DownloadError(f"{shown(url)} cannot be read: the server answers {code} {response.reason}")
        yield response


def _ask(answer: concurrent.futures.Future[requests.Response], url: str, stall: float, have: int) -> None:
    headers = {"User-Agent": f"rtdetr/{package_version()}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    hooks = {"response": _check_redirection}
    try:
        answer.set_result(requests.get(url, headers=headers, hooks=hooks, stream=True, timeout=stall))
    except Exception as error:
        answer.set_exception(error)


def _check_redirection(response: requests.Response, **_: Any) -> None:
    target = urljoin(response.url, response.headers.get("location", ""))
    _check_scheme(target, f"{shown(response.url)} leads to ")


def _check_scheme(url: str, before: str = "") -> None:
    if url.partition("://")[0].lower() not in SCHEMES:
        raise DownloadError(f"{before}{shown(url)}: only {' and '.join(SCHEMES)} addresses are read")


def _parts(response: requests.Response, end: float) -> Iterator[bytes]:
    """The body in pieces as they come; `_Interrupted` when it ends before its stated length or time is over."""
    try:
        while part := response.raw.read1(_PART):
            yield part
            if time.monotonic() > end:
                raise _Interrupted("it takes too long")
    except urllib3.exceptions.ReadTimeoutError:
        raise _Interrupted("nothing came any more") from None
    except urllib3.exceptions.HTTPError as error:
        raise _Interrupted(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """What lies at the root of an error of requests, whose own text may hold the whole address and its secrets."""
    while root := error.__cause__ or error.__context__:
        error = root
    return getattr(error, "strerror", None) or type(error).__name__


def shown(url: str) -> str:
    """An address for messages: without user, password, query and fragment, which may hold secrets."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])[:200]


def md5_of(path: str | os.PathLike) -> str:
    """Of a file's content, in hexadecimal digits: a check against damage, as publishers state it."""
    found = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.1f} MB"
