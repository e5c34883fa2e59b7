from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from edgekit.errors import EngineError
from edgekit.runtime.tokenizer import Tokenizer


@pytest.fixture
def directory(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> Path:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>", "special": True}, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_tokenizer_json_alone_is_enough(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello", add_special=False)) == "hello"
    assert tokenizer.bos_id is None


def test_special_tokens_are_read_as_text_or_object(directory: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    assert dict(tokenizer.special_tokens) == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    assert tokenizer.bos_id == 0


def test_add_special_writes_the_bos(directory: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    plain = tokenizer.encode("hello", add_special=False)
    assert tokenizer.encode("hello", add_special=True) == [0, *plain]


def test_chat_text_gets_no_second_bos(directory: Path) -> None:
    ids = Tokenizer.load(directory).encode_chat("<s><|im_start|>hello")
    assert ids[:2] == [0, 1]
    assert 0 not in ids[1:]


def test_truncation_in_the_file_is_ignored(
    byte_level: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    copy = tokenizers.Tokenizer.from_str(byte_level.to_str())
    copy.enable_truncation(max_length=2)
    copy.enable_padding(length=5)
    copy.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    text = "hello to the world"
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


@pytest.mark.parametrize(("eos", "expected"), [(7, {2, 7}), ([7, 8], {2, 7, 8}), (None, {2})])
def test_stop_ids_join_generation_config_and_tokenizer(
    directory: Path, eos: object, expected: set[int]
) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert Tokenizer.load(directory).stop_ids == expected


def test_a_known_end_of_turn_stops_though_no_file_says_so(
    byte_level: tokenizers.Tokenizer,
) -> None:
    assert Tokenizer(byte_level).stop_ids == {2}  # <|im_end|>


def test_a_missing_tokenizer_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="tokenizer file is missing"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("damage", [b"", b'{"a":', b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_an_engine_error(directory: Path, name: str, damage: bytes) -> None:
    (directory / name).write_bytes(damage)
    with pytest.raises(EngineError, match=name):
        Tokenizer.load(directory)


def test_an_eos_that_is_no_id_is_an_engine_error(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(EngineError, match="eos_token_id"):
        Tokenizer.load(directory)


def test_a_lone_surrogate_is_encoded_as_a_replacement(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a\ud83db\ud83d\ude42", add_special=False)
    assert byte_tokenizer.decode(ids) == "a\ufffdb🙂"


def test_decode_keeps_special_tokens_where_asked_for(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("hello<|im_end|>", add_special=False)
    assert byte_tokenizer.decode(ids) == "hello"
    assert byte_tokenizer.decode(ids, skip_special=False) == "hello<|im_end|>"
