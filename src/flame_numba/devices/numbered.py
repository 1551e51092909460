"""The streams of a machine that has no queues: they are but numbers."""

from __future__ import annotations

from itertools import count

from .base import Stream


class NumberedStreams:
    """The part of a backend that hands numbers out, those first that were given back. Any thread or finalizer may ask.

    A number stands for a queue that never ends, as a driver's handle does that is kept and handed out again: whoever
    still remembers it from the stream before waits for the queue, so for too much at worst.
    """

    def __init__(self) -> None:
        self.spare_streams: list[Stream] = []
        self._numbers = count(1)

    def new_stream(self) -> Stream:
        try:
            return self.spare_streams.pop()
        except IndexError:
            return next(self._numbers)

    def owns_stream(self, stream: Stream) -> bool:
        return True  # a number never ends

    def destroy_stream(self, stream: Stream) -> None:
        self.spare_streams.append(stream)
