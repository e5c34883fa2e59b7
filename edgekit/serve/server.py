"""uvicorn around the application: a socket that is known to be free, and an end in good order.

SIGTERM drains: no new requests, `/health` says so, answers in work are finished within `drain_s`,
and the process ends with 0. So does the first Ctrl-C, with 130 at the end; a second one, or a
second SIGTERM, waits for nobody. An engine that answers no more ends it with 4. Each of these is
also told to systemd, if it asked (`notify`).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from edgekit.errors import BackendError, InputError
from edgekit.runtime.asking import Asker
from edgekit.serve.app import make_app
from edgekit.serve.connection import Connection, drop_unread
from edgekit.serve.notify import keep_watchdog, notify
from edgekit.serve.service import Service
from edgekit.serve.settings import Settings

_IDLE_SECONDS = 30
"""Connections that say nothing between two requests are closed."""
_LONGEST_HEAD_BYTES = 64 * 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one. Raises `InputError`.

    It does not listen yet: until the engine is loaded connections are refused, not kept waiting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as exc:
        sock.close()
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise InputError(
            f"cannot listen on {host}:{port}: {reason.lower()}",
            hint="another `--port`, or 0 for one that is free",
        ) from exc
    return sock


def serve(
    asker: Asker, settings: Settings, sock: socket.socket, *, on_ready: Callable[[], None]
) -> None:
    """Answer requests until a signal.

    Raises `KeyboardInterrupt` after Ctrl-C, `BackendError` when the engine answers no more.
    """
    server = make_server(asker, settings, on_ready=lambda _: on_ready())
    asyncio.run(server.serve([sock]))
    if server.was_interrupted:
        raise KeyboardInterrupt
    if server.is_lost:
        raise BackendError(
            "the engine answers no more: see the log for why",
            hint="start it again; a service manager does that by itself",
        )


def make_server(
    asker: Asker, settings: Settings, *, on_ready: Callable[[Service], None]
) -> EngineServer:
    """A server that has not begun: `serve([socket])` is its life.

    `on_ready` is called when it listens.
    """

    def made(service: Service) -> None:
        server.service = service

    config = uvicorn.Config(
        make_app(asker, settings, on_made=made),
        log_config=None,
        access_log=False,
        lifespan="on",
        http=Connection,
        loop="asyncio",
        ws="none",
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        h11_max_incomplete_event_size=_LONGEST_HEAD_BYTES,
        limit_concurrency=settings.queue_limit + 1024,
    )
    server = EngineServer(config)
    server.on_ready = on_ready
    server.stall_s = settings.stall_s
    return server


class EngineServer(uvicorn.Server):
    """uvicorn's server with our ways to end."""

    service: Service | None = None
    on_ready: Callable[[Service], None]
    stall_s: float
    was_interrupted = False
    _watchdog: asyncio.Task[None] | None = None
    is_lost = False
    """The engine was given up."""

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends it. Whoever restarts it gets an engine that answers."""
        if self.service is not None and self.service.scheduler.status().state == "failed":
            self.is_lost = True
            return True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        for sock in sockets or ():
            drop_unread(sock, self.stall_s)
        await super().startup(sockets)
        if self.service is not None and not self.should_exit:
            self.on_ready(self.service)
            notify(f"READY=1\nSTATUS=serving {self.service.model_name}")
            self._watchdog = asyncio.create_task(keep_watchdog(self.service.is_well))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is in work; the watchdog goes on until then."""
        notify("STOPPING=1\nSTATUS=finishing what is in work")
        try:
            await super().shutdown(sockets)
        finally:
            if self._watchdog is not None:
                self._watchdog.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again when all is done.

        Signals come to the main thread only; elsewhere `should_exit` ends it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        names = (signal.SIGINT, signal.SIGTERM)
        for name in names:
            loop.add_signal_handler(name, self._on_signal, name)
        try:
            yield
        finally:
            for name in names:
                loop.remove_signal_handler(name)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self.was_interrupted = True
        if self.should_exit:
            self.force_exit = True
            if self.service is not None:
                self.service.stop()
            return
        self.should_exit = True
        if self.service is not None:
            self.service.begin_to_end()
