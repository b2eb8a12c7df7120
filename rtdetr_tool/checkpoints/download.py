"""Read URLs over HTTP(S) with limits on time and size; downloads resume, and are complete and verified or absent."""

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
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from rtdetr_tool.errors import DownloadError
from rtdetr_tool.files import replacing
from rtdetr_tool.progress import Task
from rtdetr_tool.version import package_version

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

SCHEMES = ("http", "https")
STALL = 30.0  # seconds without a byte after which a connection counts as broken
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt; twice as long before each further one
_PART = 1 << 18  # bytes read at once


class _Interrupted(Exception):
    """The server is busy or the connection ended too early; another attempt may continue from there."""


def is_url(text: str) -> bool:
    """Whether a text is a URL of any scheme (`https://...`) and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def read_url(url: str, *, max_bytes: int, seconds: float) -> bytes:
    """The content at a URL.

    Raises:
        DownloadError: a scheme other than http and https, also after a redirect; no complete response within `seconds`;
            more than `max_bytes`; an error status.
    """
    content, end = bytearray(), time.monotonic() + seconds
    try:
        with _open(url, end, STALL) as response:
            for part in _parts(response, end):
                content += part
                if len(content) > max_bytes:
                    raise DownloadError(f"{public_url(url)} is too large; expected at most {_size(max_bytes)}")
    except _Interrupted as error:
        raise DownloadError(f"{public_url(url)} cannot be read: {error}") from None
    return bytes(content)


def download(
    url: str, path: str | os.PathLike[str], *, md5: str | None, seconds: float = 3600.0, stall: float = STALL
) -> Path:
    """Download a URL to the file `path`, which appears once it is complete and verified.

    After a broken connection the partial content is kept in `.<name>.part`; the next attempt or call continues from it.
    Processes that download the same file wait for the first one.

    Args:
        md5: expected MD5 of the content, in hexadecimal digits; None if its publisher states none.
        seconds: time limit of all attempts together.
        stall: seconds without a byte after which a connection counts as broken.

    Raises:
        DownloadError: as for `read_url`, or because of a wrong hash or a full disk.
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


def _complete(url: str, file: Path, md5: str | None, end: float, stall: float) -> None:
    """Append to `file` until it has the whole content at `url`, in several attempts."""
    for attempt in range(ATTEMPTS):
        try:
            return _resume(url, file, md5, end, stall)
        except _Interrupted as error:
            reason, pause = error, PAUSE * 2**attempt
        if attempt + 1 == ATTEMPTS or time.monotonic() + pause > end:
            break
        time.sleep(pause)
        logger.info("Resuming the download of %s at %s (%s)", public_url(url), _size(file.stat().st_size), reason)
    raise DownloadError(f"{public_url(url)} cannot be downloaded: {reason}; the partial file is kept as {file}")


def _resume(url: str, file: Path, md5: str | None, end: float, stall: float) -> None:
    """One attempt: request the rest of the content and append it."""
    have = file.stat().st_size
    with _open(url, end, stall, have) as response:
        if response.status_code != 206:  # the server sends everything, or has less than the partial file
            os.truncate(file, 0)
        if response.status_code == 416:
            raise _Interrupted("the partial file does not match the content")
        have = file.stat().st_size
        length = response.headers.get("Content-Length", "")
        total = (have + int(length)) >> 20 if length.isdigit() else None
        with (
            file.open("ab") as stream,
            Task(f"Downloading {Path(urlsplit(url).path).name}", total, "MiB", have >> 20) as task,
        ):
            for part in _parts(response, end):
                stream.write(part)
                task.advance((stream.tell() >> 20) - task.done)
    if md5 is not None and (actual := md5_of(file)) != md5:
        os.truncate(file, 0)
        if have:
            raise _Interrupted("the partial file does not match the content")
        raise DownloadError(f"{public_url(url)} is not the published file: its MD5 is {actual}; expected {md5}")


@contextmanager
def _open(url: str, end: float, stall: float, have: int = 0) -> Iterator[requests.Response]:
    """The response for the content at `url` after the first `have` bytes, with its headers read.

    The request runs in its own thread: a server may send its headers byte by byte, which no socket timeout interrupts.
    """
    import requests

    _check_scheme(url)
    seconds = max(end - time.monotonic(), 0.01)
    answer: concurrent.futures.Future[requests.Response] = concurrent.futures.Future()
    threading.Thread(target=_ask, args=(answer, url, min(seconds, stall), have), daemon=True).start()
    try:
        response = answer.result(seconds)
    except (concurrent.futures.TimeoutError, requests.Timeout):
        raise _Interrupted(f"no response within {min(seconds, stall):.3g} s") from None
    except requests.ConnectionError as error:
        raise _Interrupted(_reason(error)) from None
    except DownloadError:
        raise
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(f"{public_url(url)} cannot be read: {_reason(error)}") from None
    with response:
        code = response.status_code
        if code in (429, 500, 502, 503, 504):
            raise _Interrupted(f"the server returned {code} {response.reason}")
        if code // 100 != 2 and not (have and code == 416):
            raise DownloadError(f"{public_url(url)} cannot be read: the server returned {code} {response.reason}")
        yield response


def _ask(answer: concurrent.futures.Future[requests.Response], url: str, stall: float, have: int) -> None:
    import requests

    headers = {"User-Agent": f"rtdetr/{package_version()}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    hooks = {"response": _check_redirect}
    try:
        answer.set_result(requests.get(url, headers=headers, hooks=hooks, stream=True, timeout=stall))
    except Exception as error:
        answer.set_exception(error)


def _check_redirect(response: requests.Response, **_: Any) -> None:
    target = urljoin(response.url, response.headers.get("location", ""))
    _check_scheme(target, f"{public_url(response.url)} redirects to ")


def _check_scheme(url: str, before: str = "") -> None:
    if url.partition("://")[0].lower() not in SCHEMES:
        raise DownloadError(f"{before}{public_url(url)}, which is not supported; use {' or '.join(SCHEMES)}")


def _parts(response: requests.Response, end: float) -> Iterator[bytes]:
    """The body in parts as they arrive; `_Interrupted` if it ends before its stated length or time runs out."""
    import urllib3

    try:
        while part := response.raw.read1(_PART):
            yield part
            if time.monotonic() > end:
                raise _Interrupted("the time limit was reached")
    except urllib3.exceptions.ReadTimeoutError:
        raise _Interrupted("the connection stalled") from None
    except urllib3.exceptions.HTTPError as error:
        raise _Interrupted(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """The root cause of an error of requests; its text may contain the whole URL and secrets."""
    while root := error.__cause__ or error.__context__:
        error = root
    return getattr(error, "strerror", None) or type(error).__name__


def public_url(url: str) -> str:
    """A URL for messages: without user, password, query and fragment, which may contain secrets."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])[:200]


def md5_of(path: str | os.PathLike[str]) -> str:
    """The MD5 of a file in hexadecimal digits, as publishers state it to detect corruption."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.1f} MB"
