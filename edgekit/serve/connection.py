"""uvicorn's connection, which is also closed when it keeps a place and asks nothing.

What uvicorn bounds by itself: the size of a head, and the silence between two requests. What it
does not: a head that never ends, and a body that goes on after its answer. Whoever does not read
an answer is a matter for the kernel: `drop_unread`.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0
"""So long may a head take, or the rest of a body whose answer was sent."""


class Connection(H11Protocol):
    """One connection of a client."""

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; it has `HEAD_SECONDS` to ask something."""
        super().connection_made(transport)
        self._be_impatient()

    def data_received(self, data: bytes) -> None:
        """Take what came; the time runs unless that was a question."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._be_patient()
        elif self._impatience is None:
            self._be_impatient()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._be_patient()
        super().connection_lost(exc)

    def _be_impatient(self) -> None:
        self._impatience = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


def drop_unread(sock: socket.socket, seconds: float) -> None:
    """Reset the connections that `sock` accepts when an answer stays unread for so long.

    Linux; elsewhere they stay until the client closes them.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1e3))
