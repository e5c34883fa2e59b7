"""Whether everybody can use the page: themes, contrast, names, keys, small screens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.serve.conftest import Serve
from tests.serve.page.conftest import Open, Shown
from tests.serve.test_openai import REASONER

pytestmark = pytest.mark.browser

TEXT = """Thoughts, some.
</think>

# Head

A **text** with `code`, [a link](https://example.com) and *more*.

> Said by others.

1. one
   - inner
2. two

| a | b |
|---|--:|
| 1 | 2 |

```python
print("wide " * 40, "so that it must be scrolled within its block and nowhere else, whatever")
```
"""
CONTRAST = """() => {
  const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255)
    + 0.0722 * channel(b / 255);
  function ground(element) {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  }
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!walker.currentNode.data.trim()) continue;
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    if (element.closest(".unseen, .skip, option")) continue;
    const pair = [light(parse(style.color)), light(ground(element))].sort((a, b) => b - a);
    found.push([walker.currentNode.data.trim().slice(0, 30), (pair[0] + 0.05) / (pair[1] + 0.05)]);
  }
  return found;
}"""
NAMES = """() => {
  const problems = [];
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`twice: ${id}`);
  const references = ["for", "aria-labelledby", "aria-describedby", "aria-controls"];
  for (const e of document.querySelectorAll("*")) {
    for (const name of references) {
      for (const id of (e.getAttribute(name) ?? "").split(" ").filter(Boolean)) {
        if (!ids.includes(id)) problems.push(`${name} names nothing: ${id}`);
      }
    }
  }
  let level = 0;
  const texts = document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)");
  for (const e of texts) {
    const now = Number(e.nodeName[1]);
    if (level && now > level + 1) problems.push(`a heading skips a level: ${e.textContent}`);
    level = now;
  }
  if (document.querySelectorAll("h1").length !== 1) problems.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) problems.push("not one main");
  if (document.documentElement.lang !== "en") problems.push("no language");
  return problems;
}"""
WIDTH = "() => document.documentElement.scrollWidth"


def answered(serve: Serve, show: Open, **options: Any) -> Shown:
    shown = show(serve(TEXT, model=REASONER, context_tokens=2000), **options)
    shown.ask("A question?")
    shown.wait()
    shown.page.locator(".thinking summary").click()
    return shown


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_that_is_written_can_be_read(serve: Serve, show: Open, theme: Any) -> None:
    shown = answered(serve, show, color_scheme=theme)
    found = shown.page.evaluate(CONTRAST)
    assert len(found) > 40
    assert [pair for pair in found if pair[1] < 4.5] == []


def test_the_theme_is_the_systems_until_somebody_says_otherwise(serve: Serve, show: Open) -> None:
    shown = show(serve("x"), color_scheme="dark")
    page = shown.page
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert light != dark
    theme = page.get_by_label("Theme")
    theme.select_option("dark")
    assert page.evaluate(ground) == dark
    page.reload()
    assert page.evaluate(ground) == dark
    expect(theme).to_have_value("dark")
    theme.select_option("light")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == light
    theme.select_option("system")
    assert page.evaluate(ground) == dark


def test_names_references_and_headings_are_in_order(serve: Serve, show: Open) -> None:
    shown = answered(serve, show)
    assert shown.page.evaluate(NAMES) == []
    nameless = [
        control.evaluate("e => e.outerHTML")
        for control in shown.page.locator("button, input, select, textarea, a, summary").all()
        if control.is_visible() and not accessible_name(control)
    ]
    assert nameless == []
    page = shown.page
    for role in ("banner", "main", "complementary", "log", "meter", "switch"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("article")).to_have_count(2)
    expect(page.get_by_role("table")).to_be_visible()


def accessible_name(control: Any) -> str:
    snapshot: str = control.aria_snapshot()
    # `- button "Copy"`, `- textbox "Message"`; without a name there are no quotes, nor a text
    return snapshot.partition(" ")[2].partition(" ")[2] or snapshot.partition(": ")[2]


@pytest.mark.parametrize("width", [360, 390, 768, 1024, 1600])
def test_nothing_has_to_be_scrolled_sideways(serve: Serve, show: Open, width: int) -> None:
    shown = answered(serve, show, viewport={"width": width, "height": 700})
    page = shown.page
    assert page.evaluate(WIDTH) == width
    assert page.get_by_role("log").evaluate("e => e.scrollWidth <= e.clientWidth")
    opener = page.get_by_role("button", name="Device")
    if width < 1024:
        expect(page.locator("#panel")).to_be_hidden()
        opener.click()
    expect(page.get_by_role("meter")).to_be_visible()
    assert page.evaluate(WIDTH) == width
    assert page.locator("#panel").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_the_panel_over_the_chat_is_left_as_it_was_entered(serve: Serve, show: Open) -> None:
    shown = show(serve("x"), viewport={"width": 390, "height": 700})
    page = shown.page
    opener = page.get_by_role("button", name="Device")
    expect(opener).to_have_attribute("aria-expanded", "false")
    opener.click()
    expect(opener).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    assert page.locator("main").evaluate("e => e.inert")
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    expect(page.locator("#panel")).to_be_hidden()
    assert not page.locator("main").evaluate("e => e.inert")


def test_all_of_it_works_with_keys_alone(
    serve: Serve, show: Open, slow_down: Callable[..., None]
) -> None:
    server = serve("Yes.\n</think>\n\nFirst `code`.", "No.\n</think>\n\nSecond.", model=REASONER)
    shown = show(server)
    page = shown.page
    expect(page.locator("#model")).to_contain_text("Nemotron")
    field = page.get_by_label("Message")
    expect(field).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(field).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    shown.wait()
    expect(page.locator(".said")).to_have_text("one\ntwo")
    expect(field).to_be_focused()
    expect(field).to_have_value("")
    reach(page, "Retry", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(shown.answer).to_have_text("Second.")
    shown.wait()
    expect(field).to_be_focused()
    reach(page, "Thought for", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".thought")).to_be_visible()


def test_focus_goes_from_the_top_to_the_end_and_is_seen(serve: Serve, show: Open) -> None:
    shown = answered(serve, show)
    page = shown.page
    page.reload()
    expect(page.locator("#facts")).to_contain_text("Nemotron")
    page.get_by_role("link", name="Skip").focus()
    seen = []
    for _ in range(9):
        told = page.evaluate(
            """() => {
              const e = document.activeElement;
              return [e.id || e.textContent.trim(), getComputedStyle(e).outlineStyle,
                e.id === "question" ? "ring" : getComputedStyle(e).outlineWidth];
            }"""
        )
        page.keyboard.press("Tab")
        seen.append(told[0])
        assert told[2] == "ring" or (told[1] == "solid" and told[2] == "2px"), told
    assert seen == [
        "Skip to the message field", "new-chat", "log", "question", "think", "budget", "send",
        "system", "theme",
    ]  # fmt: skip
    page.get_by_role("link", name="Skip").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message")).to_be_focused()


def reach(page: Page, words: str, key: str) -> None:
    """Press a key until what has the focus says these words."""
    for _ in range(30):
        page.keyboard.press(key)
        if words in page.evaluate("() => document.activeElement.textContent"):
            return
    raise AssertionError(f"the keyboard does not reach {words!r}")


def test_nothing_moves_for_who_wants_no_motion(serve: Serve, show: Open) -> None:
    shown = answered(serve, show, reduced_motion="reduce")
    moving = shown.page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((e) => {
          const s = getComputedStyle(e);
          return s.transitionDuration !== "0s" || s.animationName !== "none";
        }).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert moving == []
