"""Calibration texts: the bundled set or the user's file, rendered as the model will see them.

A bundled sample is one exchange: `{"user", "assistant", "thinking", "system"}`. Models with a
reasoning toggle get the thinking samples with thinking on, the others with thinking off; models
without one get the answers alone. Samples are never padded: AWQ averages activations over every
position it is given, and pad tokens would count as text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError, InputError
from edgekit.models.convention import Convention

DEFAULT_TOKENS = 1024
"""What more calibration buys was measured on SmolLM2: see the table in README.md."""
MAX_SAMPLE_TOKENS = 256
_FORMAT_HINT = "give a UTF-8 .txt file, or .jsonl with `text` or `messages` on every line"
_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Token ids to run through the model, and where they came from."""

    samples: tuple[tuple[int, ...], ...]
    source: str
    """`"bundled"`, or the name of the user's file."""
    sha256: str
    """Digest of the token ids."""

    @property
    def num_tokens(self) -> int:
        """Tokens over all samples."""
        return sum(len(sample) for sample in self.samples)


def read_calibration(
    tokenizer: Any, convention: Convention | None, *, path: Path | None, tokens: int
) -> Calibration:
    """At most `tokens` tokens in samples of at most 256, from `path` or from the bundled set.

    Raises `InputError` for a file that is not .txt or .jsonl, is empty or has malformed lines.
    """
    texts = (
        _bundled(tokenizer, convention, "calibration.jsonl")
        if path is None
        else _user_file(tokenizer, path)
    )
    samples, left = [], tokens
    for ids in texts:
        # a long text gives several samples
        for start in range(0, len(ids), MAX_SAMPLE_TOKENS):
            sample = tuple(ids[start : start + min(MAX_SAMPLE_TOKENS, left)])
            if len(sample) > 1:
                samples.append(sample)
                left -= len(sample)
            if left < 2:
                break
            if path is None:
                break  # bundled: the beginning of many samples rather than all of a few
        if left < 2:
            break
    if not samples:
        raise InputError(f"no calibration text in {path}", hint=_FORMAT_HINT)
    digest = hashlib.sha256(json.dumps(samples).encode()).hexdigest()
    return Calibration(
        samples=tuple(samples), source="bundled" if path is None else path.name, sha256=digest
    )


def read_heldout(tokenizer: Any, convention: Convention | None) -> list[list[int]]:
    """The bundled exchanges that calibration never sees, for comparing answers."""
    return list(_bundled(tokenizer, convention, "heldout.jsonl"))


def data_digest() -> str:
    """Digest of the bundled texts: part of what decides a quantization."""
    digest = hashlib.sha256()
    for name in ("calibration.jsonl", "heldout.jsonl"):
        digest.update((_DATA / name).read_bytes())
    return digest.hexdigest()


def chat_ids(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> list[int]:
    """Render and tokenize a conversation; without a chat template, its texts line by line."""
    if getattr(tokenizer, "chat_template", None):
        text = _render(tokenizer, messages, **options)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n\n".join(m["content"] for m in messages))["input_ids"])


def _render(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except Exception as exc:  # templates raise whatever they like
        raise CheckpointError(f"the chat template of the checkpoint fails: {exc}") from exc


def _bundled(tokenizer: Any, convention: Convention | None, name: str) -> Iterator[list[int]]:
    for line in (_DATA / name).read_text(encoding="utf-8").strip().split("\n"):
        yield _exchange(tokenizer, json.loads(line), convention)


def _exchange(
    tokenizer: Any, sample: dict[str, str | None], convention: Convention | None
) -> list[int]:
    user, answer, system = str(sample["user"]), str(sample["assistant"]), sample["system"]
    thinking = sample["thinking"]
    variables: dict[str, Any] = {}
    if convention is not None:
        toggle = convention.toggle_text("on" if thinking else "off")
        if convention.toggle == "variable":
            variables = {convention.variable: bool(thinking)}
        if system and convention.instructions == "user":
            user, system = f"{system}\n\n{user}", None
        system = "\n\n".join(part for part in (toggle, system) if part)
    head = [{"role": "system", "content": system}] if system else []
    asked = [*head, {"role": "user", "content": user}]
    if convention is None or not thinking or not getattr(tokenizer, "chat_template", None):
        return chat_ids(tokenizer, [*asked, {"role": "assistant", "content": answer}], **variables)
    # templates leave past thinking out, so it goes where the model itself would write it
    prompt = _render(tokenizer, asked, add_generation_prompt=True, **variables)
    opening = "" if prompt.rstrip().endswith(convention.open_tag) else f"{convention.open_tag}\n"
    text = f"{prompt}{opening}{thinking}\n{convention.close_tag}\n\n{answer}"
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _user_file(tokenizer: Any, path: Path) -> Iterator[list[int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(
            f"cannot read the calibration file {path}: {exc}", hint=_FORMAT_HINT
        ) from exc
    if path.suffix == ".txt":
        yield list(tokenizer(text)["input_ids"])
        return
    if path.suffix != ".jsonl":
        raise InputError(
            f"a calibration file ends in .txt or .jsonl: {path.name}", hint=_FORMAT_HINT
        )
    # not splitlines: JSON strings may hold other line separators, such as U+2028
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _user_line(tokenizer, line, f"{path}:{number}")


def _user_line(tokenizer: Any, line: str, where: str) -> list[int]:
    hint = 'a line is {"text": …}, or {"messages": [{"role": …, "content": …}, …]}'
    try:
        data = json.loads(line)
    except ValueError as exc:
        raise InputError(f"{where} is not JSON: {exc}", hint=hint) from exc
    if isinstance(data, dict) and isinstance(data.get("text"), str):
        return list(tokenizer(data["text"])["input_ids"])
    messages = data.get("messages") if isinstance(data, dict) else None
    if isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    ):
        return chat_ids(tokenizer, messages)
    raise InputError(f"{where} has neither a text nor messages", hint=hint)
