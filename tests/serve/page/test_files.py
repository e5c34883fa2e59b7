"""The page's files as they are served, and the palette: without a browser."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import edgekit.serve
from edgekit.device import Device
from tests.serve.conftest import Serve

FOLDER = Path(edgekit.serve.__file__).parent / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}  # fmt: skip
FORBIDDEN = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser",
             "new Function", "style=", "onclick=", "@import", " url(")  # fmt: skip


def url_of(name: str) -> str:
    return "/" if name == "index.html" else f"/web/{name}"


def test_every_file_comes_with_its_type_and_the_strict_headers(serve: Serve) -> None:
    server = serve("x")
    for name in FILES:
        answer = httpx.get(f"{server.url}{url_of(name)}")
        assert answer.status_code == 200, name
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == TYPES[Path(name).suffix]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        policy = dict(
            part.strip().partition(" ")[::2]
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy.pop("default-src") == "'none'"
        for kind in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
            assert policy.pop(kind) == "'none'", kind
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert set(policy.values()) == {"'self'"}


def test_who_has_a_file_already_does_not_get_it_again(serve: Serve) -> None:
    server = serve("x")
    for name in FILES:
        url = f"{server.url}{url_of(name)}"
        tag = httpx.head(url).headers["etag"]
        for given in (tag, f'"other", W/{tag}', "*"):
            again = httpx.get(url, headers={"If-None-Match": given})
            assert again.status_code == 304
            assert again.content == b""
            assert again.headers["etag"] == tag
        assert httpx.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/", "/web", "/web/index.html", "/web/../app.py", "/web/%2e%2e/app.py",
        "/web/..%2fapp.py", "/web//etc/passwd", "/web/%2fetc%2fpasswd", "/web/app.js/",
        "/web/app.js%00.css", "/web/app.js/../../settings.py", "/web\\..\\app.py", "/page/app.js",
    ],
)  # fmt: skip
def test_nothing_else_is_served(serve: Serve, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serve("x").port, timeout=10)
    connection.request("GET", path)  # as it is: clients would tidy it up
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status in (404, 307), body
    assert b"import" not in body


def test_the_page_needs_no_key_and_only_reads(serve: Serve) -> None:
    server = serve("x", keys=("secret",))
    for name in FILES:
        assert httpx.get(f"{server.url}{url_of(name)}").status_code == 200
    assert httpx.post(f"{server.url}/").status_code == 405
    for path in ("/v1/models", "/v1/status", "/metrics"):
        assert httpx.get(f"{server.url}{path}").status_code == 401


def test_a_server_can_be_without_a_page(serve: Serve) -> None:
    server = serve("x", has_page=False)
    assert {httpx.get(f"{server.url}{url_of(name)}").status_code for name in FILES} == {404}
    assert httpx.get(f"{server.url}/v1/models").status_code == 200


def test_no_file_names_another_server_or_makes_markup_of_text() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, name
        assert [word for word in FORBIDDEN if word in text] == [], name


def test_status_has_the_memory_that_the_page_draws(serve: Serve) -> None:
    memory = httpx.get(f"{serve('x').url}/v1/status").json()["memory"]
    assert memory["workspace_bytes"] == memory["runtime_bytes"] == 1  # of the test's plan
    assert memory["available_bytes"] > memory["rss_bytes"] > 2**20


def test_status_has_the_memory_of_the_gpus(
    serve: Serve, recorded: Callable[[str], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.serve.about.read_device", lambda: recorded("rtx-3070"))
    [gpu] = httpx.get(f"{serve('x').url}/v1/status").json()["memory"]["gpus"]
    assert gpu["name"] == "NVIDIA GeForce RTX 3070"
    assert gpu["total_bytes"] > gpu["free_bytes"] > 2**30


def palettes() -> dict[str, dict[str, str]]:
    """The colours of each theme by their names."""
    text = (FOLDER / "theme.css").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = {}
    for selector, body in re.findall(r"(:root[^{]*)\{([^}]*)\}", text):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", body))
        if colours:
            found[selector.strip()] = colours
    return found


def luminance(colour: str) -> float:
    """Relative luminance of sRGB (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_definition() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's example


def test_dark_is_the_same_whether_the_system_or_the_reader_wants_it() -> None:
    light, *dark = palettes().values()
    assert len(dark) == 2
    assert dark[0] == dark[1]
    assert dark[0].keys() == light.keys()


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_what_is_written_can_be_read_on_what_it_is_written(theme: int) -> None:
    colours = list(palettes().values())[theme]
    grounds = ("page", "raised", "sunken")
    texts = [(ink, ground) for ink in ("text", "muted") for ground in grounds]
    texts += [("accent", "page"), ("on-accent", "accent"), ("problem", "on-problem")]
    for ink, ground in texts:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    # 1.4.11: what tells parts of controls and of the bar from what is beside them
    marks = [("edge", "page"), ("edge", "raised"), ("accent", "page"), ("good", "page")]
    marks += [("problem", "page"), ("full", "page")]
    marks += [(part, "sunken") for part in ("weights", "cache", "work", "runtime")]
    for mark, ground in marks:
        assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)
