"""TensorRT's timing cache: measurements of earlier builds in a file that later builds read and extend."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import open_regular, write_atomically
from rtdetr_tool.formats.tensorrt.library import LoadedLibrary, Messages

logger = logging.getLogger(__name__)


class TimingCache:
    """The use of a cache file by one build; `state` describes the result."""

    def __init__(self, path: Path | None, loaded: LoadedLibrary, usable: bool | None = None) -> None:
        self.path, self.loaded = path, loaded
        self.usable = loaded.library.timing_cache if usable is None else usable
        self.state = "none"
        self._cache: Any = None  # must exist until the build is done

    def attach(self, config: Any, messages: Messages) -> None:
        """Pass the file's content to a build. A file that the library rejects is not changed."""
        if self.path is None:
            return
        if not self.usable:
            self.state = f"not used by {self.loaded.library.title}"
            logger.warning(
                "gen_trt_engine.timing_cache has no effect: %s does not measure during builds",
                self.loaded.library.title,
            )
            return
        content = self._read(self.path)
        self.state = "extended" if content else "new"
        if not self._offer(config, content, messages):
            self.state = "not taken"
            logger.warning(
                "gen_trt_engine.timing_cache: ignoring %s: it is not a timing cache, is corrupted, or belongs to "
                "another GPU or version of %s. Delete it to start from scratch, or set another file.",
                self.path,
                self.loaded.library.title,
            )

    def save(self, config: Any) -> None:
        """Update the file. A failure only makes later builds slower."""
        cache = config.get_timing_cache() if self._cache is not None else None
        if cache is None or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, bytes(cache.serialize()))
        except OSError as error:
            self.state = "not saved"
            logger.warning("The timing cache %s cannot be written: %s", self.path, error.strerror or error)

    def _read(self, path: Path) -> bytes:
        try:
            with open_regular(path) as file:
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UserError(f"gen_trt_engine.timing_cache: {path} cannot be read: {error.strerror}") from None

    def _offer(self, config: Any, content: bytes, messages: Messages) -> bool:
        """Whether the library accepts the content; it replaces a corrupted cache by an empty one, with a warning."""
        complaints = len(messages.warnings) + len(messages.errors)
        cache = config.create_timing_cache(content)
        accepted = cache is not None and config.set_timing_cache(cache, False)
        if accepted and complaints == len(messages.warnings) + len(messages.errors):
            self._cache = cache
        return self._cache is not None
