from __future__ import annotations

import pytest

from edgekit.errors import InputError
from edgekit.runtime.conversation import Conversation, Prompt
from edgekit.runtime.prompt import PromptFormat
from edgekit.runtime.template import ChatTemplate
from edgekit.runtime.tokenizer import Tokenizer

# every role and every letter is one token: "S:" + text, "U:" + text, "A:" + text, then "A:"
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture
def conversation(byte_tokenizer: Tokenizer) -> Conversation:
    """Rendered: `S:ss` + `U:u0A:a0` + `U:u1A:a1` + `U:u2` + `A:`."""
    made = Conversation(PromptFormat(ChatTemplate(TEMPLATE), None), byte_tokenizer)
    made.system = "ss"
    for turn in range(2):
        made.add("user", f"u{turn}")
        made.add("assistant", f"a{turn}")
    made.add("user", "u2")
    return made


def text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return tokenizer.decode(prompt.token_ids)


def size(conversation: Conversation) -> int:
    return len(conversation.prompt(context_tokens=1000, reserve_tokens=0, think=None).token_ids)


def test_what_fits_is_sent_whole(conversation: Conversation, byte_tokenizer: Tokenizer) -> None:
    prompt = conversation.prompt(context_tokens=1000, reserve_tokens=100, think=None)
    assert text(byte_tokenizer, prompt) == "S:ssU:u0A:a0U:u1A:a1U:u2A:"
    assert prompt.num_dropped == 0


def test_the_oldest_exchange_goes_first(
    conversation: Conversation, byte_tokenizer: Tokenizer
) -> None:
    limit = size(conversation)
    prompt = conversation.prompt(context_tokens=limit, reserve_tokens=1, think=None)
    assert text(byte_tokenizer, prompt) == "S:ssU:u1A:a1U:u2A:"
    assert prompt.num_dropped == 2


def test_no_more_is_dropped_than_needed(conversation: Conversation) -> None:
    limit = size(conversation)
    assert (
        conversation.prompt(context_tokens=limit + 5, reserve_tokens=5, think=None).num_dropped == 0
    )


def test_what_was_dropped_stays_dropped(conversation: Conversation) -> None:
    conversation.prompt(context_tokens=size(conversation), reserve_tokens=1, think=None)
    assert [m["content"] for m in conversation.messages] == ["u1", "a1", "u2"]


def test_the_system_text_and_the_last_message_stay(
    conversation: Conversation, byte_tokenizer: Tokenizer
) -> None:
    prompt = conversation.prompt(context_tokens=30, reserve_tokens=29, think=None)
    assert text(byte_tokenizer, prompt) == "S:ssU:u2A:"
    assert prompt.num_dropped == 4


def test_a_last_message_that_does_not_fit_names_tokens_and_limit(
    conversation: Conversation,
) -> None:
    conversation.add("assistant", "a2")
    conversation.add("user", "x" * 200)
    with pytest.raises(InputError, match=r"needs \d+ tokens .* the context holds 50 ") as caught:
        conversation.prompt(context_tokens=50, reserve_tokens=1, think=None)
    assert caught.value.hint is not None


def test_a_refused_message_forgets_nothing(conversation: Conversation) -> None:
    before = [*conversation.messages]
    with pytest.raises(InputError):
        conversation.prompt(context_tokens=2, reserve_tokens=1, think=None)
    assert conversation.messages == before


def test_without_system_text_there_is_no_system_message(byte_tokenizer: Tokenizer) -> None:
    made = Conversation(PromptFormat(ChatTemplate(TEMPLATE), None), byte_tokenizer)
    made.add("user", "u")
    assert (
        text(byte_tokenizer, made.prompt(context_tokens=99, reserve_tokens=0, think=None))
        == "U:uA:"
    )
