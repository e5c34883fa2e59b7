"""Chromium, and the page of a server in it, watched: nothing may be refused to it or go wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.serve.conftest import Running

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip
Open = Callable[..., "Shown"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Where it is not installed these tests fail: they are not skipped.

    One for each module, for as long as it is driven no other test could run an event loop.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(f"none of {', '.join(NAMES)} is installed: run `scripts/chromium`")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


class Shown:
    """The page of a server, as somebody sees it."""

    def __init__(self, server: Running, page: Page) -> None:
        self.server = server
        self.page = page
        self.problems: list[str] = []
        """What went wrong in it: errors, warnings, and what its policy forbade."""
        self.expected: tuple[str, ...] = ()
        """Words of problems that a test brings about."""
        self.requests: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(server.url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.text} ({message.location.get('url')})")

    def ask(self, text: str = "Hello?") -> None:
        """Write a question and send it."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send").click()

    def wait(self) -> None:
        """Until it answers no more."""
        self.page.get_by_role("button", name="Send").wait_for()

    @property
    def answer(self) -> Any:
        """The text of the last answer, an element."""
        return self.page.locator(".answer .written").last

    def check(self) -> None:
        """Nothing went wrong and nothing was asked of anybody else."""
        unexpected = [p for p in self.problems if not any(word in p for word in self.expected)]
        assert unexpected == []
        assert [url for url in self.requests if not url.startswith(f"{self.server.url}/")] == []


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """`show(server, **context)`: its page in a window of its own; checked at the end."""
    contexts: list[BrowserContext] = []
    shown: list[Shown] = []

    def open_page(server: Running, **options: Any) -> Shown:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        shown.append(Shown(server, context.new_page()))
        return shown[-1]

    yield open_page
    try:
        for one in shown:
            one.check()
    finally:
        for context in contexts:
            context.close()


@pytest.fixture
def slow_down(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`slow_down(server, seconds)`: each token takes so long."""

    def slow(server: Running, seconds: float = 0.02) -> None:
        session: Any = server.engine.session
        decode, prefill = session.decode, session.prefill

        def decode_slowly(*args: Any) -> Any:
            time.sleep(seconds)
            return decode(*args)

        def prefill_slowly(*args: Any, num_logits: int = 1) -> Any:
            time.sleep(seconds * (num_logits - 1))  # guesses that are checked
            return prefill(*args, num_logits=num_logits)

        monkeypatch.setattr(session, "decode", decode_slowly)
        monkeypatch.setattr(session, "prefill", prefill_slowly)

    return slow
