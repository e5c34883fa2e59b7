"""What a request asks for, whichever interface it came through, and the work that it is.

    /v1/chat/completions ─┐
    /v1/responses        ─┼─► Ask ─► Work (one for each of `n` answers)
    /v1/messages         ─┘

Thinking is switched by, in this order: what a field of the request says, the model's own words in
the system message, the model's default. Where thinking is on its block is opened in the prompt, so
that a stream never has to take back what turned out to be a thought.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.models.convention import Think
from edgekit.runtime.asking import Asker
from edgekit.runtime.budget import NO_CAP
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.prompt import Message, PromptText, split_system
from edgekit.runtime.structure import Structure
from edgekit.runtime.tools import Tool
from edgekit.serve.calls import call_structure, form_or_call
from edgekit.serve.job import Work
from edgekit.serve.refusals import FieldError

EFFORT_BUDGETS: Mapping[str, int] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": NO_CAP,
    "xhigh": NO_CAP,
}
"""Tokens of thinking for the efforts of OpenAI's interface. Ours: the names have no numbers."""
_LARGEST_SCHEMA = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question, in OpenAI's shapes. Fields that are None leave it to the model or engine."""

    messages: Sequence[Message]
    messages_field: str = "messages"
    """The request's name for them; as for the other fields below, to be named in an error."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `=` and the name of the tool that must be called."""
    one_call: bool = False
    structure: Structure | None = None
    structure_field: str = "response_format"
    options: ChatOptions = field(default_factory=ChatOptions)
    """`think`, `budget`, `stop`, `max_new_tokens` and sampling; nothing else of it."""
    think_field: str = "chat_template_kwargs.enable_thinking"
    think_default: Think | None = None
    """Where neither a field nor the system message says anything; None: the model's own."""
    bias: Mapping[int, float] = field(default_factory=dict)
    with_logprobs: bool = False
    logprobs_field: str = "logprobs"
    top_logprobs: int = 0
    n: int = 1


def prepare(asker: Asker, ask: Ask) -> Work:
    """What the engine is asked. Raises `FieldError`, and `InputError` from the chat template."""
    options = ask.options
    _require_possible(asker, ask)
    mode = thinking_mode(asker, ask)
    structure = _structure(asker, ask)
    text, ids = prompt_of(asker, ask, mode)
    require_room(asker, ids, ask.messages_field)
    limit = None if asker.convention is None else 0
    if mode == "on":
        limit = asker.thinking_limit(
            NO_CAP if options.budget is None else options.budget,
            prompt_tokens=len(ids),
            max_new_tokens=options.max_new_tokens,
        )
        if limit == 0:  # too few new tokens to think and to answer
            mode = "off"
            text, ids = prompt_of(asker, ask, mode)
            require_room(asker, ids, ask.messages_field)
    reading = asker.reading(
        mode=mode,
        limit=limit,
        starts_inside=text.starts_inside,
        starts_after=text.starts_after,
        stop=options.stop,
        tools=() if ask.tool_choice == "none" else ask.tools,
        messages=ask.messages,
        structure=structure,
    )
    return Work(
        prompt_ids=tuple(ids),
        sampling=asker.sampling(mode, options),
        reading=reading,
        max_new_tokens=options.max_new_tokens,
        bias=ask.bias,
        with_logprobs=ask.with_logprobs,
        top_logprobs=ask.top_logprobs,
        one_call=ask.one_call,
    )


def thinking_mode(asker: Asker, ask: Ask) -> Think | None:
    """Whether the model shall think; None: it cannot. Raises `FieldError`."""
    convention, mode = asker.convention, ask.options.think
    if convention is None:
        if mode == "on":
            raise FieldError(
                ask.think_field,
                f"`{ask.think_field}`: this model has no thinking to switch on: {_name(asker)}",
            )
        return None
    said = split_system(ask.messages, convention)[1]
    return mode or said or ask.think_default or convention.default


def prompt_of(asker: Asker, ask: Ask, mode: Think | None) -> tuple[PromptText, list[int]]:
    """The prompt and its token ids. Raises `InputError` from the chat template."""
    system, _, messages = split_system(ask.messages, asker.convention)
    tools = () if ask.tool_choice == "none" else ask.tools
    text = asker.prompt_format.render(
        messages, system=system, think=mode, tools=tools, must_think=mode == "on"
    )
    return text, asker.engine.tokenizer.encode_chat(text.text)


def _structure(asker: Asker, ask: Ask) -> Structure | None:
    """What the answer is held to: its form, or a call where one must, or may, be made."""
    form = ask.structure
    if form is not None:
        _require_enforceable(asker, form, ask)
    if ask.tool_choice == "required" or ask.tool_choice.startswith("="):
        structure = call_structure(ask.tools, ask.tool_choice.removeprefix("="))
    elif form is not None and ask.tools and ask.tool_choice != "none":
        structure = form_or_call(form, ask.tools)
    else:
        return form
    _require_enforceable(asker, structure, ask)
    return structure


def prepare_text(asker: Asker, ids: Sequence[int], ask: Ask) -> Work:
    """The work of going on with a text as it is, without a chat template or thinking."""
    require_room(asker, ids, "prompt")
    _require_possible(asker, ask)
    if ask.structure is not None:
        _require_enforceable(asker, ask.structure, ask)
    plain = asker.reading(
        mode=None, limit=None, starts_inside=False, starts_after=False,
        stop=ask.options.stop, structure=ask.structure,
    )  # fmt: skip
    return Work(
        prompt_ids=tuple(ids),
        sampling=asker.sampling(None, ask.options),
        reading=replace(plain, convention=None),
        max_new_tokens=ask.options.max_new_tokens,
        bias=ask.bias,
        with_logprobs=ask.with_logprobs,
        top_logprobs=ask.top_logprobs,
    )


def several(work: Work, n: int) -> list[Work]:
    """`n` answers to the same question; with a seed, each has one of its own."""
    seed = work.sampling.seed
    if seed is None or n == 1:
        return [work] * n
    return [
        replace(work, sampling=replace(work.sampling, seed=(seed + i) % 2**64)) for i in range(n)
    ]


def require_room(asker: Asker, ids: Sequence[int], name: str) -> None:
    """Raises `FieldError` where a prompt leaves no room for an answer, or has no tokens."""
    context_tokens = asker.engine.session.context_tokens
    if not ids:
        raise FieldError(name, f"`{name}` has no tokens")
    if len(ids) >= context_tokens:
        raise FieldError(
            name,
            f"`{name}` has {len(ids)} tokens, the context holds {context_tokens} with at least "
            "one for the answer",
            code="context_length_exceeded",
        )


def _require_possible(asker: Asker, ask: Ask) -> None:
    """What engines without logits cannot do is said, not ignored, nor is a token that is not."""
    vocab_size = asker.engine.session.vocab_size
    if (largest := max(ask.bias, default=0)) >= vocab_size:
        raise FieldError(
            "logit_bias",
            f"`logit_bias` has token id {largest}, this model's are within 0..{vocab_size - 1}",
        )
    if asker.engine.stream is None:
        return
    wanted: list[tuple[str, Any]] = [
        (ask.structure_field, ask.structure),
        ("logit_bias", ask.bias),
        (ask.logprobs_field, ask.with_logprobs or ask.top_logprobs),
        ("tool_choice", ask.tool_choice not in ("auto", "none")),
    ]
    backend = asker.engine.manifest.backend["name"]
    for name, value in wanted:
        if value:
            raise FieldError(
                name, f"`{name}` is not supported by this engine: {backend} shows no logits"
            )


def _require_enforceable(asker: Asker, structure: Structure, ask: Ask) -> None:
    name = ask.structure_field if ask.structure is structure else "tools"
    size = _size_of(structure.json_schema)
    if size > _LARGEST_SCHEMA:  # what compiles it is slower than linear
        raise FieldError(
            name, f"`{name}` has a schema of {size} characters, the limit is {_LARGEST_SCHEMA}"
        )
    try:
        asker.structures.compiled(structure)
    except EdgekitError as exc:
        raise FieldError(name, f"`{name}`: {exc}") from exc


def _size_of(schema: Any) -> int:
    try:
        return len(json.dumps(schema))
    except RecursionError:
        return 0  # whoever compiles it refuses it


def _name(asker: Asker) -> str:
    return asker.engine.manifest.model
