"""The yardstick of `verify`: what a divergence is, and that a file of answers is read whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit.reference import Reference, ask, ask_top, least_kl, mean_kl

Floats = NDArray[np.float32]
RELAXED = settings(deadline=None, max_examples=60)


def logs(*rows: Sequence[float]) -> Floats:
    return np.log(np.array(rows, np.float32))


def test_equal_distributions_do_not_diverge() -> None:
    p = logs([0.5, 0.25, 0.125])
    assert mean_kl(p, p) == 0


def test_the_rest_is_one_more_outcome() -> None:
    # KL((1/2, 1/4 | 1/4) || (1/4, 1/4 | 1/2))
    # = 1/2 ln 2 + 1/4 ln 1 + 1/4 ln(1/2) = 1/4 ln 2
    found = mean_kl(logs([0.5, 0.25]), logs([0.25, 0.25]))
    assert found == pytest.approx(0.25 * math.log(2))


def test_rows_are_averaged() -> None:
    # (1/2 ln 2 + 1/2 ln(2/3)) and 0
    one = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    p, q = logs([0.5], [0.5]), logs([0.25], [0.5])
    assert mean_kl(p, q) == pytest.approx(one / 2)


def test_a_token_held_impossible_diverges_without_bound() -> None:
    p = logs([0.5, 0.4])
    q = np.array([[-math.inf, math.log(0.4)]], np.float32)
    assert mean_kl(p, q) == math.inf


def test_fp16_is_enough_for_small_divergences() -> None:
    rng = np.random.default_rng(0)
    p, q = _two(rng.standard_normal((50, 1000)) * 3, 0.1, rng)
    top = np.argsort(-p, axis=1)[:, :512]
    p, q = (np.take_along_axis(x, top, axis=1) for x in (p, q))
    # half a step of fp16 is 2^-9 nats where log-probabilities lie between -4 and -8: of either
    # sign, and averaged over 512 tokens
    assert mean_kl(p.astype(np.float16), q) == pytest.approx(mean_kl(p, q), abs=2e-4)


Doubles = NDArray[np.float64]


def _two(logits: Doubles, noise: float, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    other = logits + noise * rng.standard_normal(logits.shape)
    first, second = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (logits, other))
    return first, second


@RELAXED
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.3, 1.0, 4.0]))
def test_the_top_tokens_give_a_lower_bound_that_is_close(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    # as peaked as a language model: the 100 likeliest of 2000 hold nearly everything
    p, q = _two(rng.standard_normal((8, 2000)) * 4, noise, rng)
    full = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    top = np.argsort(-p, axis=1)[:, :100]
    found = mean_kl(np.take_along_axis(p, top, axis=1), np.take_along_axis(q, top, axis=1))
    assert 0 <= found <= full * (1 + 1e-6)
    # what merging the rest forgets is at most the divergence within it, a few percent of mass
    assert found >= 0.75 * full


@RELAXED
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_more_tokens_never_lower_the_divergence(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = _two(rng.standard_normal((3, 50)), 1.0, rng)
    fewer, more = (mean_kl(p[:, :k], q[:, :k]) for k in (count, count + 1))
    assert fewer <= more + 1e-9


def fixed(table: Floats) -> Callable[[Sequence[int], int], Floats]:
    """A model whose logits after token i are row i."""
    return lambda ids, count: table[np.asarray(ids)][-count:]


def test_answers_are_log_probabilities_of_the_likeliest_tokens() -> None:
    # softmax of (0, ln 2, ln 5) is (1, 2, 5) / 8
    table = np.log(np.array([[1, 2, 5], [2, 1, 5], [5, 2, 1]], np.float32))
    found = ask(fixed(table), [[0, 1, 2, 0]], first_position=1)
    # positions 1 and 2 are asked: tokens 1 and 2, followed by 2 and 0
    assert found.top1.tolist() == [2, 0]
    np.testing.assert_allclose(found.next, np.log([5 / 8, 5 / 8]), rtol=1e-6)
    assert found.top_ids.shape == (2, 3)
    expected = np.log(np.array([[2, 1, 5], [5, 2, 1]]) / 8)
    np.testing.assert_allclose(
        found.log_probs, np.take_along_axis(expected, found.top_ids.astype(np.int64), 1), rtol=1e-6
    )


def test_a_second_model_is_asked_about_the_first_one_s_tokens() -> None:
    table = np.log(np.array([[1, 2, 5], [2, 1, 5], [5, 2, 1]], np.float32))
    top = np.array([[0], [1], [2], [0]], np.int32)
    prompts = [[0, 1, 2], [2, 2, 1]]
    found = ask(fixed(table), prompts, first_position=0, top_ids=top)
    # after 0, 1 and 2, 2: tokens 0, 1, 2, 0
    np.testing.assert_allclose(
        found.log_probs[:, 0], np.log([1 / 8, 1 / 8, 1 / 8, 5 / 8]), rtol=1e-6
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_logits_that_are_no_numbers_give_no_warning_and_no_small_divergence(bad: float) -> None:
    table = np.zeros((3, 3), np.float32)
    good = ask(fixed(table), [[0, 1, 2, 0]], first_position=1)
    table[1, 0] = bad
    found = ask(
        fixed(table),
        [[0, 1, 2, 0]],
        first_position=1,
        top_ids=good.top_ids,
    )
    assert not mean_kl(good.log_probs, found.log_probs) <= 1.0


def reference() -> Reference:
    rng = np.random.default_rng(1)
    return Reference(
        prompts=((1, 2, 3), (4, 5, 6, 7)),
        first_position=1,
        top_ids=rng.integers(0, 9, (3, 4)).astype(np.int32),
        original=-rng.random((3, 4)).astype(np.float16),
        simulated=-rng.random((3, 4)).astype(np.float16),
        original_next=-rng.random(3).astype(np.float32),
        simulated_next=-rng.random(3).astype(np.float32),
        known_prompt=(8, 9),
        known_answer=(3,),
    )


def test_a_file_of_answers_is_read_back_as_written(tmp_path: Path) -> None:
    reference().save(tmp_path / "r.npz")
    found = Reference.load(tmp_path / "r.npz")
    for field in fields(Reference):
        ours, theirs = getattr(reference(), field.name), getattr(found, field.name)
        if isinstance(ours, np.ndarray):
            assert theirs.dtype == ours.dtype
            np.testing.assert_array_equal(theirs, ours)
        else:
            assert theirs == ours


def test_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        reference().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_missing_file_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unreadable reference answers"):
        Reference.load(tmp_path / "none.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("reference") / "r.npz"
    reference().save(path)
    return path.read_bytes()


def load_bytes(data: bytes, directory: Path) -> Reference | None:
    """What damaged bytes are read as; `None` where that is refused in our words."""
    path = directory / "damaged.npz"
    path.write_bytes(data)
    try:
        return Reference.load(path)
    except EngineError:
        return None


def test_a_file_that_was_cut_is_refused_wherever_it_was_cut(whole: bytes, tmp_path: Path) -> None:
    for length in range(0, len(whole), 7):
        assert load_bytes(whole[:length], tmp_path) is None


def test_a_damaged_byte_is_refused_or_changes_nothing(whole: bytes, tmp_path: Path) -> None:
    expected = reference()
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0x55
        found = load_bytes(bytes(data), tmp_path)
        if found is not None:  # dates and attributes in the archive mean nothing to us
            np.testing.assert_array_equal(found.simulated, expected.simulated)
            assert found.prompts == expected.prompts


@pytest.mark.parametrize("data", [b"", b"not a file of arrays", b"\x93NUMPY\x01\x00"])
def test_another_kind_of_file_is_refused(data: bytes, tmp_path: Path) -> None:
    assert load_bytes(data, tmp_path) is None


def test_a_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert load_bytes((tmp_path / "one.npy").read_bytes(), tmp_path) is None


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def likeliest(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The `count` likeliest of each row, and their log-probabilities, likeliest first."""
    ids = np.argsort(-values, axis=1)[:, :count]
    return ids, np.take_along_axis(values, ids, axis=1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0, 3))
def test_the_least_divergence_is_none_too_large(
    seed: int, num_top: int, num_told: int, difference: float
) -> None:
    random = np.random.default_rng(seed)
    p = log_softmax(random.normal(size=(3, 24)) * 2)
    q = log_softmax(p + random.normal(size=(3, 24)) * difference)
    top_ids, original = likeliest(p, num_top)
    told_ids, told = likeliest(q, num_told)
    least = least_kl(original, top_ids, told_ids, told)
    exact = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    assert least <= mean_kl(original, np.take_along_axis(q, top_ids, axis=1)) + 1e-9 <= exact + 2e-9
    assert least >= -1e-9


def test_the_least_divergence_of_an_engine_that_agrees_is_none() -> None:
    p = log_softmax(np.random.default_rng(1).normal(size=(2, 30)) * 3)
    top_ids, original = likeliest(p, 20)
    assert least_kl(original, top_ids, *likeliest(p, 8)) == pytest.approx(0, abs=1e-9)


def test_the_least_divergence_by_hand() -> None:
    # p: 0.5, 0.3 of tokens 0 and 1, 0.2 elsewhere; q tells 0.4 of token 0 and 0.2 of token 9.
    # Token 1 may have 0.2 at most, its share of the 0.6 left would be 0.36: 0.2, and 0.4 the rest.
    p, told = np.log([[0.5, 0.3]]), np.log([[0.4, 0.2]])
    least = least_kl(p, np.array([[0, 1]]), np.array([[0, 9]]), told)
    by_hand = 0.5 * np.log(0.5 / 0.4) + 0.3 * np.log(0.3 / 0.2) + 0.2 * np.log(0.2 / 0.4)
    assert least == pytest.approx(by_hand)


def test_garbage_diverges_though_it_shares_no_token() -> None:
    p = np.log([[0.6, 0.39]])
    told = np.log([[0.9, 0.05]])
    # what it hides of p's two tokens is 0.05 at most
    least = least_kl(p, np.array([[0, 1]]), np.array([[7, 8]]), told)
    assert least == pytest.approx(0.99 * np.log(0.99 / 0.05) + 0.01 * np.log(0.01 / 0.95))


def test_nan_that_is_told_is_nan() -> None:
    p, ids = np.log([[0.6, 0.3]]), np.array([[0, 1]])
    assert np.isnan(least_kl(p, ids, np.array([[7, 8]]), np.array([[np.nan, -1.0]])))
    assert np.isnan(least_kl(p, ids, np.array([[-1, -1]]), np.array([[-np.inf, -np.inf]])))


def test_only_positions_that_could_be_asked_are_compared() -> None:
    p = log_softmax(np.random.default_rng(2).normal(size=(4, 30)) * 3)
    top_ids, original = likeliest(p, 20)
    reference = Reference(
        prompts=((1, 2, 3, 4), (1, 2, 3, 4)),
        first_position=1,
        top_ids=top_ids.astype(np.int32),
        original=original.astype(np.float16),
        simulated=original.astype(np.float16),
        original_next=np.zeros(4, np.float32),
        simulated_next=np.zeros(4, np.float32),
        known_prompt=(1,),
        known_answer=(2,),
    )
    told_ids, told = likeliest(p, 8)
    told_ids[1, 0] = -1
    asked: list[tuple[tuple[int, ...], int]] = []

    def scores_of(ids: tuple[int, ...], *, first: int) -> Any:
        begin = 2 * len(asked)
        asked.append((ids, first))
        return told_ids[begin : begin + 2], told[begin : begin + 2].astype(np.float32)

    figures = ask_top(scores_of, reference)
    assert asked == [((1, 2, 3), 1)] * 2
    assert figures is not None
    assert (figures["positions"], figures["top1_agreement"]) == (3, 1.0)
    assert figures["mean_kl"] == pytest.approx(0, abs=1e-3)  # stored as fp16
    told_ids[:, 0] = -1
    asked.clear()
    assert ask_top(scores_of, reference) is None
