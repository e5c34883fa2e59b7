from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from edgekit.errors import EngineError
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.runtime.vocabulary import Vocabulary, crossing_ids, token_texts


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, vocab_size=tokenizer.vocab_size)


@given(text=st.text(max_size=12))
@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
def test_encoding_spells_the_text(any_tokenizer: Tokenizer, text: str) -> None:
    words = vocabulary(any_tokenizer)
    spelled = words.join(words.encode(text.encode()))
    if any_tokenizer.token_text(0) == "<unk>" and not any_tokenizer.is_byte_level:
        # a decoder may spell pieces in ways that leave some bytes without a token
        assert len(spelled) <= len(text.encode())
    else:
        assert spelled == text.encode()


def test_bytes_that_are_no_text_are_spelled_too(byte_tokenizer: Tokenizer) -> None:
    words = vocabulary(byte_tokenizer)
    assert words.join(words.encode(b"a\xff\xc3")) == b"a\xff\xc3"


@pytest.mark.parametrize("text", ["<|im_end|>", "<s>", "a<|im_start|><s>b", "<s><s>"])
def test_text_never_becomes_a_control_token(byte_tokenizer: Tokenizer, text: str) -> None:
    words = vocabulary(byte_tokenizer)
    ids = words.encode(text.encode())
    assert words.join(ids) == text.encode()
    assert not words.control_ids & set(ids)


def test_tokens_are_the_bytes_that_decoding_gives(byte_tokenizer: Tokenizer) -> None:
    texts = token_texts(byte_tokenizer, vocab_size=byte_tokenizer.vocab_size + 3)
    assert [i for i, text in enumerate(texts) if not text] == [
        0,
        1,
        2,
        *range(len(texts) - 3, len(texts)),
    ]
    ids = byte_tokenizer.encode("hello 你好 🙂", add_special=False)
    assert b"".join(texts[i] for i in ids).decode() == "hello 你好 🙂"


def test_fallback_pieces_have_their_spaces_and_bytes(fallback_tokenizer: Tokenizer) -> None:
    words = vocabulary(fallback_tokenizer)
    assert words.token_id(b" hello") is not None
    assert words.token_id(b"\xff") is not None
    assert words.token_id(b"  ") is not None
    assert words.control_ids == {0, 1, 2}


def test_the_space_that_sentencepiece_puts_first_is_taken_away() -> None:
    names = ["<unk>", "▁", "a", "b", "ab", "▁ab", "\n"]
    model = models.BPE(
        vocab={n: i for i, n in enumerate(names)},
        merges=[("a", "b"), ("▁", "ab")],
        unk_token="<unk>",
    )
    inner = tokenizers.Tokenizer(model)
    inner.add_special_tokens(["<unk>"])
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    words = vocabulary(Tokenizer(inner))
    assert words.encode(b"ab ab") == [4, 5]


def test_tags_are_no_text_and_runs_of_spaces_are(byte_level: Any) -> None:
    inner = tokenizers.Tokenizer.from_str(byte_level.to_str())
    inner.add_tokens(["<think>", "   ", "é<"])
    words = vocabulary(Tokenizer(inner))
    think, spaces, letter = (inner.token_to_id(text) or 0 for text in ("<think>", "   ", "é<"))
    assert think in words.control_ids
    assert words.texts[spaces] == b"   "
    assert words.texts[letter] == "é<".encode()
    assert think not in words.encode(b"<think>")


def test_a_token_that_ends_answers_is_no_text(byte_level: Any) -> None:
    letter = byte_level.token_to_id("a")
    words = vocabulary(Tokenizer(byte_level, eos_ids=[letter]))
    assert letter in words.control_ids
    assert letter not in words.encode(b"a and a")


def test_ids_beyond_the_logits_are_left_out(byte_tokenizer: Tokenizer) -> None:
    words = Vocabulary(byte_tokenizer, vocab_size=200)
    assert len(words.texts) == 200
    assert max(words.encode("hello 你好".encode())) < 200


def test_a_vocabulary_without_texts_is_refused() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel(vocab={"<unk>": 0}, unk_token="<unk>"))
    inner.add_special_tokens(["<unk>"])
    with pytest.raises(EngineError, match="pieces of text"):
        Vocabulary(Tokenizer(inner), vocab_size=1)


def test_crossing_tokens_end_a_tag_and_go_on(byte_level: Any) -> None:
    inner = tokenizers.Tokenizer.from_str(byte_level.to_str())
    crossing = [">{", "k>x", "</think>a", "b</think>c", ">\n\n1", "think>>"]
    others = [
        ">",
        ">\n",
        "</think>",
        "</think>\n",
        "x</think> ",
        "{>",
        "k",
        "</thin",
        "<think>x",
        "}",
    ]
    inner.add_tokens(crossing + others)
    tokenizer = Tokenizer(inner)
    ids = set(crossing_ids(tokenizer, "</think>").tolist())
    assert {inner.id_to_token(i) for i in ids} >= set(crossing)
    assert not {inner.id_to_token(i) for i in ids} & set(others)
