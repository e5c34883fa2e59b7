"""What can go wrong between the page and the server, as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.serve.conftest import Running, Serve
from tests.serve.page.conftest import Open, Shown
from tests.serve.test_openai import ASK, wait_until

pytestmark = pytest.mark.browser


def problem(shown: Shown) -> Any:
    return shown.page.locator(".answer .problem").last


@contextmanager
def one_in_work(server: Running) -> Iterator[None]:
    """Somebody else's answer, which does not end."""
    never: Any = {str(i): -100 for i in server.engine.tokenizer.stop_ids}
    stream = server.client(api_key="secret").chat.completions.create(
        model="tiny", messages=ASK, stream=True, max_tokens=800, logit_bias=never
    )
    next(iter(stream))
    yield
    stream.close()
    wait_until(lambda: server.service.scheduler.status().busy == 0)


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(serve: Serve, show: Open) -> None:
    server = serve("Welcome.", "Again.", keys=("secret",))
    shown = show(server)
    shown.expected = ("401",)
    field = shown.page.get_by_label("API key", exact=True)
    expect(field).to_be_focused()
    expect(shown.page.locator("#state")).to_have_text("needs a key")
    field.fill("wrong")
    field.press("Enter")
    expect(shown.page.locator("#key-problem")).to_have_text(
        "The server does not know this API key."
    )
    field.fill("secret")
    field.press("Enter")
    expect(shown.page.get_by_label("Message")).to_be_focused()
    expect(shown.page.locator("#model")).to_have_text("tiny")
    expect(shown.page.locator("#state")).to_have_text("0 of 1 busy")
    shown.ask()
    shown.wait()
    expect(shown.answer).to_have_text("Welcome.")
    shown.page.reload()
    expect(shown.page.locator("#model")).to_have_text("tiny")
    kept = "() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]"
    session, local, cookie = shown.page.evaluate(kept)
    assert "secret" in session
    assert "secret" not in local + cookie


def test_a_server_without_keys_shows_no_field_for_one(serve: Serve, show: Open) -> None:
    shown = show(serve("x"))
    expect(shown.page.locator("#model")).to_have_text("tiny")
    expect(shown.page.locator("#key")).to_be_hidden()
    assert shown.page.evaluate("() => sessionStorage.length") == 0


def test_a_question_that_lacked_the_key_is_asked_with_it(serve: Serve, show: Open) -> None:
    shown = show(serve("Welcome.", keys=("secret",)))
    shown.expected = ("401",)
    shown.ask()
    expect(problem(shown)).to_have_text("This server needs an API key.")
    shown.page.get_by_label("API key", exact=True).fill("secret")
    shown.page.keyboard.press("Enter")
    expect(shown.answer).to_have_text("Welcome.")


def test_a_full_queue_says_when_to_come_again(
    serve: Serve, show: Open, slow_down: Callable[..., None]
) -> None:
    server = serve(num_slots=1, queue_limit=0)
    slow_down(server)
    shown = show(server)
    shown.expected = ("429",)
    with one_in_work(server):
        shown.ask()
        expect(problem(shown)).to_contain_text("The server is busy")
        expect(problem(shown)).to_contain_text("Try again in ")
    shown.page.get_by_role("button", name="Retry").click()
    expect(problem(shown)).to_have_count(0)
    shown.page.keyboard.press("Escape")


def test_a_server_that_ends_says_so(serve: Serve, show: Open) -> None:
    server = serve("x")
    shown = show(server)
    shown.expected = ("503",)
    expect(shown.page.locator("#model")).to_have_text("tiny")
    server.service.begin_to_end()
    shown.ask()
    expect(problem(shown)).to_have_text("The server is shutting down and takes no new questions.")


def test_a_connection_lost_in_an_answer_keeps_what_had_come(
    serve: Serve, show: Open, slow_down: Callable[..., None]
) -> None:
    server = serve("so it goes on and on, " * 100)
    slow_down(server)
    shown = show(server)
    shown.expected = ("ERR_", "Failed to load")
    shown.ask()
    expect(shown.answer).to_contain_text("so it goes")
    server.break_off()
    expect(problem(shown)).to_have_text(
        "The connection to the server was lost before the answer was complete."
    )
    expect(shown.answer).to_contain_text("so it goes")
    expect(shown.page.get_by_role("button", name="Send")).to_be_visible()
    wait_until(lambda: server.service.scheduler.status().busy == 0)


def test_a_server_that_is_gone_is_missed(serve: Serve, show: Open) -> None:
    server = serve("x")
    shown = show(server)
    shown.expected = ("ERR_", "Failed to load")
    expect(shown.page.locator("#model")).to_have_text("tiny")
    server.stop()
    shown.ask()
    expect(problem(shown)).to_have_text("The server cannot be reached. Is it still running?")
    expect(shown.page.locator("#state")).to_have_text("not reachable")


@pytest.mark.slow  # the page asks how the server is every four seconds
def test_a_server_that_is_back_is_noticed(serve: Serve, show: Open) -> None:
    shown = show(serve("Here again."))
    shown.expected = ("ERR_", "Failed to load")
    state = shown.page.locator("#state")
    expect(state).to_have_text("0 of 1 busy")
    shown.page.context.set_offline(True)
    expect(state).to_have_text("not reachable")
    shown.page.context.set_offline(False)
    expect(state).to_have_text("0 of 1 busy")
    shown.ask()
    shown.wait()
    expect(shown.answer).to_have_text("Here again.")


def test_what_is_wrong_with_a_question_is_the_servers_sentence(serve: Serve, show: Open) -> None:
    shown = show(serve("x"))
    shown.expected = ("400",)
    shown.ask("word " * 500)
    expect(problem(shown)).to_contain_text("the context holds 900")


def test_an_engine_that_fails_in_an_answer_is_told(
    serve: Serve, show: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("so it goes: the quick brown fox jumps over the lazy dog")
    session: Any = server.engine.session
    decode, calls = session.decode, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 12:
            raise RuntimeError("the device fell off")
        return decode(*args)

    monkeypatch.setattr(session, "decode", fail)
    shown = show(server)
    shown.ask()
    expect(problem(shown)).to_be_visible()
    expect(shown.answer).to_contain_text("so it goes")
    expect(problem(shown)).not_to_have_text("")
