"""Read the images of a request, within limits, and the options in its query."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from rtdetr_tool.errors import UserError
from rtdetr_tool.messages import first_of
from rtdetr_tool.spec import ServeSpec
from rtdetr_tool.workflows.serving.predictor import Options, Predictor

_LONGEST_NAME = 100  # characters of a file name in messages
PARAMETERS = ("threshold", "class_threshold", "max_detections")
_EXPECTED = "expected the content of an image file, or multipart/form-data with one file per image"


@dataclass(frozen=True)
class Upload:
    """An image file of a request."""

    index: int
    content: bytes
    file_name: str | None = None

    @property
    def name(self) -> str:
        """What messages call it: `0` or `0 (cat.jpg)`."""
        return f"{self.index} ({self.file_name[:_LONGEST_NAME]})" if self.file_name else str(self.index)


async def read_images(request: Request, limits: ServeSpec) -> list[Upload]:
    """The image files in the body of a request; HTTPException 400, 413 or 415 for any other body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        raise HTTPException(415, f"application/json is not supported, and paths and URLs are never read; {_EXPECTED}")
    body = _limited(request, int(limits.max_body * 1e6))
    if kind == "multipart/form-data":
        return await _read_parts(request, body, limits.max_images)
    content = b"".join([chunk async for chunk in body])
    if not content:
        raise HTTPException(400, f"the request has no body; {_EXPECTED}")
    return [Upload(0, content)]


async def _limited(request: Request, largest: int) -> AsyncGenerator[bytes, None]:
    """The body in chunks; HTTPException 413 as soon as it is known to be too large."""
    size = 0
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > largest:
        raise _too_large(largest)
    async for chunk in request.stream():
        size += len(chunk)
        if size > largest:
            raise _too_large(largest)
        yield chunk


def _too_large(largest: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {largest / 1e6:g} MB (serve.max_body)")


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 62  # the body is limited, so no part needs a temporary file


async def _read_parts(request: Request, body: AsyncGenerator[bytes, None], most: int) -> list[Upload]:
    try:
        parser = _InMemory(request.headers, body, max_files=most, max_fields=most)
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise HTTPException(413, f"the request has more than {most} images (serve.max_images)") from None
        raise HTTPException(400, f"the multipart body is invalid: {error.message}") from None
    uploads: list[Upload] = []
    for name, part in form.multi_items():
        if not isinstance(part, UploadFile):
            raise HTTPException(400, f"the form field {name[:_LONGEST_NAME]!r} is not a file; {_EXPECTED}")
        uploads.append(Upload(len(uploads), await part.read(), part.filename or None))
    await form.close()
    if not uploads:
        raise HTTPException(400, f"the multipart body has no parts; {_EXPECTED}")
    return uploads


def read_options(query: QueryParams, predictor: Predictor) -> Options:
    """The options in the query of a request; UserError if one is unknown or invalid."""
    unknown = [name for name in query if name not in PARAMETERS]
    if unknown:
        raise UserError(f"{first_of(unknown)}: unknown parameter; expected {', '.join(PARAMETERS)}")
    for name in ("threshold", "max_detections"):
        if len(query.getlist(name)) > 1:
            raise UserError(f"{name}: set more than once; expected one value")
    of_classes: dict[str, float] = {}
    for text in query.getlist("class_threshold"):
        name, colon, value = text.rpartition(":")
        if not colon:
            raise UserError(f"class_threshold: {text!r} is invalid; expected <class name>:<score>")
        of_classes[name] = _score("class_threshold", value)
    threshold = _score("threshold", query["threshold"]) if "threshold" in query else None
    return predictor.options(threshold, of_classes, _count(query.get("max_detections")))


def _score(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{name}: {text!r} is invalid; expected a score from 0 to 1")
    return value


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise UserError(f"max_detections: {text!r} is invalid; expected an integer of at least 1")
    return int(text)
