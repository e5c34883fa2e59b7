"""A model's chat template: messages to the text the model was trained on.

Templates come from the internet and are run in jinja2's immutable sandbox, set up as
`transformers` does it (`utils/chat_template_utils.py`), so that the result is the same byte for
byte; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from edgekit.errors import EngineError, InputError
from edgekit.runtime.tokenizer import read_json

if TYPE_CHECKING:
    from jinja2.parser import Parser

Message = dict[str, Any]
"""`role`, `content` and whatever else the template reads, in plain JSON types."""

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Under these names messages carry what was thought."""


class ChatTemplate:
    """The template of one model, or none. Safe to share between threads."""

    def __init__(
        self,
        sources: str | Mapping[str, str] | None,
        *,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        named = {"default": sources} if isinstance(sources, str) else dict(sources or {})
        self.source = "\n".join(named.values())
        """The text of every template, to be searched for words."""
        self._special_tokens = dict(special_tokens or {})
        environment = _environment()
        try:
            self._templates = {n: environment.from_string(text) for n, text in named.items()}
            self.takes_tools: bool = "tool_use" in named or any(
                "tools" in jinja2.meta.find_undeclared_variables(environment.parse(text))
                for text in named.values()
            )
            """Whether declared tools reach the text."""
        except (jinja2.TemplateError, RecursionError) as exc:
            raise EngineError(
                f"the chat template of this engine is damaged: {exc}",
                hint="build the engine again with `edgekit build`",
            ) from exc

    @classmethod
    def load(cls, directory: Path, *, special_tokens: Mapping[str, str]) -> Self:
        """The template beside a tokenizer, wherever it is kept; an empty one if nowhere.

        As in `transformers`, `chat_template.jinja` comes before `tokenizer_config.json`, and
        `chat_template.json` is the last resort. Raises `EngineError` when it is damaged.
        """
        sources: dict[str, str] = {}
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = directory / name
            sources |= _named_templates(read_json(path).get("chat_template"), path)
        files = {p.stem: p for p in (directory / "additional_chat_templates").glob("*.jinja")}
        if (single := directory / "chat_template.jinja").is_file():
            sources, files = {}, {**files, "default": single}
        try:
            sources |= {n: path.read_text(encoding="utf-8") for n, path in files.items()}
        except (OSError, ValueError) as exc:
            raise EngineError(f"unreadable chat template in {directory}: {exc}") from exc
        return cls(sources, special_tokens=special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text. `variables` are handed to the template, e.g. `enable_thinking=False`.

        Raises `InputError` when there is no template, or it refuses or fails on these messages.
        """
        template = self._choose(has_tools=tools is not None)
        if not messages:
            raise InputError("there is no message to answer")
        try:
            return template.render(
                messages=[_message(m) for m in messages],
                tools=_plain(tools),
                add_generation_prompt=add_generation_prompt,
                **{"documents": None, **self._special_tokens, **_plain(variables)},
            )
        except _RefusedError as exc:
            raise InputError(f"the chat template refuses these messages: {exc}") from exc
        except Exception as exc:  # a template is foreign code: it can fail in any way
            raise InputError(
                f"the chat template fails on these messages: {type(exc).__name__}: {exc}"
            ) from exc

    def _choose(self, *, has_tools: bool) -> jinja2.Template:
        if has_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        if self._templates:
            names = ", ".join(sorted(self._templates))
            raise InputError(f"this model has chat templates, but no default one: {names}")
        raise InputError(
            "this model has no chat template", hint="it continues plain text: use completion"
        )


def _named_templates(value: Any, path: Path) -> dict[str, str]:
    """A template as text, or the older list of `{"name": …, "template": …}`."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        named = {row["name"]: row["template"] for row in value}
    except (TypeError, KeyError) as exc:
        raise EngineError(f"unreadable chat template in {path}") from exc
    if not all(isinstance(part, str) for row in named.items() for part in row):
        raise EngineError(f"unreadable chat template in {path}")
    return named


def _message(message: Mapping[str, Any]) -> Message:
    """A message as templates expect it: no nulls, reasoning under its usual names."""
    plain: Message = {k: v for k, v in _plain(message).items() if v is not None}
    reasoning = next((plain[name] for name in REASONING_NAMES if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A copy of exact JSON types, so that a template gets no method to call and edits nothing."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    raise TypeError(f"not a JSON value: {type(value).__name__}")


class _RefusedError(jinja2.TemplateError):
    """The template called `raise_exception`."""


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own `tojson` escapes for HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # a scope of its own, as the block call of `transformers` has
        return [jinja2.nodes.Scope(body, lineno=line)]


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment
