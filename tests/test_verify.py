"""The check of an engine's answers: it measures what it says, and refuses what it must."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.session import OrtSession, open_session
from edgekit.errors import QualityError
from edgekit.precision import PRECISIONS
from edgekit.profile import find_profile
from edgekit.quality import Quality, require_quality
from edgekit.reference import Reference, ask
from edgekit.verify import measure_quality
from tests.commands import run

MakePath = Callable[..., Path]
Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
FIRST = 4
PROMPTS = tuple(
    tuple(int(i) for i in np.random.default_rng(seed).integers(0, 384, 24)) for seed in range(3)
)


@pytest.fixture(scope="module")
def session(make_tiny: MakePath, export_graph: MakePath) -> OrtSession:
    return open_session(export_graph(make_tiny()), context_tokens=64, num_slots=1, threads=1)


@pytest.fixture(scope="module")
def reference(make_tiny: MakePath, hf_logits: Logits) -> Reference:
    """What transformers answers, in fp32."""
    found = ask(
        lambda ids, count: hf_logits(make_tiny(), ids)[-count:], PROMPTS, first_position=FIRST
    )
    known = [5, 6, 7]
    answer: list[int] = []
    for _ in range(6):
        answer.append(int(hf_logits(make_tiny(), [*known, *answer])[-1].argmax()))
    return Reference(
        prompts=PROMPTS,
        first_position=FIRST,
        top_ids=found.top_ids,
        original=found.log_probs.astype(np.float16),
        simulated=found.log_probs.astype(np.float16),
        original_next=found.next,
        simulated_next=found.next,
        known_prompt=tuple(known),
        known_answer=tuple(answer),
    )


def test_an_engine_that_is_right_passes_every_limit(
    session: OrtSession, reference: Reference
) -> None:
    quality = measure_quality(session, reference)
    # three prompts of 24 tokens, from position 4 to the last but one
    assert quality.positions == 3 * (24 - 1 - FIRST)
    assert quality.top1_agreement == 1.0
    assert quality.known_answer_agreement == 6
    assert quality.known_answer_ids == reference.known_answer
    assert quality.perplexity_ratio == pytest.approx(1, abs=1e-4)
    # the reference is stored as fp16, and here covers the whole vocabulary of 384: what rounding
    # takes from its sum looks like an outcome that the engine never sees
    assert 0 <= quality.mean_kl < 2e-3
    for precision in PRECISIONS:
        require_quality(quality, precision)


def test_the_slot_is_left_empty(session: OrtSession, reference: Reference) -> None:
    session.prefill(0, [1, 2, 3])
    measure_quality(session, reference)
    assert session.length(0) == 0


def test_progress_ends_complete(session: OrtSession, reference: Reference) -> None:
    seen: list[tuple[str, int, int]] = []
    measure_quality(session, reference, report=lambda *step: seen.append(step))
    assert seen == [("verify", done, 3) for done in range(4)]


def test_agreement_counts_leading_tokens(session: OrtSession, reference: Reference) -> None:
    wrong = list(reference.known_answer)
    wrong[2] = (wrong[2] + 1) % 384
    quality = measure_quality(session, replace(reference, known_answer=tuple(wrong)))
    assert quality.known_answer_agreement == 2


def test_perplexity_is_that_of_the_tokens_that_follow(
    session: OrtSession, reference: Reference
) -> None:
    # an original that was half a nat surer of every next token: e^0.5 = 1.6487
    surer = replace(reference, original_next=reference.original_next + np.float32(0.5))
    quality = measure_quality(session, surer)
    assert quality.perplexity_ratio == pytest.approx(math.exp(0.5), rel=1e-4)


class Distorted:
    """A real session whose logits are changed on the way."""

    def __init__(self, session: OrtSession, change: Callable[..., NDArray[np.float32]]) -> None:
        self._session = session
        self._change = change
        self.num_slots, self.context_tokens = session.num_slots, session.context_tokens
        self.vocab_size, self.fills_apart = session.vocab_size, session.fills_apart
        self.length, self.truncate, self.close = session.length, session.truncate, session.close

    def prefill(
        self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1
    ) -> NDArray[np.float32]:
        return self._change(self._session.prefill(slot, token_ids, num_logits=num_logits))

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._change(self._session.decode(slots, token_ids))


class Apart(Distorted):
    """A session whose prompts go through something else, which changes their tokens."""

    def __init__(self, session: OrtSession, change: Callable[[int], int]) -> None:
        super().__init__(session, lambda logits: logits)
        self.fills_apart = True
        self._changed = change

    def prefill(
        self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1
    ) -> NDArray[np.float32]:
        if num_logits == 0:
            token_ids = [self._changed(token_id) for token_id in token_ids]
        return super().prefill(slot, token_ids, num_logits=num_logits)


def test_what_follows_a_prompt_is_measured_where_prompts_go_elsewhere(
    session: OrtSession, reference: Reference, tmp_path: Path
) -> None:
    assert measure_quality(session, reference).mean_kl_after_prompts is None
    right = measure_quality(Apart(session, lambda token_id: token_id), reference)
    assert right.mean_kl_after_prompts is not None
    assert 0 <= right.mean_kl_after_prompts < 2e-3
    require_quality(right, "int4_awq")
    # every token of the prompt is the next one of the vocabulary: nothing else can tell
    wrong = measure_quality(Apart(session, lambda token_id: (token_id + 1) % 384), reference)
    assert wrong.mean_kl_after_prompts is not None
    assert wrong.mean_kl_after_prompts > 0.06
    assert replace(wrong, mean_kl_after_prompts=None) == replace(right, mean_kl_after_prompts=None)
    with pytest.raises(
        QualityError, match=r"simulation after prompts is .*, limit 0\.06"
    ) as caught:
        require_quality(wrong, "int4_awq")
    _follow(str(caught.value.hint), tmp_path)


def _follow(hint: str, directory: Path) -> None:
    """What the hint says can be done, and then prompts go through the decoder."""
    show, file, key, option = re.findall("`([^`]*)`", hint)
    shown = run(*show.split()[1:])
    assert shown.exit_code == 0
    lines = shown.output.splitlines(keepends=True)
    left = [line for line in lines if key not in line]
    assert 0 < len(lines) - len(left) < 5
    (directory / file).write_text("".join(left), encoding="utf-8")
    assert option == f"--profile {file}"
    name, params = str(directory / file), 135_000_000
    assert find_profile("cpu").storage_for("int4_awq", params).prompt_bits == 8
    assert find_profile(name).storage_for("int4_awq", params).prompt_bits is None


def test_a_reference_from_a_later_position(reference: Reference) -> None:
    # three prompts of 24 tokens have positions 4 to 22, 19 rows each; from 20 on there are 3
    later = reference.starting_at(20)
    rows = [16, 17, 18, 35, 36, 37, 54, 55, 56]
    assert (later.prompts, later.first_position) == (reference.prompts, 20)
    np.testing.assert_array_equal(later.top_ids, reference.top_ids[rows])
    np.testing.assert_array_equal(later.simulated, reference.simulated[rows])
    np.testing.assert_array_equal(later.original, reference.original[rows])
    np.testing.assert_array_equal(later.original_next, reference.original_next[rows])
    assert reference.starting_at(2).first_position == FIRST
    assert reference.starting_at(23).prompts == ()
    shorter = replace(reference, prompts=(PROMPTS[0][:6], PROMPTS[1]))  # 1 row and 19
    assert shorter.starting_at(5).prompts == (PROMPTS[1],)
    np.testing.assert_array_equal(shorter.starting_at(5).top_ids, reference.top_ids[2:20])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda logits: logits * np.float32(np.nan), id="NaN"),
        pytest.param(lambda logits: logits + np.float32(np.inf), id="infinite"),
        pytest.param(lambda logits: logits * np.float32(1e6), id="huge"),
        pytest.param(lambda logits: logits * 0, id="flat"),
        pytest.param(lambda logits: -logits, id="upside down"),
        pytest.param(lambda logits: np.roll(logits, 1, axis=-1), id="one token off"),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "int4_awq"])
def test_garbage_fails_and_the_figure_is_named(
    session: OrtSession,
    reference: Reference,
    change: Callable[..., NDArray[np.float32]],
    precision: str,
) -> None:
    quality = measure_quality(Distorted(session, change), reference)
    expected = rf"{precision} engine failed its check: mean KL divergence from ModelOpt's .* is "
    with pytest.raises(QualityError, match=expected) as caught:
        require_quality(quality, precision)
    assert caught.value.hint


def test_nan_anywhere_is_nan_in_the_figure(session: OrtSession, reference: Reference) -> None:
    def one_bad_row(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = logits.copy()
        changed[0, 0] = np.nan
        return changed

    quality = measure_quality(Distorted(session, one_bad_row), reference)
    assert math.isnan(quality.mean_kl)
    with pytest.raises(QualityError, match="is nan, limit"):
        require_quality(quality, "int8")


GOOD = Quality(
    positions=1,
    mean_kl=0.0,
    mean_kl_simulated=0.0,
    top1_agreement=1.0,
    perplexity_ratio=1.0,
    known_answer_ids=(1,),
    known_answer_agreement=1,
)


def with_figure(field: str, value: float) -> Quality:
    changes: dict[str, Any] = {field: value}
    return replace(GOOD, **changes)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("mean_kl", "divergence from the checkpoint"),
        ("mean_kl_simulated", "divergence from ModelOpt's simulation"),
        ("perplexity_ratio", "perplexity ratio"),
    ],
)
def test_every_limit_of_every_precision_is_kept(precision: str, field: str, words: str) -> None:
    row = PRECISIONS[precision]
    limit = {
        "mean_kl": row.max_mean_kl,
        "perplexity_ratio": row.max_perplexity_ratio,
        # W8A8 and the like: the kernels' activation scales are not those that ModelOpt simulates
        "mean_kl_simulated": 0.02 if row.activation_bits == 16 else 0.06,
    }[field]
    require_quality(with_figure(field, limit), precision)
    for beyond in (limit * 1.001, math.nan, math.inf):
        with pytest.raises(QualityError, match=words):
            require_quality(with_figure(field, beyond), precision)


@pytest.mark.parametrize(("kv", "kl", "ratio"), [("int8", 0.09, 0.10), ("fp8", 0.03, 0.03)])
@pytest.mark.parametrize("precision", ["fp16", "int4_awq", "fp8"])
def test_a_rounded_cache_may_cost_what_it_is_known_to(
    precision: str, kv: str, kl: float, ratio: float
) -> None:
    row = PRECISIONS[precision]
    limits = {
        "mean_kl": row.max_mean_kl + kl,
        "perplexity_ratio": row.max_perplexity_ratio + ratio,
        "mean_kl_simulated": (0.02 if row.activation_bits == 16 else 0.06) + kl,
    }
    for field, limit in limits.items():
        require_quality(with_figure(field, limit * 0.999), precision, kv)
        with pytest.raises(QualityError) as caught:
            require_quality(with_figure(field, limit * 1.001), precision, kv)
        is_broken = field == "mean_kl_simulated"
        assert ("scales or layout are wrong" in str(caught.value.hint)) == is_broken
        assert ("`--kv fp16`" in str(caught.value.hint)) != is_broken
        with pytest.raises(QualityError):  # with a cache that is not rounded it is a mistake
            require_quality(with_figure(field, limit * 0.999), precision)
    # a twin of it can be asked without rounding the cache, and must agree closely
    twin = replace(with_figure("mean_kl_simulated", 0.0011), measured_on="twin")
    with pytest.raises(QualityError, match=r"limit 0\.001"):
        require_quality(twin, precision, kv)


def test_the_figures_are_plain_json() -> None:
    data = json.loads(json.dumps(GOOD.to_dict()))
    assert data["known_answer_ids"] == [1]
    assert data["known_answer"] == ""
    assert set(data) == set(GOOD.to_dict())
