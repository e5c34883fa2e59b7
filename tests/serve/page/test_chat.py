"""A conversation in the page, from the question to what the server was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from edgekit.device import Device
from tests.serve.conftest import Serve
from tests.serve.page.conftest import Open, Shown
from tests.serve.test_openai import REASONER, wait_until

pytestmark = pytest.mark.browser
CLIPBOARD = ["clipboard-read", "clipboard-write"]


def button(shown: Shown, name: str) -> Any:
    return shown.page.get_by_role("button", name=name, exact=True)


def prompt_of(shown: Shown) -> str:
    """What the engine was given at last, and what it said."""
    session: Any = shown.server.engine.session
    text: str = shown.server.engine.tokenizer.decode(session.held[0], skip_special=False)
    return text


def watch_requests(shown: Shown) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.method == "POST":
            sent.append(json.loads(request.post_data))

    shown.page.on("request", note)
    return sent


def test_an_answer_appears_while_it_is_made_and_ends_with_its_speed(
    serve: Serve, show: Open, slow_down: Callable[..., None]
) -> None:
    server = serve("One **two** three.\n\n- four\n- five")
    slow_down(server)
    shown = show(server)
    shown.ask("Count!")
    expect(shown.answer.locator("strong")).to_have_text("two")
    expect(button(shown, "Stop")).to_be_visible()  # not complete, and shown already
    shown.wait()
    expect(shown.answer.locator("li")).to_have_text(["four", "five"])
    expect(shown.page.locator(".question .said")).to_have_text("Count!")
    size = len(
        server.engine.tokenizer.encode("One **two** three.\n\n- four\n- five", add_special=False)
    )
    note = shown.page.locator(".answer .note")
    expect(note).to_contain_text("tokens/s")
    expect(note).to_contain_text("first token")
    expect(note).to_contain_text(f"{size} tokens")
    expect(shown.page.locator("#context")).to_contain_text("of 900 tokens")


def test_thinking_is_folded_counted_while_it_goes_on_and_never_sent_again(
    serve: Serve, show: Open, slow_down: Callable[..., None]
) -> None:
    thoughts = "Hm, let me see what this could be about, then. " * 4
    server = serve(f"{thoughts}\n</think>\n\nYes.", "Again.\n</think>\n\nNo.", model=REASONER)
    slow_down(server)
    shown = show(server)
    sent = watch_requests(shown)
    shown.ask()
    summary = shown.page.locator(".thinking summary").last
    expect(summary).to_contain_text("Thinking… ")
    expect(summary).to_contain_text("words")
    shown.wait()
    expect(summary).to_contain_text("Thought for")
    expect(summary).to_contain_text("tokens")
    thought = shown.page.locator(".thought").last
    expect(thought).to_be_hidden()
    summary.click()
    expect(thought).to_be_visible()
    expect(thought).to_have_text(thoughts.strip())
    expect(shown.answer).to_have_text("Yes.")
    shown.ask("And now?")
    shown.wait()
    assert sent[1]["messages"] == [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": sent[1]["messages"][1]["content"]},
        {"role": "user", "content": "And now?"},
    ]
    assert sent[1]["messages"][1]["content"].strip() == "Yes."


def test_the_switch_and_the_budget_reach_the_model(serve: Serve, show: Open) -> None:
    server = serve(
        "a\n</think>\n\nb", "c", "One, two, three, four, five, six " * 60, model=REASONER
    )
    shown = show(server)
    switch, budget = shown.page.get_by_role("switch", name="Think"), shown.page.locator("#budget")
    expect(switch).to_be_checked()
    assert budget.locator("option").all_inner_texts() == [
        "256 tokens", "1,024 tokens", "4,096 tokens", "no limit",
    ]  # fmt: skip
    shown.ask()
    shown.wait()
    assert "detailed thinking on" in prompt_of(shown)
    switch.focus()
    shown.page.keyboard.press("Space")
    expect(budget).to_be_hidden()
    shown.ask()
    shown.wait()
    assert "detailed thinking off" in prompt_of(shown)
    button(shown, "New chat").click()
    shown.page.keyboard.press("Escape")
    switch.check()
    budget.select_option("256 tokens")
    sent = watch_requests(shown)
    shown.ask()
    expect(shown.page.locator(".thinking summary").last).to_contain_text("Thought for")
    button(shown, "Stop").or_(button(shown, "Send")).first.wait_for()
    assert sent[0]["thinking_budget"] == 256
    assert sent[0]["chat_template_kwargs"] == {"enable_thinking": True}
    shown.wait()


def test_a_model_that_does_not_think_has_no_switch(serve: Serve, show: Open) -> None:
    shown = show(serve("Hello."))
    sent = watch_requests(shown)
    expect(shown.page.locator("#facts")).to_contain_text("tiny")
    expect(shown.page.locator("#thinking")).to_be_hidden()
    shown.ask()
    shown.wait()
    assert set(sent[0]) == {"messages", "stream", "stream_options"}


def test_instructions_go_before_the_conversation(serve: Serve, show: Open) -> None:
    shown = show(serve("Aye."))
    shown.page.get_by_label("System prompt").fill("Speak like a pirate")
    shown.ask()
    shown.wait()
    assert "system\nSpeak like a pirate" in prompt_of(shown)


@pytest.mark.parametrize("way", ["button", "key", "new chat", "leave"])
def test_stopping_frees_the_slot_on_the_server(
    serve: Serve, show: Open, slow_down: Callable[..., None], way: str
) -> None:
    server = serve("so it goes on and on, " * 100)
    slow_down(server)  # 800 tokens take 16 s: nobody waits for the end of that
    shown = show(server)
    shown.ask()
    expect(shown.answer).to_contain_text("so it goes")
    assert server.service.scheduler.status().busy == 1
    if way == "button":
        button(shown, "Stop").click()
    elif way == "key":
        shown.page.keyboard.press("Escape")
    elif way == "new chat":
        button(shown, "New chat").click()
    else:
        shown.page.goto("about:blank")
    wait_until(lambda: server.service.scheduler.status().busy == 0)
    told = 'edgekit_jobs_total{reason="cancelled"} 1.0'
    wait_until(lambda: told in server.service.metrics.text().decode())
    if way in ("button", "key"):
        expect(shown.page.locator(".answer .note")).to_contain_text("Stopped")
        expect(shown.answer).to_contain_text("so it goes")
        expect(shown.page.get_by_label("Message")).to_be_focused()
    if way == "new chat":
        expect(shown.page.locator(".turn")).to_have_count(0)
    shown.requests.clear()


def test_questions_answers_and_code_can_be_copied(serve: Serve, show: Open) -> None:
    text = "Some *code*:\n\n```python\nif a < b:\n\tprint('<b>')\n```\n\nThat is it."
    shown = show(serve(text), permissions=CLIPBOARD)
    shown.ask("Show me & mine")
    shown.wait()

    def copied(name: str, within: str) -> str:
        shown.page.locator(within).get_by_role("button", name=name, exact=True).click()
        expect(shown.page.locator(within).get_by_text("Copied")).to_be_visible()
        found: str = shown.page.evaluate("() => navigator.clipboard.readText()")
        return found

    assert copied("Copy", ".answer > .foot") == text
    assert copied("Copy", ".question > .foot") == "Show me & mine"
    assert copied("Copy this code", ".code-head") == "if a < b:\n\tprint('<b>')"


def test_copying_works_without_the_clipboard_of_secure_pages(serve: Serve, show: Open) -> None:
    shown = show(serve("To be copied."), permissions=CLIPBOARD)
    shown.page.evaluate(
        "() => Object.defineProperty(navigator.clipboard, 'writeText', {value: undefined})"
    )
    shown.ask()
    shown.wait()
    shown.page.locator(".answer > .foot").get_by_role("button", name="Copy").click()
    expect(shown.page.get_by_text("Copied")).to_have_count(2)  # seen, and said
    assert shown.page.evaluate("() => navigator.clipboard.readText()") == "To be copied."


def test_the_last_question_is_asked_again_or_otherwise(serve: Serve, show: Open) -> None:
    shown = show(serve("First.", "Second.", "Third.", "Fourth."))
    sent = watch_requests(shown)
    shown.ask("One?")
    shown.wait()
    button(shown, "Retry").click()
    expect(shown.answer).to_have_text("Second.")
    shown.wait()
    shown.ask("Two?")
    shown.wait()
    expect(button(shown, "Edit")).to_have_count(1)  # of two questions only the last
    button(shown, "Edit").click()
    field = shown.page.get_by_label("Message")
    expect(field).to_have_value("Two?")
    field.fill("Three?")
    field.press("Enter")
    shown.wait()
    expect(shown.page.locator(".said")).to_have_text(["One?", "Three?"])
    expect(shown.page.locator(".written")).to_have_text(["Second.", "Fourth."])
    asked = [[message["content"] for message in body["messages"]] for body in sent]
    assert asked == [["One?"], ["One?"], ["One?", "Second.", "Two?"], ["One?", "Second.", "Three?"]]


def test_an_edit_that_is_given_up_changes_nothing(serve: Serve, show: Open) -> None:
    shown = show(serve("First."))
    shown.ask("One?")
    shown.wait()
    shown.page.get_by_label("Message").press("ArrowUp")
    expect(shown.page.get_by_label("Message")).to_have_value("One?")
    shown.page.keyboard.press("Escape")
    expect(shown.page.get_by_label("Message")).to_have_value("")
    expect(shown.answer).to_have_text("First.")


def test_the_reader_is_not_dragged_to_the_end(
    serve: Serve, show: Open, slow_down: Callable[..., None]
) -> None:
    server = serve("line\n\n" * 150)
    slow_down(server, 0.01)
    shown = show(server)
    shown.ask()
    log = shown.page.get_by_role("log")
    expect(shown.answer.locator("p").nth(40)).to_be_attached()
    bottom = "e => e.scrollHeight - e.scrollTop - e.clientHeight"
    assert log.evaluate(bottom) < 60  # it follows
    log.evaluate("e => { e.scrollTop = 0; }")
    before = shown.answer.locator("p").count()
    expect(shown.answer.locator("p").nth(before + 20)).to_be_attached()
    assert log.evaluate("e => e.scrollTop") == 0
    button(shown, "↓ Latest").click()
    shown.wait()
    assert log.evaluate(bottom) < 60


def test_memory_slots_and_engine_are_shown(
    serve: Serve,
    show: Open,
    slow_down: Callable[..., None],
    recorded: Callable[[str], Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgekit.serve.about.read_device", lambda: recorded("rtx-3070"))
    server = serve(num_slots=3)
    gib = 2**30
    server.engine.manifest.plan.update(
        weights_bytes=4 * gib, kv_cache_bytes=gib, workspace_bytes=gib // 2,
        runtime_bytes=gib // 2, budget_bytes=20 * gib,
    )  # fmt: skip
    slow_down(server)
    shown = show(server, reduced_motion="reduce")
    meter = shown.page.get_by_role("meter")
    # three slots instead of the one that was planned: 4 + 3 + 0.5 + 0.5 of 20
    expect(meter).to_have_attribute("aria-valuetext", "8.00 GiB of 20.00 GiB planned")
    width = "e => e.getBoundingClientRect().width"
    part = meter.locator("[data-part=weights]")
    assert part.evaluate(width) == pytest.approx(meter.evaluate(width) / 5, abs=0.5)
    expect(shown.page.locator("#used")).to_contain_text("RAM of this server")
    expect(shown.page.locator("#used")).to_contain_text("RTX 3070")
    expect(shown.page.locator("#used")).to_contain_text("15.0 MiB in use of 7.79 GiB")
    expect(shown.page.locator("#slots")).to_have_text("0 of 3 busy")
    expect(shown.page.locator("#facts")).to_contain_text("900 tokens a slot")
    shown.ask()
    expect(shown.page.locator("#slots")).to_have_text("1 of 3 busy")
    expect(shown.page.locator("#dots .busy")).to_have_count(1)
    expect(shown.page.locator("#state")).to_have_text("1 of 3 busy")
    shown.page.keyboard.press("Escape")
