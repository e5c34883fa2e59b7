from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models

from edgekit.errors import InputError
from edgekit.runtime.draft import DraftModel, PromptLookup, require_same_vocabulary
from edgekit.runtime.generate import Generation
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.steer import Drafter
from edgekit.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import HashSession

    MakeSession = Callable[..., HashSession]

SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.integers(1, 4).flatmap(lambda n: st.lists(st.integers(0, n), max_size=60))
SAMPLINGS = [Sampling(), Sampling(temperature=1.0, seed=3)]


@dataclass
class Played:
    """An answer that was known, with drafts."""

    tokens: int = 0
    passes: int = 0
    drafted: int = 0

    def cost(self, marginal_cost: float) -> float:
        """By the cost model, over plain decoding."""
        return (self.passes + marginal_cost * self.drafted) / self.tokens


def play(drafter: Drafter, prompt: Sequence[int], said: Sequence[int]) -> Played:
    """What `Generation` does, for a model that says `said`."""
    played, done = Played(), 1  # the first token comes with the prefill
    while done < len(said):
        guess = drafter.propose([*prompt, *said[:done]], len(said) - done - 1)
        assert len(guess) <= len(said) - done - 1
        taken = 0
        while taken < len(guess) and guess[taken] == said[done + taken]:
            taken += 1
        if guess:
            drafter.observe(len(guess), taken)
        done += taken + 1
        played.tokens += taken + 1
        played.passes += 1
        played.drafted += len(guess)
    return played


def noise(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(vocab_size), k=count)


def was_interrupted(generation: Generation) -> bool:
    try:
        list(generation)
    except KeyboardInterrupt:
        return True
    return False


@given(text=TEXTS, steps=st.lists(st.integers(1, 5), max_size=30), limit=st.integers(0, 20))
def test_a_proposal_is_what_followed_the_same_tokens(
    text: list[int], steps: list[int], limit: int
) -> None:
    drafter, end = PromptLookup(marginal_cost=0.05), 1
    for step in steps:
        context = text[:end]
        guess = drafter.propose(context, limit)
        assert len(guess) <= limit
        if guess:
            continuations = [
                context[place : place + len(guess)]
                for place in range(1, len(context))
                if context[place - 1] == context[-1]
            ]
            assert guess in continuations
            drafter.observe(len(guess), 0)
        end += step


@given(text=TEXTS, prompt=st.integers(1, 20))
def test_the_same_tokens_give_the_same_drafts(text: list[int], prompt: int) -> None:
    drafts = []
    for _ in range(2):
        drafter = PromptLookup()
        play(drafter, text[:prompt], text[prompt:])
        drafts.append(drafter.propose(text, 16))
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("vocab_size", [2, 3, 5, 50, 1000])
@pytest.mark.parametrize("marginal_cost", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_text_that_nobody_can_guess_costs_less_than_three_percent(
    vocab_size: int, marginal_cost: float, seed: int
) -> None:
    text = noise(500, vocab_size, seed)
    played = play(PromptLookup(marginal_cost=marginal_cost), text[:200], text[200:])
    assert played.cost(marginal_cost) < 1.03


@pytest.mark.parametrize("marginal_cost", [0.05, 0.1, 0.3])
def test_a_copied_text_takes_few_passes(marginal_cost: float) -> None:
    source = noise(200, 1000)
    played = play(PromptLookup(marginal_cost=marginal_cost), [*source, 7, 7], source)
    assert played.tokens / played.passes >= 4
    assert played.cost(marginal_cost) < 0.55


def test_a_renamed_word_costs_few_passes() -> None:
    source = noise(200, 1000)
    changed = [5000 if i % 20 == 10 else token_id for i, token_id in enumerate(source)]
    # 199 tokens, nine changed: every change needs a pass, and one or two before the match is long
    assert play(PromptLookup(), [*source, 7, 7], changed).passes <= 60


def test_a_copy_that_ends_in_noise_keeps_what_it_gained() -> None:
    source = noise(100, 1000)
    said = [*source, *noise(400, 3, seed=1)]
    assert play(PromptLookup(), source, said).cost(0.3) < 1


def test_the_first_draft_is_short_and_later_ones_grow() -> None:
    source = noise(200, 1000)
    drafter, done, lengths = PromptLookup(), 3, []
    while done < 150:
        guess = drafter.propose([*source, *source[:done]], 100)
        drafter.observe(len(guess), len(guess))
        lengths.append(len(guess))
        done += len(guess) + 1
    assert lengths[0] <= 3
    assert lengths[:5] == sorted(lengths[:5])
    assert lengths[-1] == 16


def test_another_context_begins_anew() -> None:
    source = noise(50, 1000)
    used = PromptLookup()
    play(used, source, source)
    other = noise(30, 1000, seed=1)
    for context in ([*other, *other[:8]], [*noise(120, 1000, seed=2), *other, *other[:8]], [4]):
        assert used.propose(context, 16) == PromptLookup().propose(context, 16)


@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    count=st.integers(1, 30),
    sampling=st.sampled_from(SAMPLINGS),
    fail_at=st.integers(0, 30),
)
@SHARED
def test_lookup_changes_no_token(
    make_session: MakeSession, prompt: list[int], count: int, sampling: Sampling, fail_at: int
) -> None:
    def answer(session: HashSession, drafter: Drafter | None) -> Generation:
        return Generation(
            Slot(session), prompt, sampler=Sampler(sampling), max_new_tokens=count, drafter=drafter
        )

    plain = answer(make_session(vocab_size=3), None)
    list(plain)
    session = make_session(vocab_size=3)
    session.fail_at = fail_at
    drafted = answer(session, PromptLookup(marginal_cost=0.02))
    failed = was_interrupted(drafted)
    assert drafted.new_ids == plain.new_ids[: len(drafted.new_ids) if failed else None]
    assert drafted.slot.tokens == session.held[0]


class Stubborn:
    """Proposes the same tokens, whatever happens."""

    def __init__(self, guess: Sequence[int]) -> None:
        self._guess = list(guess)

    def propose(self, context_ids: Sequence[int], limit: int) -> list[int]:
        return self._guess[:limit]

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        pass


@pytest.mark.parametrize("guess", [[0], [1, 2], [4, 4, 4]])
def test_drafts_leave_the_distribution_as_it_is(
    make_session: MakeSession, guess: list[int]
) -> None:
    prompt, runs, vocab_size = [1, 2], 2000, 5
    expected: dict[tuple[int, int], float] = {}
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    session = make_session(vocab_size=vocab_size)

    def probabilities(ids: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        session.truncate(0, 0)
        return sampler.distribution(session.prefill(0, ids)[0], ids).probabilities

    for first, at_first in enumerate(probabilities(prompt)):
        for second, at_second in enumerate(probabilities([*prompt, first])):
            for third, at_third in enumerate(probabilities([*prompt, first, second])):
                pair = (second, third)
                expected[pair] = expected.get(pair, 0) + at_first * at_second * at_third
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(runs):
        generation = Generation(
            Slot(session), prompt, sampler=sampler, max_new_tokens=4, drafter=Stubborn(guess)
        )
        list(generation)
        seen[generation.new_ids[1], generation.new_ids[2]] += 1
    chi_square = sum(
        (seen[pair] - runs * share) ** 2 / (runs * share) for pair, share in expected.items()
    )
    assert chi_square < 51.2  # 24 degrees of freedom, p = 0.001


def draft_model(session: HashSession, *, vocab_size: int = 4, step_cost: float = 0.1) -> DraftModel:
    return DraftModel(Slot(session), vocab_size=vocab_size, step_cost=step_cost)


def test_a_model_that_thinks_alike_saves_passes(make_session: MakeSession) -> None:
    prompt = [1, 2, 3]
    plain = Generation(
        Slot(make_session(vocab_size=4)), prompt, sampler=Sampler(Sampling()), max_new_tokens=50
    )
    list(plain)
    # the draft model is the model itself
    draft = draft_model(make_session(vocab_size=4))
    drafted = Generation(
        Slot(make_session(vocab_size=4)), prompt, sampler=Sampler(Sampling()), max_new_tokens=50,
        drafter=draft,
    )  # fmt: skip
    list(drafted)
    assert drafted.new_ids == plain.new_ids
    assert drafted.accepted_tokens == drafted.drafted_tokens
    assert plain.num_passes / drafted.num_passes > 2


@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=10), min_size=1, max_size=4),
    sampling=st.sampled_from(SAMPLINGS),
    fail_at=st.integers(0, 60),
    draft_fail_at=st.integers(0, 120),
    draft_vocab=st.sampled_from([4, 7]),
    draft_context=st.sampled_from([5, 64]),
)
@SHARED
def test_a_draft_model_changes_no_token_and_keeps_in_step(
    make_session: MakeSession,
    prompts: list[list[int]],
    sampling: Sampling,
    fail_at: int,
    draft_fail_at: int,
    draft_vocab: int,
    draft_context: int,
) -> None:
    theirs = make_session(vocab_size=draft_vocab, context_tokens=draft_context)
    theirs.fail_at = draft_fail_at
    drafter_slot = Slot(theirs)
    drafter = DraftModel(drafter_slot, vocab_size=4, step_cost=0.05, marginal_cost=0.05)
    session = make_session(vocab_size=4)
    session.fail_at = fail_at
    slot = Slot(session)
    for prompt in prompts:
        plain = Generation(
            Slot(make_session(vocab_size=4)), prompt, sampler=Sampler(sampling), max_new_tokens=20
        )
        list(plain)
        drafted = Generation(
            slot, prompt, sampler=Sampler(sampling), max_new_tokens=20, drafter=drafter
        )
        failed = was_interrupted(drafted)
        assert drafted.new_ids == plain.new_ids[: len(drafted.new_ids) if failed else None]
        assert slot.tokens == session.held[0]
        assert drafter_slot.tokens == theirs.held[0]


def test_what_the_model_said_itself_is_drafted_on(make_session: MakeSession) -> None:
    theirs = make_session(vocab_size=4)
    drafter = draft_model(theirs)
    context = [1, 2, 3]
    for token_id in (3, 0, 1, 1):
        assert drafter.propose(context, 1)
        drafter.observe(1, 1)
        assert theirs.held[0] == context
        context.append(token_id)
    # the prompt once, then only what is new
    assert theirs.calls == [("prefill", 3), *[("prefill", 1)] * 3]


def test_a_new_prompt_keeps_what_it_shares(make_session: MakeSession) -> None:
    theirs = make_session(vocab_size=4)
    drafter = draft_model(theirs)
    drafter.propose([1, 2, 3, 0, 1], 1)
    drafter.propose([1, 2, 3, 3, 3, 3], 1)
    assert theirs.held[0] == [1, 2, 3, 3, 3, 3]
    assert theirs.calls == [("prefill", 5), ("prefill", 3)]


def test_a_model_that_is_never_right_is_hardly_asked(make_session: MakeSession) -> None:
    theirs = make_session(vocab_size=4, context_tokens=600)
    drafter = draft_model(theirs, step_cost=0.2)
    text, drafted = noise(500, 4), 0
    for end in range(100, 500):
        guess = drafter.propose(text[:end], 16)
        drafted += len(guess)
        if guess:
            drafter.observe(len(guess), 0)
    # a pass, and a hundredth of a pass for each of 400
    assert 0.2 * len(theirs.calls) + 0.3 * drafted <= 1 + 4 + 0.3


def test_drafts_are_as_long_as_what_is_taken_of_them(make_session: MakeSession) -> None:
    drafter = DraftModel(
        Slot(make_session(vocab_size=4)), vocab_size=4, step_cost=0.001, marginal_cost=0.1
    )
    text, lengths = noise(60, 4), []
    for end in range(10, 60):
        lengths.append(len(drafter.propose(text[:end], 16)))
        drafter.observe(lengths[-1], min(1, lengths[-1]))
    # every other judged guess is right: 1.5/1.1, 1.75/1.2 = 1.46, 1.875/1.3 = 1.44
    assert 1 <= sum(lengths[-20:]) / 20 <= 4


def test_ids_that_only_the_draft_model_knows_are_not_proposed(make_session: MakeSession) -> None:
    drafter = draft_model(make_session(vocab_size=50), vocab_size=2)
    guesses = [drafter.propose(noise(20, 50, seed), 4) for seed in range(20)]
    assert any(guesses)
    assert all(token_id < 2 for guess in guesses for token_id in guess)


def test_a_context_that_the_draft_model_cannot_hold_gets_no_draft(
    make_session: MakeSession,
) -> None:
    theirs = make_session(vocab_size=4, context_tokens=8)
    drafter = draft_model(theirs)
    assert len(drafter.propose([1] * 8, 5)) == 1  # which is not sent to it
    assert drafter.propose([1] * 9, 5) == []


def word_level(words: Sequence[str], special: Sequence[str] = ()) -> Tokenizer:
    ids = {word: i for i, word in enumerate([*words, *special])}
    inner = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=words[0]))
    inner.add_special_tokens(list(special))
    return Tokenizer(inner)


def test_vocabularies_must_be_the_same() -> None:
    target = word_level(["a", "b", "c"])
    require_same_vocabulary(word_level(["a", "b", "c"]), target)
    with pytest.raises(InputError, match="another vocabulary: 4 tokens against 3"):
        require_same_vocabulary(word_level(["a", "b", "c", "d"]), target)
    with pytest.raises(InputError, match="another vocabulary: 3 tokens against 3"):
        require_same_vocabulary(word_level(["a", "c", "b"]), target)


def test_control_tokens_may_have_other_names() -> None:
    require_same_vocabulary(
        word_level(["a", "b"], ["<end>"]), word_level(["a", "b"], ["<stop>", "<tool>"])
    )


def test_a_compiled_engine_says_the_same_with_drafts(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path]
) -> None:
    from edgekit.backends.onnxruntime.session import open_session

    graph = export_graph(make_tiny(), context_tokens=256)

    def slot() -> Slot:
        return Slot(open_session(graph, context_tokens=256, num_slots=1, threads=1))

    prompt = [*noise(30, 300), *noise(30, 300)]
    drafters: list[Drafter | None] = [
        None,
        PromptLookup(marginal_cost=0.02),
        DraftModel(slot(), vocab_size=384, step_cost=0.05, marginal_cost=0.02),
        Stubborn([5] * 40),  # more rows than bindings are kept for
    ]
    answers = []
    for drafter in drafters:
        generation = Generation(
            slot(), prompt, sampler=Sampler(Sampling()), max_new_tokens=150, drafter=drafter
        )
        list(generation)
        answers.append(generation.new_ids)
        if drafter is not None:
            assert generation.drafted_tokens > 0
    assert answers == [answers[0]] * 4
