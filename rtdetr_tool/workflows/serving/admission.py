"""Count the images of unanswered requests, and refuse requests above a limit."""

from __future__ import annotations

from types import TracebackType


class QueueFull(Exception):
    """Too many images are waiting."""


class Admission:
    """Images in unanswered requests. All tickets are used in one thread; the numbers may be read in others.

    Attributes:
        queued: all of these images; a request that has not been read yet counts as one.
        preparing: those of them that have not been submitted to the model yet.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.queued, self.preparing = limit, 0, 0

    def ticket(self) -> Ticket:
        """The ticket of a new request with one image; QueueFull if the limit is reached."""
        return Ticket(self)


class Ticket:
    """The images of a request, which are counted until the `with` block ends."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._images, self._preparing = admission, 0, 0
        self.hold(1)

    def hold(self, images: int) -> None:
        """Set the number of images; QueueFull if there are too many."""
        admission, more = self._admission, images - self._images
        if admission.queued + more > admission.limit:
            raise QueueFull(f"{admission.queued} of {admission.limit} images are waiting")
        admission.queued += more
        admission.preparing += more
        self._images += more
        self._preparing += more

    def submitted(self) -> None:
        """All images have been submitted to the model."""
        self._admission.preparing -= self._preparing
        self._preparing = 0

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.submitted()
        self._admission.queued -= self._images
        self._images = 0
