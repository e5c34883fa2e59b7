"""Servers on real sockets, over engines that say given texts or answer anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import openai
import pytest

from edgekit.runtime.asking import Asker
from edgekit.runtime.load import LoadedEngine
from edgekit.serve.server import listen, make_server
from edgekit.serve.service import Service
from edgekit.serve.settings import Settings

Serve = Callable[..., "Running"]
Client = TypeVar("Client")


class Running:
    """A server in a thread of its own, with an event loop of its own."""

    def __init__(self, engine: LoadedEngine, settings: Settings) -> None:
        self.engine = engine
        self._settings = settings
        self._ready = threading.Event()
        self.service: Service
        self._clients: list[Any] = []
        sock = listen("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(
            Asker(engine, notify=lambda _: None), settings, on_ready=self._is_ready
        )
        self._sock = sock
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve([self._sock])

    def break_off(self) -> None:
        """As if the network were gone: every connection ends where it is."""

        def abort() -> None:
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def _is_ready(self, service: Service) -> None:
        self.service = service
        self._ready.set()

    @property
    def num_connections(self) -> int:
        """Open ones."""
        return len(self._server.server_state.connections)

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        return self.kept(openai.OpenAI(**{**given, **options}))

    def kept(self, client: Client) -> Client:
        """A client whose connections are closed before the server is."""
        self._clients.append(client)
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def serve(
    make_engine: Callable[..., LoadedEngine], make_session: Callable[..., Any]
) -> Iterator[Serve]:
    """`serve("text", …)` says these texts one after the other; `serve()` answers anything, in
    several slots."""
    servers = []

    def start(
        *says: str,
        model: str = "tiny",
        num_slots: int = 3,
        context_tokens: int = 900,
        **settings: Any,
    ) -> Running:
        engine = make_engine(*says, model=model, context_tokens=context_tokens)
        if not says:
            session = make_session(
                context_tokens=context_tokens,
                num_slots=num_slots,
                vocab_size=engine.session.vocab_size,
            )
            engine = replace(engine, session=session)
        server = Running(engine, Settings(**settings))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
