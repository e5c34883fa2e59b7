"""Perplexity: what it is of a model that knows nothing, and what a session is asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.eval.perplexity import WINDOW_TOKENS, score_text, session_logits, windows

if TYPE_CHECKING:
    from tests.conftest import HashSession

    MakeSession = Callable[..., HashSession]

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 50, 700)]


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    found = score_text(lambda ids: [np.zeros((len(ids), 50), np.float32)], IDS)
    assert found.perplexity == pytest.approx(50)
    assert found.num_tokens == len(IDS) - 1


def test_a_model_that_is_sure_and_right_is_not_perplexed() -> None:
    def sure(ids: Sequence[int]) -> list[NDArray[np.float32]]:
        rows = np.full((len(ids), 50), -100, np.float32)
        rows[np.arange(len(ids)), IDS[1 : len(ids) + 1]] = 0
        return [rows]

    assert score_text(sure, IDS).perplexity == pytest.approx(1)


def test_windows_leave_no_single_token() -> None:
    cut = windows(range(2 * WINDOW_TOKENS + 1))
    assert [len(window) for window in cut] == [WINDOW_TOKENS] * 2


@pytest.mark.parametrize("fills_apart", [False, True])
def test_a_session_is_asked_for_every_row_once(
    fills_apart: bool, make_session: MakeSession
) -> None:
    session = make_session(context_tokens=800, num_slots=2, vocab_size=50)
    session.fills_apart = fills_apart
    session.prefill(1, [1, 2])
    expected = make_session(context_tokens=800, num_slots=1, vocab_size=50)
    rows = np.concatenate(session_logits(session, 1)(IDS))
    np.testing.assert_array_equal(rows, expected.prefill(0, IDS, num_logits=len(IDS)))
    sizes = [size for kind, size in session.calls[1:]]
    # 350 tokens in pieces, in one as a prompt, and the other 350 in pieces
    assert sizes == ([256, 94, 350, 256, 94] if fills_apart else [256, 256, 188])
