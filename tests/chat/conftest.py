"""A chat that says what it is told to, at the speed it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from edgekit.errors import InputError
from edgekit.runtime.piece import Piece, ToolCall

Script = Sequence[Piece | BaseException | threading.Event | float]
"""Pieces; an exception to raise, an event to wait for, seconds to sleep."""


def said(text: str, *, think: str = "", delay_s: float = 0.0) -> list[Piece | float]:
    """The script of an answer whose tokens have four characters."""
    script: list[Piece | float] = []
    if think:
        script.append(Piece(kind="tag", text="<think>"))
    for kind, whole in (("thinking", think), ("answer", text)):
        if kind == "answer" and think:
            script.append(Piece(kind="tag", text="</think>"))
        for at in range(0, len(whole), 4):
            script += [delay_s] * bool(delay_s)
            script.append(Piece(kind=kind, text=whole[at : at + 4]))  # type: ignore[arg-type]
    return script


def call(name: str, problem: str | None = None, **arguments: Any) -> Piece:
    made = ToolCall(id=f"call_{name}", name=name, arguments=arguments, problem=problem)
    return Piece(kind="call", text=f"<{name}>", call=made)


class FakeAnswer:
    def __init__(self, script: Script, *, prompt_tokens: int) -> None:
        self.thinking = ""
        self.text = ""
        self.tool_calls: list[ToolCall] = []
        self.is_thinking = False
        self.thinking_tokens = 0
        self.generation = SimpleNamespace(
            new_ids=[], prompt_tokens=prompt_tokens, cached_tokens=0, finish_reason=None,
            ttft_ms=1.0, decode_tokens_per_s=23.4,
        )  # fmt: skip
        self._script = script
        self._answers_now = False
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Piece]:
        for item in self._script:
            if self._stopped.is_set():
                return
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, threading.Event):
                while not item.wait(0.005) and not self._stopped.is_set():
                    if self._answers_now:
                        break
            elif isinstance(item, float):
                self._stopped.wait(0 if self._answers_now else item)
            elif not (item.kind == "thinking" and self._answers_now):
                yield self._taken(item)
        if not self._stopped.is_set():
            self.generation.finish_reason = "stop"

    def answer_now(self) -> None:
        self._answers_now = True

    def stop(self) -> None:
        self._stopped.set()

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "finish_reason": self.generation.finish_reason}

    def describe(self) -> str:
        return f"{len(self.generation.new_ids)} new tokens, TTFT 1 ms"

    def _taken(self, piece: Piece) -> Piece:
        self.generation.new_ids.append(0)
        self.is_thinking = piece.kind == "thinking" or piece.text == "<think>"
        if piece.kind == "thinking":
            self.thinking += piece.text
            self.thinking_tokens += 1
        elif piece.kind == "answer":
            self.text += piece.text
        elif piece.kind == "retype":
            self.thinking, self.text = self.thinking + self.text, ""
        elif piece.call is not None:
            self.tool_calls.append(piece.call)
        return piece


@dataclass
class FakeUse:
    total_tokens: int
    parts: list[tuple[str, int]]
    reserve_tokens: int = 100
    free_tokens: int = 0


@dataclass
class FakeTool:
    name: str
    description: str


@dataclass
class FakeChat:
    """Answers with the next script; echoes the question when there is none left."""

    scripts: list[Script] = field(default_factory=list)
    think: Literal["on", "off"] | None = "on"
    engine_name: str = "/store/fake"
    model_name: str = "fake-8b"
    budget: int = -1
    system: str | None = None
    tools: tuple[FakeTool, ...] = ()
    messages: list[dict[str, Any]] = field(default_factory=list)
    limit: int = 100_000
    kept: list[FakeAnswer] = field(default_factory=list)
    open: FakeAnswer | None = None

    def ask(self, text: str) -> FakeAnswer:
        if len(text) > self.limit:
            raise InputError(f"the last message needs {len(text)} tokens", hint="shorten it")
        return self._answer([{"role": "user", "content": text}])

    def retry(self) -> FakeAnswer:
        self._require_question()
        while self.messages[-1]["role"] != "user":
            self.messages.pop()
        return self._answer([])

    def edit(self, text: str) -> FakeAnswer:
        self._require_question()
        while self.messages.pop()["role"] != "user":
            pass
        return self.ask(text)

    def give_results(self, results: Sequence[tuple[str, str]]) -> FakeAnswer:
        return self._answer(
            [{"role": "tool", "tool_call_id": i, "content": text} for i, text in results]
        )

    def keep(self, answer: FakeAnswer) -> None:
        assert self.open is answer, "keep is called once for every answer"
        self.open = None
        self.kept.append(answer)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function",
                 "function": {"name": c.name, "arguments": c.arguments}}
                for c in answer.tool_calls
            ]  # fmt: skip
        self.messages.append(message)

    def set_think(self, mode: Literal["on", "off"]) -> None:
        if self.think is None:
            raise InputError("this model has no switch for thinking: fake-8b")
        self.think = mode

    def set_budget(self, tokens: int) -> None:
        self.budget = tokens

    def set_system(self, text: str | None) -> None:
        self.system = text

    def set_tools(self, data: list[Any] | None) -> None:
        found = [tool["function"] for tool in data or ()]
        self.tools = tuple(FakeTool(f["name"], f.get("description", "")) for f in found)

    def reset(self) -> None:
        self.messages.clear()

    def load(self, messages: list[dict[str, Any]]) -> None:
        self.messages = list(messages)

    def context_use(self) -> FakeUse:
        assert self.open is None, "the session has one user at a time"
        said_chars = sum(len(str(m["content"])) for m in self.messages)
        return FakeUse(4096, [("system", len(self.system or "")), ("conversation", said_chars)])

    def _require_question(self) -> None:
        if not any(m["role"] == "user" for m in self.messages):
            raise InputError("there is no question yet")

    def _answer(self, messages: list[dict[str, Any]]) -> FakeAnswer:
        assert self.open is None, "the last answer was not kept"
        self.messages += messages
        text = str(self.messages[-1]["content"])
        script = self.scripts.pop(0) if self.scripts else said(f"You said: {text}")
        self.open = FakeAnswer(script, prompt_tokens=len(text))
        return self.open


@pytest.fixture
def make_chat() -> Callable[..., FakeChat]:
    """`make(script, script, ..., think=None)`: a chat that says these."""

    def make(*scripts: Script, **settings: Any) -> FakeChat:
        return FakeChat(scripts=list(scripts), **settings)

    return make
