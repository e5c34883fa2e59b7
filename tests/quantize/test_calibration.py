"""What the model is shown while it is quantized, and what it is asked afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import CheckpointError, InputError
from edgekit.models import find_convention
from edgekit.models.convention import Convention
from edgekit.quantize.calibration import (
    MAX_SAMPLE_TOKENS,
    chat_ids,
    data_digest,
    read_calibration,
    read_heldout,
)

DATA = Path(__file__).parents[2] / "edgekit" / "quantize" / "data"


@pytest.fixture
def convention() -> Convention:
    found = find_convention("Llama-3.1-Nemotron-Nano-8B-v1")
    assert found is not None
    return found[0]


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def texts(tokenizer: Any, samples: Any) -> list[str]:
    return [tokenizer.decode(sample) for sample in samples]


@pytest.mark.parametrize("tokens", [2, 100, 256, 257, 1024])
def test_limits_are_respected(tokenizer: Any, tokens: int) -> None:
    found = read_calibration(tokenizer, None, path=None, tokens=tokens)
    assert found.source == "bundled"
    assert all(1 < len(sample) <= MAX_SAMPLE_TOKENS for sample in found.samples)
    assert found.num_tokens == sum(map(len, found.samples))
    # a remainder of a single token is not worth a sample
    assert tokens - 1 <= found.num_tokens <= tokens


def test_bundled_samples_are_the_beginnings_of_different_texts(tokenizer: Any) -> None:
    found = read_calibration(tokenizer, None, path=None, tokens=1024)
    expected = [
        tuple(chat_ids(tokenizer, _messages(line))[:MAX_SAMPLE_TOKENS])
        for line in lines("calibration.jsonl")[:3]
    ]
    assert list(found.samples[:3]) == expected


def _messages(line: dict[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": line["system"]}] if line["system"] else []
    return [
        *system,
        {"role": "user", "content": line["user"]},
        {"role": "assistant", "content": line["assistant"]},
    ]


def test_nothing_is_padded(tokenizer: Any) -> None:
    found = read_calibration(tokenizer, None, path=None, tokens=4096)
    assert not any(tokenizer.pad_token_id in sample for sample in found.samples)


def test_the_same_texts_have_the_same_digest(tokenizer: Any) -> None:
    one, two, longer = (
        read_calibration(tokenizer, None, path=None, tokens=tokens) for tokens in (64, 64, 65)
    )
    assert one == two
    assert one.sha256 != longer.sha256
    assert len(data_digest()) == 64


def test_thinking_samples_turn_thinking_on(tokenizer: Any, convention: Convention) -> None:
    rendered = texts(tokenizer, read_heldout(tokenizer, convention))
    for line, text in zip(lines("heldout.jsonl"), rendered, strict=True):
        assert text.startswith("<|im_start|>system\ndetailed thinking ")
        assert ("detailed thinking on<|im_end|>" in text) == bool(line["thinking"])
        assert ("detailed thinking off<|im_end|>" in text) != bool(line["thinking"])
        if line["thinking"]:
            answer = f"<think>\n{line['thinking']}\n</think>\n\n{line['assistant']}"
            assert text.endswith(f"<|im_start|>assistant\n{answer}")
        else:
            assert "<think>" not in text
        if line["system"]:
            # the toggle owns the system turn
            assert f"<|im_start|>user\n{line['system']}\n\n{line['user']}<|im_end|>" in text


def test_a_template_that_drops_past_thinking_does_not_drop_it_from_the_samples(
    tokenizer: Any, convention: Convention, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = tokenizer.chat_template.replace(
        "m.content", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)"
    )
    assert dropping != tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", dropping)
    rendered = texts(tokenizer, read_heldout(tokenizer, convention))
    for line, text in zip(lines("heldout.jsonl"), rendered, strict=True):
        if line["thinking"]:
            assert f"<think>\n{line['thinking']}\n</think>" in text


def test_a_template_with_a_variable_for_thinking_is_given_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_convention("Qwen3-0.6B")
    assert found is not None
    template = "{{ '[' ~ enable_thinking ~ ']' }}" + tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rendered = texts(tokenizer, read_heldout(tokenizer, found[0]))
    for line, text in zip(lines("heldout.jsonl"), rendered, strict=True):
        assert text.startswith(f"[{bool(line['thinking'])}]<|im_start|>")


@pytest.mark.parametrize("name", ["calibration.jsonl", "heldout.jsonl"])
def test_both_sets_hold_samples_with_and_without_thinking(name: str) -> None:
    thinking = [bool(line["thinking"]) for line in lines(name)]
    assert any(thinking)
    assert not all(thinking)
    assert all(set(line) == {"user", "assistant", "thinking", "system"} for line in lines(name))


def test_a_model_without_a_toggle_sees_no_thinking(tokenizer: Any) -> None:
    for text in texts(tokenizer, read_heldout(tokenizer, None)):
        assert "<think>" not in text
        assert "detailed thinking" not in text


def test_what_is_asked_was_never_shown(tokenizer: Any, convention: Convention) -> None:
    shown, asked = lines("calibration.jsonl"), lines("heldout.jsonl")
    for key in ("user", "assistant", "thinking"):
        both = {line[key] for line in shown} & {line[key] for line in asked}
        assert both <= {None}
    calibration = read_calibration(tokenizer, convention, path=None, tokens=10**6)
    heldout = {tuple(ids[:MAX_SAMPLE_TOKENS]) for ids in read_heldout(tokenizer, convention)}
    assert not heldout & set(calibration.samples)


def test_a_text_file_is_cut_into_samples_in_order(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("the quick brown fox. " * 200)
    whole = tokenizer(path.read_text())["input_ids"]
    assert len(whole) > 700
    found = read_calibration(tokenizer, None, path=path, tokens=700)
    # 256 + 256 + 188
    assert [len(sample) for sample in found.samples] == [256, 256, 188]
    assert [i for sample in found.samples for i in sample] == whole[:700]
    assert found.source == "own.txt"


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: object, name: str = "own.jsonl") -> Path:
        path = tmp_path / name
        text = "\n".join(
            row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows
        )
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_line_is_a_text_or_a_conversation(
    tokenizer: Any, write_jsonl: Callable[..., Path]
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write_jsonl({"text": "the quick fox"}, "", "   ", {"messages": messages}, "")
    found = read_calibration(tokenizer, None, path=path, tokens=1000)
    assert texts(tokenizer, found.samples) == [
        "the quick fox",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n",
    ]


def test_a_line_may_hold_other_line_separators(
    tokenizer: Any, write_jsonl: Callable[..., Path]
) -> None:
    # U+2028 and U+0085 may stand in JSON strings as they are
    path = write_jsonl({"text": "one\u2028two\u0085three"})
    found = read_calibration(tokenizer, None, path=path, tokens=1000)
    assert texts(tokenizer, found.samples) == ["one\u2028two\u0085three"]


def test_windows_files_are_read(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "the fox"}\r\n{"text": "the dog"}\r\n')
    found = read_calibration(tokenizer, None, path=path, tokens=1000)
    assert texts(tokenizer, found.samples) == ["the fox", "the dog"]


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"text": 3},
        {"text": None, "messages": None},
        {"messages": "hi"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": ["hi"]},
        ["text"],
        "3",
    ],
    ids=str,
)
def test_a_line_that_is_neither_is_named(
    tokenizer: Any, write_jsonl: Callable[..., Path], line: object
) -> None:
    path = write_jsonl({"text": "the fox"}, line)
    with pytest.raises(InputError, match=r"own\.jsonl:2 has neither a text nor messages") as caught:
        read_calibration(tokenizer, None, path=path, tokens=1000)
    assert caught.value.hint is not None
    assert "messages" in caught.value.hint


def test_a_line_that_is_not_json_is_named(tokenizer: Any, write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"text": "the fox"}, {"text": "the dog"}, '{"text": "cut')
    with pytest.raises(InputError, match=r"own\.jsonl:3 is not JSON"):
        read_calibration(tokenizer, None, path=path, tokens=1000)


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_text_is_refused(
    tokenizer: Any, tmp_path: Path, name: str, text: str
) -> None:
    if name == "own.txt" and text:
        text = ""  # line breaks are text there
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="no calibration text in"):
        read_calibration(tokenizer, None, path=tmp_path / name, tokens=1000)


def test_a_missing_file_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the calibration file"):
        read_calibration(tokenizer, None, path=tmp_path / "none.txt", tokens=1000)


def test_a_file_of_another_encoding_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match="cannot read the calibration file"):
        read_calibration(tokenizer, None, path=tmp_path / "own.txt", tokens=1000)


def test_a_file_of_another_kind_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("a,b")
    with pytest.raises(InputError, match=r"ends in \.txt or \.jsonl: own\.csv"):
        read_calibration(tokenizer, None, path=tmp_path / "own.csv", tokens=1000)


def test_without_a_template_the_texts_follow_each_other(make_tiny: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(make_tiny())
    plain.chat_template = None
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert plain.decode(chat_ids(plain, messages)) == "hi\n\nhello"


def test_a_template_that_fails_is_a_matter_of_the_checkpoint(
    make_tiny: Callable[..., Path],
) -> None:
    from transformers import AutoTokenizer

    broken = AutoTokenizer.from_pretrained(make_tiny())
    broken.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(CheckpointError, match="chat template of the checkpoint fails: no system"):
        chat_ids(broken, [{"role": "user", "content": "hi"}])


def test_samples_do_not_repeat_within_a_long_text(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(" ".join(str(number) for number in range(2000)))
    found = read_calibration(tokenizer, None, path=path, tokens=1024)
    assert all(a != b for a, b in pairwise(found.samples))
