from __future__ import annotations

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from edgekit.errors import InputError
from edgekit.runtime.text_stream import TextStream
from edgekit.runtime.tokenizer import Tokenizer

_FIXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def streamed(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    return [*(stream.push(i) for i in ids), stream.finish()]


def id_of(tokenizer: Tokenizer, name: str) -> int:
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == name)


def cut(text: str, stop: tuple[str, ...]) -> str:
    """`text` before the stop string that is complete first, the longest of several."""
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(data=st.data())
@_FIXED
def test_the_pieces_are_the_whole_for_any_ids(
    any_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, any_tokenizer.vocab_size + 3), max_size=40))
    assert "".join(streamed(any_tokenizer, ids)) == any_tokenizer.decode(ids)


@given(data=st.data())
@_FIXED
def test_the_pieces_are_the_whole_up_to_the_first_stop_string(
    any_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, any_tokenizer.vocab_size - 1), max_size=30))
    whole = any_tokenizer.decode(ids)
    parts = st.tuples(st.integers(0, max(len(whole) - 1, 0)), st.integers(1, 6)).map(
        lambda at: whole[at[0] : at[0] + at[1]]
    )
    any_text = st.text(st.sampled_from("ab \ufffdhe"), max_size=4)
    stop = tuple(s for s in data.draw(st.lists(parts | any_text, max_size=4)) if s)
    assert "".join(streamed(any_tokenizer, ids, stop)) == cut(whole, stop)


@given(text=st.text(max_size=60))
@_FIXED
def test_text_goes_through_a_byte_level_vocabulary_unchanged(
    byte_tokenizer: Tokenizer, text: str
) -> None:
    ids = byte_tokenizer.encode(text, add_special=False)
    assert "".join(streamed(byte_tokenizer, ids)) == byte_tokenizer.decode(ids)


@given(data=st.binary(max_size=24))
@_FIXED
def test_invalid_bytes_are_replaced_as_the_whole_decode_does(
    byte_tokenizer: Tokenizer, data: bytes
) -> None:
    by_byte = {byte_tokenizer.token_bytes(i): i for i in range(3, 259)}
    ids = [by_byte[bytes([b])] for b in data]
    assert "".join(streamed(byte_tokenizer, ids)) == byte_tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦 family", "你好。世界", "e\u0301 \u200d ", "🇩🇪🇫🇷"])
def test_no_piece_holds_half_a_character(byte_tokenizer: Tokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text, add_special=False)
    pieces = streamed(byte_tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_a_character_is_given_with_its_last_byte(byte_tokenizer: Tokenizer) -> None:
    by_byte = {byte_tokenizer.token_bytes(i): i for i in range(3, 259)}
    ids = [by_byte[bytes([b])] for b in "🙂".encode()]
    assert streamed(byte_tokenizer, ids) == ["", "", "", "🙂", ""]


def test_an_unfinished_character_is_replaced_at_the_end(byte_tokenizer: Tokenizer) -> None:
    by_byte = {byte_tokenizer.token_bytes(i): i for i in range(3, 259)}
    ids = [by_byte[bytes([b])] for b in "🙂".encode()[:3]]
    assert streamed(byte_tokenizer, ids) == ["", "", "", "\ufffd"]


def test_fallback_bytes_are_held_until_their_run_ends(fallback_tokenizer: Tokenizer) -> None:
    run = [3 + b for b in "ü".encode()]
    ids = [*run, id_of(fallback_tokenizer, "▁world")]
    assert streamed(fallback_tokenizer, ids) == ["", "", "ü world", ""]


def test_only_the_first_leading_space_is_dropped(fallback_tokenizer: Tokenizer) -> None:
    ids = [id_of(fallback_tokenizer, name) for name in ("▁hello", "▁world")]
    assert streamed(fallback_tokenizer, ids) == ["hello", " world", ""]


def test_special_tokens_are_left_out(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("<|im_start|>hello<|im_end|>", add_special=False)
    assert "".join(streamed(byte_tokenizer, ids)) == "hello"


def test_special_tokens_are_shown_where_asked_for(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer, skip_special=False)
    ids = byte_tokenizer.encode("hello<|im_end|>", add_special=False)
    assert "".join([*map(stream.push, ids), stream.finish()]) == "hello<|im_end|>"


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    by_byte = {tokenizer.token_bytes(i): i for i in range(3, 259)}
    return [by_byte[bytes([b])] for b in text.encode()]


def test_a_stop_string_across_tokens_ends_the_text_before_it(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer, ["END"])
    pieces = [stream.push(i) for i in letters(byte_tokenizer, "okENDmore")]
    assert pieces == ["o", "k", "", "", "", "", "", "", ""]
    assert stream.stopped == "END"
    assert stream.finish() == ""


def test_the_beginning_of_a_stop_string_is_given_when_it_does_not_complete(
    byte_tokenizer: Tokenizer,
) -> None:
    assert streamed(byte_tokenizer, letters(byte_tokenizer, "aENx"), ("END",)) == [
        "a", "", "", "ENx", "",
    ]  # fmt: skip


def test_the_beginning_of_a_stop_string_is_given_at_the_end(byte_tokenizer: Tokenizer) -> None:
    assert streamed(byte_tokenizer, letters(byte_tokenizer, "aEN"), ("END",)) == ["a", "", "", "EN"]


def test_a_stop_string_that_begins_like_itself_is_found(byte_tokenizer: Tokenizer) -> None:
    assert "".join(streamed(byte_tokenizer, letters(byte_tokenizer, "aaab"), ("aab",))) == "a"


def test_the_stop_string_that_completes_first_counts(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer, ["bcde", "cd"])
    text = "".join(stream.push(i) for i in letters(byte_tokenizer, "abcde"))
    assert (text, stream.stopped) == ("ab", "cd")


def test_a_stop_string_can_complete_in_the_last_flush(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer, ["\ufffd"])
    ids = letters(byte_tokenizer, "a🙂")[:3]
    assert "".join(stream.push(i) for i in ids) + stream.finish() == "a"
    assert stream.stopped == "\ufffd"


def test_an_empty_stop_string_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="must not be empty"):
        TextStream(byte_tokenizer, [""])


def test_a_token_costs_the_same_late_in_a_long_text(fallback_tokenizer: Tokenizer) -> None:
    longest = 0
    decode = fallback_tokenizer.decode

    class Counting(Tokenizer):
        def decode(self, ids, *, skip_special=True):  # type: ignore[no-untyped-def]
            nonlocal longest
            longest = max(longest, len(ids))
            return decode(ids, skip_special=skip_special)

    counting = Counting(fallback_tokenizer._inner)
    ids = fallback_tokenizer.encode("▁hello▁world", add_special=False) * 500
    assert "".join(streamed(counting, ids)) == fallback_tokenizer.decode(ids)
    assert longest <= 13  # two words, five bytes each


def test_a_vocabulary_without_decoder_is_streamed() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert "".join(streamed(Tokenizer(inner), [0, 1, 1, 0])) == "a b b a"


def test_a_word_suffix_vocabulary_is_streamed() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a</w>": 0, "b</w>": 1, "c": 2}, unk_token="c"))
    inner.decoder = decoders.BPEDecoder()
    ids = [0, 2, 1, 2, 2, 0]
    assert "".join(streamed(Tokenizer(inner), ids)) == inner.decode(ids)
