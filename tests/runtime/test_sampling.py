from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import BackendError, InputError
from edgekit.runtime.sampling import Sampler, Sampling


def logits_of(*probabilities: float) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float32))


def kept(logits: NDArray[np.float32], history: list[int] = [], **options: Any) -> dict[int, float]:  # noqa: B006  # read only
    found = Sampler(Sampling(**options)).distribution(logits, history)
    return {int(i): float(p) for i, p in zip(found.token_ids, found.probabilities, strict=True)}


def test_greedy_takes_the_largest_logit() -> None:
    assert Sampler(Sampling()).sample(logits_of(0.2, 0.5, 0.3), []) == 1


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert Sampler(Sampling()).sample(logits_of(0.2, 0.4, 0.4), []) == 1


def test_temperature_one_keeps_the_model_distribution() -> None:
    expected = {0: 0.2, 1: 0.5, 2: 0.3}
    assert kept(logits_of(0.2, 0.5, 0.3), temperature=1.0) == pytest.approx(expected, rel=1e-6)


def test_temperature_half_squares_the_probabilities() -> None:
    # 0.8^2 : 0.2^2 = 0.64 : 0.04 = 16 : 1
    expected = {0: 16 / 17, 1: 1 / 17}
    assert kept(logits_of(0.8, 0.2), temperature=0.5) == pytest.approx(expected, rel=1e-6)


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    found = kept(np.array([1e30, 2e30, -1e30], dtype=np.float32), temperature=1e-30)
    assert found == {0: 0.0, 1: 1.0, 2: 0.0}


def test_a_bias_is_added_to_its_tokens_and_ids_beyond_the_logits_do_not_count() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    given = logits.copy()
    sampler = Sampler(Sampling(temperature=1.0), bias={0: math.log(2), 2: -math.inf, 3: 100.0})
    found = sampler.distribution(logits, [])
    kept_ids = dict(zip(found.token_ids.tolist(), found.probabilities.tolist(), strict=True))
    # 0.2 * 2 : 0.5 of 0.9
    assert {i: p for i, p in kept_ids.items() if p} == pytest.approx({0: 4 / 9, 1: 5 / 9})
    assert np.array_equal(logits, given)


def test_top_k_keeps_the_best_and_rescales() -> None:
    # 0.5 and 0.3 of 0.8
    expected = {1: 0.625, 2: 0.375}
    assert kept(logits_of(0.2, 0.5, 0.3), temperature=1.0, top_k=2) == pytest.approx(expected)


def test_top_k_keeps_what_ties_with_the_last_one() -> None:
    assert set(kept(logits_of(0.2, 0.4, 0.2, 0.2), temperature=1.0, top_k=2)) == {0, 1, 2, 3}


def test_top_p_keeps_the_fewest_that_reach_the_sum() -> None:
    # 0.5 + 0.3 = 0.8 reaches 0.75; 0.5 does not
    assert set(kept(logits_of(0.2, 0.5, 0.3), temperature=1.0, top_p=0.75)) == {1, 2}


def test_top_p_zero_keeps_the_best_one() -> None:
    assert kept(logits_of(0.2, 0.5, 0.3), temperature=1.0, top_p=0.0) == {1: 1.0}


def test_top_p_counts_only_what_top_k_kept() -> None:
    # of the two kept, 0.4 is a share of 0.571 and reaches 0.55; of all four it would not
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert set(kept(logits, temperature=1.0, top_k=2, top_p=0.55)) == {0}
    assert set(kept(logits, temperature=1.0, top_p=0.55)) == {0, 1}


def test_top_p_counts_after_the_temperature() -> None:
    # at temperature 0.5: 0.36 : 0.09 : 0.01 -> 0.78 alone reaches 0.75; before it 0.6 does not
    assert set(kept(logits_of(0.6, 0.3, 0.1), temperature=0.5, top_p=0.75)) == {0}


def test_top_p_reaches_far_into_a_flat_distribution() -> None:
    # 20000 equal tokens: half of the sum needs 10000 of them
    logits = np.zeros(20_000, dtype=np.float32)
    assert len(kept(logits, temperature=1.0, top_p=0.5)) == 10_000


def test_min_p_is_a_share_of_the_best_probability() -> None:
    # 0.5 x 0.5 = 0.25: 0.3 stays, 0.2 goes
    assert set(kept(logits_of(0.2, 0.5, 0.3), temperature=1.0, min_p=0.5)) == {1, 2}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    # 2 / 2 = 1 and -1 x 2 = -2: the weights are e^1, e^1, e^-2
    logits = np.array([2.0, 1.0, -1.0], dtype=np.float32)
    total = 2 * math.e + math.e**-2
    expected = {0: math.e / total, 1: math.e / total, 2: math.e**-2 / total}
    found = kept(logits, [0, 2, 0, 2], temperature=1.0, repetition_penalty=2.0)
    assert found == pytest.approx(expected, rel=1e-6)


def test_repetition_penalty_acts_on_greedy_too() -> None:
    logits = np.array([2.0, 1.5], dtype=np.float32)
    assert Sampler(Sampling(repetition_penalty=2.0)).sample(logits, [0]) == 1


def test_sampling_leaves_the_logits_alone() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    before = logits.copy()
    options = Sampling(temperature=0.7, repetition_penalty=1.3, top_k=2, top_p=0.9, min_p=0.1)
    Sampler(options).sample(logits, [0, 1])
    assert np.array_equal(logits, before)


def test_a_masked_token_is_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=5.0, seed=0))
    assert {sampler.sample(logits_of(0.5, 0.0, 0.5), []) for _ in range(200)} == {0, 2}


def test_the_same_seed_draws_the_same_tokens() -> None:
    rows = np.random.default_rng(7).standard_normal((50, 1000), dtype=np.float32)
    first, second = (Sampler(Sampling(temperature=1.0, seed=3)) for _ in range(2))
    assert [first.sample(r, []) for r in rows] == [second.sample(r, []) for r in rows]


def test_draws_follow_the_distribution() -> None:
    # 4000 draws of p = 0.25: three standard deviations are 3 x sqrt(4000 x 0.25 x 0.75) = 82
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    draws = [sampler.sample(logits_of(0.25, 0.75), []) for _ in range(4000)]
    assert abs(draws.count(0) - 1000) < 82


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_a_backend_error(bad: float, temperature: float) -> None:
    logits = np.array([0.0, bad, 1.0], dtype=np.float32)
    with pytest.raises(BackendError, match="not numbers"):
        Sampler(Sampling(temperature=temperature)).sample(logits, [])


def test_logits_without_any_choice_are_a_backend_error() -> None:
    with pytest.raises(BackendError, match="not numbers"):
        Sampler(Sampling()).sample(np.full(3, -np.inf, dtype=np.float32), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.01),
        ("top_p", "1"),
        ("min_p", -0.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_bad_value_is_refused_with_the_limit(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"{name} must be .* to .*: .+"):
        Sampling(**{name: value})  # type: ignore[arg-type]  # the point of the test


def test_generation_config_without_do_sample_is_greedy() -> None:
    config = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    assert Sampling.from_generation_config(config) == Sampling(repetition_penalty=1.1)


def test_generation_config_with_do_sample_is_taken() -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": None}
    expected = Sampling(temperature=0.6, top_p=0.95)
    assert Sampling.from_generation_config(config) == expected


def test_generation_config_without_temperature_samples_at_one() -> None:
    assert Sampling.from_generation_config({"do_sample": True}) == Sampling(temperature=1.0)


def reference(
    logits: NDArray[np.float32], history: list[int], options: Sampling
) -> dict[int, float]:
    """The same distribution by `transformers`, in the order of its `generate`."""
    import torch
    from transformers.generation import logits_process as hf

    steps: list[Any] = [hf.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))]
    steps.append(hf.TemperatureLogitsWarper(options.temperature))
    steps += [hf.TopKLogitsWarper(options.top_k)] if options.top_k else []
    steps += [hf.TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    steps += [hf.MinPLogitsWarper(options.min_p)] if options.min_p else []
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    for step in steps:
        scores = step(torch.tensor([history]), scores)
    probabilities = torch.softmax(scores, dim=-1)[0].tolist()
    return {i: p for i, p in enumerate(probabilities) if scores[0, i] != -math.inf}


@pytest.mark.parametrize("case", range(40))
def test_the_distribution_is_that_of_transformers(case: int) -> None:
    random = np.random.default_rng(case)
    vocab_size = int(random.choice([5, 300, 5000]))
    logits = (random.standard_normal(vocab_size) * random.choice([0.5, 3, 10])).astype(np.float32)
    history = random.integers(vocab_size, size=30).tolist()
    options = Sampling(
        temperature=float(random.uniform(0.2, 2)),
        top_k=int(random.choice([0, 1, 4, 50])),
        top_p=float(random.choice([1.0, 0.95, 0.5])),
        min_p=float(random.choice([0.0, 0.02, 0.3])),
        repetition_penalty=float(random.choice([1.0, 1.3, 0.8])),
    )
    found = Sampler(options).distribution(logits, history)
    ours = {int(i): float(p) for i, p in zip(found.token_ids, found.probabilities, strict=True)}
    # float32 penalty here, float64 there
    assert ours == pytest.approx(reference(logits, history, options), rel=1e-4, abs=1e-9)


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    temperature=st.floats(0, 5),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 50),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.5, 2),
    seed=st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_a_drawn_token_is_one_that_was_kept(
    logits: list[float],
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    penalty: float,
    seed: int,
) -> None:
    options = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=seed,
    )
    row = np.array(logits, dtype=np.float32)
    sampler = Sampler(options)
    found = sampler.distribution(row, [0])
    assert found.probabilities.sum() == pytest.approx(1)
    assert sampler.sample(row, [0]) in set(found.token_ids.tolist())


@pytest.mark.parametrize("case", range(12))
def test_a_large_vocabulary_is_filtered_as_a_small_one(case: int) -> None:
    """Against a plain sort: groups, first tries and blocks only save time."""
    random = np.random.default_rng(case)
    vocab_size = int(random.choice([20_000, 49_152, 128_256]))
    logits = (random.standard_normal(vocab_size) * random.choice([0.1, 3, 10])).astype(np.float32)
    logits[random.integers(vocab_size, size=50)] = logits.max()  # ties
    top_k = int(random.choice([0, 40, 3000]))
    top_p = float(random.choice([1.0, 0.95, 0.3]))
    found = Sampler(Sampling(temperature=0.8, top_k=top_k, top_p=top_p)).distribution(logits, [])

    order = np.argsort(-logits, kind="stable")
    if top_k:
        order = order[logits[order] >= logits[order[top_k - 1]]]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / 0.8)
    if top_p < 1:
        count = 1 + int(np.count_nonzero(np.cumsum(weights) < top_p * weights.sum()))
        order, weights = order[:count], weights[:count]
    # the sum of many float32 differs in its last digits, and so may the last token kept
    ours, theirs = set(found.token_ids.tolist()), set(order.tolist())
    assert len(ours ^ theirs) <= 1 + len(theirs) // 10_000
    assert np.all(np.diff(found.token_ids) > 0)
    places = {int(i): float(w) for i, w in zip(order, weights / weights.sum(), strict=True)}
    pairs = zip(found.token_ids.tolist(), found.probabilities.tolist(), strict=True)
    for token_id, probability in pairs:
        if token_id in places:
            assert probability == pytest.approx(places[token_id], rel=1e-3)


def test_every_block_of_a_large_vocabulary_is_drawn_from() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=2))
    logits = np.full(1000, -np.inf, dtype=np.float32)
    wanted = [0, 255, 256, 511, 999]
    logits[wanted] = 0
    draws = [sampler.sample(logits, []) for _ in range(1000)]
    assert set(draws) == set(wanted)
    # p = 0.2: four standard deviations are 4 x sqrt(1000 x 0.2 x 0.8) = 51
    assert all(abs(draws.count(token_id) - 200) < 51 for token_id in wanted)
