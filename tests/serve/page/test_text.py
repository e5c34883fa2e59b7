"""What a model writes, as the page shows it: markdown, and everything that is meant to harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.serve.conftest import Serve
from tests.serve.page.conftest import Open

pytestmark = pytest.mark.browser

SHOW = """async ([text, size]) => {
  const { Markdown } = await import("/web/markdown.js");
  const root = document.createElement("div");
  document.body.append(root);
  const view = new Markdown(root);
  for (let i = 0; i < text.length; i += size) {
    view.append(text.slice(i, i + size));
    if (size < text.length) await new Promise((done) => requestAnimationFrame(done));
  }
  view.finish(true);
  const shown = root.innerHTML;
  root.remove();
  return shown;
}"""
PLAIN = """([html]) => html
  .replaceAll(/<div class="code-head">.*?<\\/div>/g, "")
  .replaceAll(/ (dir|tabindex|role|aria-label|rel|target|title|type)="[^"]*"/g, "")"""


@pytest.fixture
def page(serve: Serve, show: Open) -> Page:
    return show(serve("x")).page


def shown(page: Page, text: str, size: int = 10**9) -> str:
    """A text as markup, without attributes that are always the same."""
    html: str = page.evaluate(PLAIN, [page.evaluate(SHOW, [text, size])])
    return html


CODE = '<div class="code"><pre><code>{}</code></pre></div>'
TABLE = '<div class="table"><table><thead>{}</thead><tbody>{}</tbody></table></div>'
CASES = {
    "plain": "<p>plain</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A\n## B ##\n#### C\n#no": "<h3>A</h3><h4>B</h4><h6>C</h6><p>#no</p>",
    "A\n===\nb": "<h3>A</h3><p>b</p>",
    "a\n---\nb": "<p>a</p><hr><p>b</p>",
    "*a* **b** ***c*** _d_ ~~e~~": "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> "
    "<em>d</em> <del>e</del></p>",
    "snake_case_name 2 * 3 * 4 **": "<p>snake_case_name 2 * 3 * 4 **</p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "`a < b` ``c ` d`` `": "<p><code>a &lt; b</code> <code>c ` d</code> `</p>",
    r"\*no\* \\ &lt;b&gt; &#65; &nope;": r"<p>*no* \ &lt;b&gt; A &amp;nope;</p>",
    "[a *b*](https://example.com/x)": '<p><a href="https://example.com/x">a <em>b</em></a></p>',
    "see https://example.com/a_b_(c). Yes": '<p>see <a href="https://example.com/a_b_(c)">'
    "https://example.com/a_b_(c)</a>. Yes</p>",
    "<https://example.com>": '<p><a href="https://example.com/">https://example.com</a></p>',
    "![cat](https://a.example/c)": '<p><a href="https://a.example/c">image: cat</a></p>',
    "a<br>b": "<p>a<br>b</p>",
    "- a\n- b\n  - c\n  - d\n- e": "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li>"
    "<li>e</li></ul>",
    "3. a\n4. b\n\n5. c": '<ol start="3"><li>a</li><li>b</li><li>c</li></ol>',
    "1. a\n  - b\n\n   more\n2. c": '<ol start="1"><li><p>a</p><ul><li>b</li></ul>'
    "<p>more</p></li><li>c</li></ol>",
    "- [ ] a\n- [x] b": "<ul><li>☐ a</li><li>☑ b</li></ul>",
    "a\n2. no\n- yes": "<p>a<br>2. no</p><ul><li>yes</li></ul>",
    "> a\n> b\n\nc": "<blockquote><p>a<br>b</p></blockquote><p>c</p>",
    "```py\nif x:\n\ty()\n\n```\nz": CODE.format("if x:\n\ty()\n") + "<p>z</p>",
    "~~~\n```\n~~~": CODE.format("```"),
    "- a\n  ```\n  b\n    c\n  ```": f"<ul><li>a{CODE.format('b' + chr(10) + '  c')}</li></ul>",
    "```\nnever closed\n# no": CODE.format("never closed\n# no"),
    "|a|b|\n|-|-:|\n|1|`x\\|y`|\n|2|": TABLE.format(
        '<tr><th>a</th><th class="right">b</th></tr>',
        '<tr><td>1</td><td class="right"><code>x|y</code></td></tr>'
        '<tr><td>2</td><td class="right"></td></tr>',
    ),
    "| no | table |": "<p>| no | table |</p>",
    r"\(a_b_c\) and $$x*y*z$$": '<p><span class="math">a_b_c</span> and '
    '<span class="math block">x*y*z</span></p>',
    "a\r\nb\r\n\r\n- c\r\n": "<p>a<br>b</p><ul><li>c</li></ul>",
    "": "",
}


def test_markdown_becomes_what_it_means(page: Page) -> None:
    found = {text: shown(page, text) for text in CASES}
    assert found == CASES


def test_a_text_that_comes_in_pieces_ends_up_the_same(page: Page) -> None:
    text = "\n\n".join(CASES)
    whole = shown(page, text)
    for size in (1, 3, 17):
        assert shown(page, text, size) == whole


OPEN = """async ([text]) => {
  const { parseBlocks } = await import("/web/blocks.js");
  return JSON.stringify(parseBlocks(text.split("\\n"), true).map((block) => block.node));
}"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("so **stro", '"tag":"strong"'),
        ("so `cod", '"tag":"code"'),
        ("| a | b", '"tag":"table"'),
        ("| a | b |\n|--", '"tag":"table"'),
        ("see [the page](https://exa", '"see the page"'),
        ("``", "[]"),
    ],
)
def test_what_is_begun_looks_already_as_it_will(page: Page, text: str, words: str) -> None:
    if words == "[]":  # a line that may become anything yet: nothing of it is shown
        assert page.evaluate(
            "async ([text]) => (await import('/web/blocks.js')).isUndecided(text)", [text]
        )
        return
    assert words in page.evaluate(OPEN, [text])


HARM = [
    "<script>window.harm = 1</script>",
    "<img src=x onerror='window.harm = 1'>",
    "<svg onload=window.harm=1></svg><iframe src='https://example.com'></iframe>",
    "<style>body { display: none }</style><base href='https://example.com'>",
    "[a](javascript:window.harm=1) [b](JaVaScRiPt:window.harm=1) [c](java\nscript:harm)",
    "[d](data:text/html,<script>window.harm=1</script>) [e](vbscript:x) [f](//example.com)",
    "[g](/v1/models) [h](&#106;avascript:window.harm=1) [i](https:javascript) [j](blob:x)",
    "<javascript:window.harm=1> javascript:window.harm=1 <a href='javascript:harm'>k</a>",
    "https://user:password@example.com [l](https://good.example@evil.example)",
    "![m](https://example.com/pixel.png) ![n](javascript:window.harm=1)",
    '[o](https://example.com/"onmouseover="window.harm=1)',
    "```html\n<script>window.harm = 1</script>\n```",
    '```"><script>window.harm=1</script>\ncode',
    "| <script>window.harm=1</script> | b |\n|--|--|\n| <img src=x onerror=harm> | c |",
    "</div></article></main><h1>edgekit</h1>",
    "\u202egnp.exe \u2066 \u200f\u202d mixed \u05d0\u05d1\u05d2 \u0000 \ufeff",
    "# <b>head</b> &lt;script&gt;window.harm=1&lt;/script&gt;",
]
FOUND = """() => ({
  harm: window.harm,
  strange: [...document.querySelectorAll(
    "#turns :is(script, img, svg, iframe, style, base, object, embed, form, input, h1)")].length,
  handlers: [...document.querySelectorAll("#turns *")].flatMap((e) => e.getAttributeNames())
    .filter((name) => name.startsWith("on") || name === "style" || name === "src"),
  links: [...document.querySelectorAll("#turns a")].map((a) => [a.protocol, a.rel, a.target]),
})"""


def test_what_is_meant_to_harm_is_only_shown(serve: Serve, show: Open) -> None:
    text = "\n\n".join(HARM)
    window = show(serve(text, context_tokens=4000))
    window.ask("<script>window.harm = 1</script><img src=x onerror='window.harm=1'>")
    window.wait()
    expect(window.page.locator(".said")).to_contain_text("<script>window.harm = 1</script>")
    expect(window.answer).to_contain_text("<script>window.harm = 1</script>")
    expect(window.answer).to_contain_text("[a](javascript:window.harm=1)")
    for link in window.page.locator("#turns a").all():
        assert "example.com" in str(link.get_attribute("href"))
    found = window.page.evaluate(FOUND)
    assert found["harm"] is None
    assert found["strange"] == 0
    assert found["handlers"] == []
    assert found["links"]
    assert {tuple(link) for link in found["links"]} == {
        ("https:", "noopener noreferrer nofollow", "_blank")
    }
    # the page is still the page: its heading, its field, and nothing covers them
    expect(window.page.get_by_role("heading", level=1)).to_have_text("edgekit")
    expect(window.page.get_by_label("Message")).to_be_visible()


def test_markup_cannot_be_made_even_by_the_pages_own_code(serve: Serve, show: Open) -> None:
    window = show(serve("x"))
    window.expected = ("TrustedHTML", "trusted-types", "Trusted Type", "Content Security Policy")
    refused = window.page.evaluate(
        """() => {
          const element = document.createElement("div");
          try { element.innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
          return element.innerHTML;
        }"""
    )
    assert refused == "TypeError"
    assert window.page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
          const image = new Image();
          image.src = "https://example.com/x.png";
        })"""
    ) in ("img-src", "require-trusted-types-for")
    window.requests.remove("https://example.com/x.png")  # asked for, and refused


HEAVY = {
    "stars": "*a **b " * 40_000,
    "brackets": "[" * 200_000,
    "images": "![" * 100_000,
    "links": "[a](" * 50_000,
    "closed links": "[a](https://a.b/" * 20_000,
    "ticks": "".join("`" * (i % 400 + 1) + " " for i in range(1_000)),
    "underscores": "_" * 100_000 + "a" + "_" * 100_000,
    "tildes": "~~a " * 50_000,
    "quotes": ">" * 100_000 + "\n" + "> " * 50_000,
    "lists": "".join("  " * (i % 500) + "- a\n" for i in range(5_000)),
    "spaces": "# " + " " * 200_000 + "#" + " " * 200_000 + "a",
    "bars": "|" * 100_000 + "\n" + "|-" * 50_000,
    "fences": "```" + " " * 200_000 + "`",
    "entities": "&" * 100_000 + "&#" * 50_000,
    "escapes": "\\(" * 50_000 + "\\[" * 50_000 + "$$" * 50_001,
    "angles": "<https://" * 30_000,
    "urls": "https://" * 30_000,
    "one line": "word" * 100_000,
    "rules": "* " * 100_000 + "x",
}


def test_no_text_keeps_the_page_busy(page: Page) -> None:
    # quadratic work on these sizes would take minutes, and the page has ten seconds
    begin = """([text]) => {
      window.isDone = 0;
      setTimeout(async () => {
        const { parseBlocks } = await import("/web/blocks.js");
        for (const isOpen of [true, false]) {
          parseBlocks(text.split("\\n"), isOpen);
          window.isDone += 1;
        }
      }, 0);
    }"""
    for text in HEAVY.values():
        page.evaluate(begin, [text])
        page.wait_for_function("() => window.isDone === 2")


def test_ten_thousand_tokens_leave_the_page_usable(serve: Serve, show: Open) -> None:
    part = "The **quick** `fox` jumps over [the dog](https://example.com), then\n\n- one\n- two\n\n"
    server = serve(
        part * 80 + "```\n" + "some code of a long program\n" * 200, context_tokens=20_000
    )
    window = show(server)
    window.ask()
    switch = window.page.get_by_label("System prompt")
    for number in range(10):
        switch.fill(f"still here {number}")
    window.page.get_by_role("button", name="Send").wait_for(timeout=60_000)
    assert window.answer.locator("ul").count() == 80
    assert window.answer.locator("pre").inner_text().count("long program") == 200
    tokens = window.page.locator(".answer .note").inner_text()
    assert int(tokens.rpartition("· ")[2].split()[0].replace(",", "")) >= 5_000


def test_directions_stay_within_their_blocks(serve: Serve, show: Open) -> None:
    text = (
        "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd\n\nleft to right\n\n- \u05d0\u05d7\u05ea"
    )
    window = show(serve(text))
    window.ask("\u05de\u05d4?")
    window.wait()
    direction = "e => getComputedStyle(e).direction"
    blocks: list[Any] = window.answer.locator("p, li").all()
    assert [block.evaluate(direction) for block in blocks] == ["rtl", "ltr", "rtl"]
    assert window.page.locator(".said").evaluate(direction) == "rtl"
    assert window.page.locator("body").evaluate(direction) == "ltr"


def test_a_huge_line_does_not_widen_the_page(serve: Serve, show: Open) -> None:
    window = show(
        serve("x" * 3000 + "\n\n`" + "y" * 3000 + "`", context_tokens=9000),
        viewport={"width": 360, "height": 640},
    )
    window.ask("z" * 1000)
    window.page.get_by_role("button", name="Send").wait_for(timeout=30_000)
    assert window.page.evaluate("() => document.documentElement.scrollWidth") == 360
    assert window.page.get_by_role("log").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_listeners_hear_sentences_and_not_tokens(serve: Serve, show: Open) -> None:
    text = " ".join(f"This is sentence {i}." for i in range(40))
    window = show(serve(text))
    window.page.evaluate(
        """() => {
          window.heard = [];
          const region = document.getElementById("spoken");
          new MutationObserver(() => window.heard.push(region.textContent))
            .observe(region, {childList: true, characterData: true, subtree: true});
        }"""
    )
    window.ask()
    window.wait()
    heard = window.page.evaluate("() => window.heard")
    assert 1 <= len(heard) <= 6
    assert heard[-1].endswith("Answer complete.")
    assert all(part.rstrip().endswith(".") for part in heard)
    said = json.dumps(" ".join(heard))
    for i in range(40):
        assert f"sentence {i}." in said
    assert window.page.get_by_role("log").get_attribute("aria-live") == "off"
