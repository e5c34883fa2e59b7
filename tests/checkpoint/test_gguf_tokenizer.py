"""GGUF vocabulary -> tokenizer: ids are those of llama.cpp, text survives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgekit.checkpoint.gguf_file import read_gguf
from edgekit.checkpoint.gguf_tokenizer import PRE_TOKENIZERS, write_tokenizer
from edgekit.errors import CheckpointError

Write = Callable[..., Path]
BOS, EOS, TOOL = 261, 262, 263

SPM_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁h",
    "el",
    "▁hel",
    "lo",
    "▁hello",
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "<tool>",
]
SENTENCEPIECE: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": SPM_TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 11 + [4],
    # better pieces first, as SentencePiece numbers them
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(11)] + [0.0],
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": None,
}


def build(path: Path) -> Tokenizer:
    write_tokenizer(read_gguf(path), path.parent)
    return Tokenizer.from_file(str(path.parent / "tokenizer.json"))


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        build(path)
    return caught.value


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_merges_are_applied_in_order(write_gguf: Write) -> None:
    encoding = build(write_gguf()).encode("hello hello help")
    assert encoding.tokens == ["hello", "Ġhello", "Ġ", "he", "l", "p"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "It's 2024!", ["It", "'s", "Ġ2024", "!"]),
        ("smollm", "It's 2024!", ["It", "'s", "Ġ", "2", "0", "2", "4", "!"]),
        ("starcoder", "x=10", ["x", "=", "1", "0"]),
        ("llama-bpe", "IT'S 2024!\n\n x", ["IT", "'S", "Ġ", "202", "4", "!ĊĊ", "Ġx"]),
        ("qwen2", "IT'S 2024!\n\n x", ["IT", "'S", "Ġ", "2", "0", "2", "4", "!ĊĊ", "Ġx"]),
        ("tekken", "aHello WORLD 12", ["a", "Hello", "ĠWORLD", "Ġ", "1", "2"]),
    ],
)
def test_text_is_cut_as_the_named_rules_say(
    write_gguf: Write, name: str, text: str, expected: list[str]
) -> None:
    tokenizer = build(write_gguf(metadata={"tokenizer.ggml.pre": name}))
    assert pieces(tokenizer, text) == expected


@pytest.mark.parametrize("name", list(PRE_TOKENIZERS))
def test_any_text_survives_every_byte_level_tokenizer(write_gguf: Write, name: str) -> None:
    tokenizer = build(
        write_gguf(metadata={"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False})
    )
    text = " hello  12345 ½ \t\r\n\n你好、世界 🙂👨‍👩‍👧 naïve\u00a0\u3000\x00 end "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_qwen2_composes_characters_as_its_own_tokenizer_does(write_gguf: Write) -> None:
    tokenizer = build(write_gguf(metadata={"tokenizer.ggml.pre": "qwen2"}))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_llama3_takes_a_whole_token_even_without_a_merge_for_it(write_gguf: Write) -> None:
    without = {"tokenizer.ggml.merges": ["h e"], "tokenizer.ggml.add_bos_token": False}
    llama3 = build(write_gguf(metadata={**without, "tokenizer.ggml.pre": "llama-bpe"}))
    assert llama3.encode("hello").tokens == ["hello"]
    smollm = build(write_gguf(metadata=without))
    assert smollm.encode("hello").tokens == ["he", "l", "l", "o"]


@pytest.mark.parametrize(
    ("name", "flags", "begins", "ends"),
    [
        ("smollm", {}, False, False),
        ("llama-bpe", {}, True, False),
        ("llama-bpe", {"add_bos_token": False}, False, False),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, True, True),
    ],
)
def test_begin_and_end_are_added_as_the_file_says_or_llama_cpp_assumes(
    write_gguf: Write, name: str, flags: dict[str, bool], begins: bool, ends: bool
) -> None:
    metadata = {f"tokenizer.ggml.{flag}": value for flag, value in flags.items()}
    path = write_gguf(metadata={**metadata, "tokenizer.ggml.pre": name})
    tokenizer = build(path)
    assert tokenizer.encode("he").ids == [BOS] * begins + [256] + [EOS] * ends
    assert tokenizer.encode("he", add_special_tokens=False).ids == [256]
    written = json.loads((path.parent / "tokenizer_config.json").read_text())
    assert (written["add_bos_token"], written["add_eos_token"]) == (begins, ends)


def test_control_tokens_are_special_and_user_defined_ones_are_text(write_gguf: Write) -> None:
    tokenizer = build(write_gguf())
    ids = tokenizer.encode("<s>he<tool></s>").ids
    assert ids == [BOS, 256, TOOL, EOS]
    assert tokenizer.decode(ids) == "he<tool>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>he<tool></s>"


def test_transformers_finds_special_tokens_and_the_template(write_gguf: Write) -> None:
    from transformers import AutoTokenizer

    path = write_gguf(metadata={"tokenizer.ggml.add_bos_token": True})
    build(path)
    (path.parent / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = AutoTokenizer.from_pretrained(path.parent)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        BOS,
        EOS,
        EOS,
    )
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer("hello 12").input_ids == build(path).encode("hello 12").ids


def test_no_template_writes_none(write_gguf: Write) -> None:
    path = write_gguf(metadata={"tokenizer.chat_template": None})
    build(path)
    assert not (path.parent / "chat_template.jinja").exists()


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(write_gguf: Write) -> None:
    tokenizer = build(write_gguf(metadata=SENTENCEPIECE))
    assert tokenizer.encode("hello é").tokens == ["<s>", "▁hello", "▁", "<0xC3>", "<0xA9>"]
    # without "hel" + "lo" in reach: "▁h" (rank 0) is made before "el" (rank 1)
    assert tokenizer.encode("hew").tokens == ["<s>", "▁h", "e", "w"]


@pytest.mark.parametrize("prefix", [True, False])
def test_any_text_survives_sentencepiece(write_gguf: Write, prefix: bool) -> None:
    metadata = {**SENTENCEPIECE, "tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = build(write_gguf(metadata=metadata))
    text = " hello  12 \t\n\n你好 🙂 naïve "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    first = tokenizer.encode("hello").tokens[1]
    assert first == ("▁hello" if prefix else "h")


def test_sentencepiece_prefixes_a_space_after_every_special_token(write_gguf: Write) -> None:
    # llama.cpp does: "is_prev_special" in its tokenize()
    tokenizer = build(write_gguf(metadata=SENTENCEPIECE))
    assert tokenizer.encode("hello</s>hello").tokens == ["<s>", "▁hello", "</s>", "▁hello"]


@pytest.mark.parametrize("name", ["default", "dbrx", None, 7])
def test_an_unknown_pre_tokenizer_is_refused_by_name(write_gguf: Write, name: Any) -> None:
    error = refusal(write_gguf(metadata={"tokenizer.ggml.pre": name}))
    assert str(error) == f"unsupported GGUF pre-tokenizer: {name}"
    assert "smollm" in str(error.hint)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, "unsupported GGUF tokenizer: bert"),
        ({"tokenizer.ggml.model": None}, "unsupported GGUF tokenizer: None"),
        ({"tokenizer.ggml.token_type": None}, "lacks a key: tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.token_type": [1]}, "264 tokens, but 1 types"),
        ({"tokenizer.ggml.token_type": ["a"]}, "token_type in the GGUF file is of the wrong type"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "has a token twice"),
        ({"tokenizer.ggml.merges": None}, "lacks a key: tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["h zz"]}, "a merge that its tokens do not allow: 'h zz'"),
        ({"tokenizer.ggml.merges": ["he"]}, "a merge that its tokens do not allow: 'he'"),
        ({"tokenizer.ggml.merges": ["h l"]}, "a merge that its tokens do not allow: 'h l'"),
        ({"tokenizer.ggml.add_bos_token": 1}, "is not true or false: 1"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            "adds a token that it does not name: bos",
        ),
        ({**SENTENCEPIECE, "tokenizer.ggml.scores": None}, "lacks a key: tokenizer.ggml.scores"),
        ({**SENTENCEPIECE, "tokenizer.ggml.scores": [1.0]}, "271 tokens, but 1 scores"),
    ],
)
def test_an_inconsistent_vocabulary_is_refused(
    write_gguf: Write, metadata: dict[str, Any], words: str
) -> None:
    assert words in str(refusal(write_gguf(metadata=metadata)))
