"""The engine on the card against its twin on the processor, and against itself.

The twin computes the same graph with the same rounded weights. What is left between the two is the
order of sums and where fp16 is rounded; a wrong mask, scale, position, nibble or address is not a
small difference. All differences are in multiples of the standard deviation of the row of logits
that is compared with, which makes them comparable between models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.base import Session
from edgekit.errors import InputError
from edgekit.progress import Progress, no_progress
from gpu_check.lines import Line, at_most, guarded, must, told

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

GREEDY_TOKENS = 32
LONG_TOKENS = 300
"""More than one piece of the twin, and no power of two: the card pads it."""
STEPS = 8
"""Decode steps of the checks that compare the card with itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a precision may differ by."""

    difference: float
    """Largest difference of a logit, in standard deviations of its row."""
    kl: float
    """Mean divergence from the twin, nats."""


SIXTEEN_BIT = Limits(difference=0.1, kl=0.0005)
"""Activations are fp16, rounded at 2^-11 after each of some hundred operators. Between two sets of
processor kernels (SmolLM2-135M, ONNX Runtime with and without its optimizations) that is 0.03
standard deviations and 3e-6 nats; a card may also sum in fp16. A mistake is 1 and more."""
EIGHT_BIT = Limits(difference=0.3, kl=0.005)
"""Activations are rounded to 3 bits of mantissa: a difference of the last bit before it is one of
6 % behind it. Two sets of processor kernels round alike (0.007 standard deviations); a card
multiplies the codes themselves, and need not."""
NEAR_TIE = 2.0
"""Two differences, one for each of the two tokens: no further apart may two tokens be that change
places."""


def limits_of(activation_bits: int) -> Limits:
    """By what reaches a matrix product."""
    return SIXTEEN_BIT if activation_bits >= 16 else EIGHT_BIT


def check_numerics(
    card: Session,
    twin: Session,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    *,
    report: Progress = no_progress,
) -> list[Line]:
    """All comparisons. Leaves both sessions empty."""
    longest = min(card.context_tokens, twin.context_tokens)
    prompts = [list(prompt)[: longest - GREEDY_TOKENS] for prompt in prompts]
    checks: list[tuple[str, Callable[[], Sequence[Line]]]] = [
        ("logits", lambda: _against_twin(card, twin, prompts, limits)),
        ("greedy", lambda: _greedy(card, twin, prompts, limits)),
        ("one pass, against the twin", lambda: _one_pass(card, twin, prompts, limits)),
        ("prompt in pieces", lambda: _in_pieces(card, prompts, limits)),
        ("decode against prefill", lambda: _decode(card, prompts, limits)),
        ("several slots", lambda: _slots(card, prompts, limits)),
        ("truncate and go on", lambda: _truncate(card, prompts, limits)),
        ("to the last token", lambda: _full(card, prompts, limits)),
    ]
    lines: list[Line] = []
    for done, (name, check) in enumerate(checks):
        report("numerics", done, len(checks))
        lines += guarded(name, partial(_from_empty, card, twin, check))
    report("numerics", len(checks), len(checks))
    empty(card)
    empty(twin)
    return lines


def empty(session: Session) -> None:
    """Forget all slots."""
    for slot in range(session.num_slots):
        session.truncate(slot, 0)


def differences(logits: Logits, expected: Logits) -> NDArray[np.float64]:
    """`[T]`: the largest difference of each row, in standard deviations of the expected row."""
    if logits.shape != expected.shape:
        raise ValueError(f"logits {list(logits.shape)}, expected {list(expected.shape)}")
    found = np.abs(logits.astype(np.float64) - expected).max(axis=-1)
    result: NDArray[np.float64] = found / expected.astype(np.float64).std(axis=-1)
    return result


def divergences(logits: Logits, expected: Logits) -> NDArray[np.float64]:
    """`[T]`: KL divergence from the expected distribution, in nats, over the whole vocabulary."""
    ours, theirs = _log_probs(logits), _log_probs(expected)
    result: NDArray[np.float64] = (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
    return result


def _log_probs(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _from_empty(
    card: Session, twin: Session, check: Callable[[], Sequence[Line]]
) -> Sequence[Line]:
    empty(card)
    empty(twin)
    return check()


def _against_twin(
    card: Session, twin: Session, prompts: Sequence[Sequence[int]], limits: Limits
) -> list[Line]:
    """Every position of every prompt."""
    worst, kl, same = [], [], []
    for prompt in prompts:
        rows = _fresh(card, 0, prompt, len(prompt))
        expected = _fresh(twin, 0, prompt, len(prompt))
        worst.append(differences(rows, expected))
        kl.append(divergences(rows, expected))
        same.append(rows.argmax(axis=-1) == expected.argmax(axis=-1))
    all_worst, all_kl = np.concatenate(worst), np.concatenate(kl)
    return [
        at_most(
            "logits: largest difference / standard deviation",
            float(all_worst.max()),
            limits.difference,
            note=f"{len(all_worst)} positions, median {np.median(all_worst):.2g}",
        ),
        at_most("logits: mean KL, nats", float(all_kl.mean()), limits.kl),
        told("logits: same likeliest token", 100 * float(np.concatenate(same).mean()), "%"),
    ]


def _greedy(
    card: Session, twin: Session, prompts: Sequence[Sequence[int]], limits: Limits
) -> list[Line]:
    """Both choose, and both go on with the twin's choice, so that all steps can be compared."""
    prompt, margins, worst = prompts[0], [], 0.0
    first_different = None
    rows, expected = _fresh(card, 0, prompt, 1)[0], _fresh(twin, 0, prompt, 1)[0]
    for step in range(GREEDY_TOKENS):
        worst = _worse(worst, float(differences(rows[None], expected[None])[0]))
        ours, theirs = int(rows.argmax()), int(expected.argmax())
        if ours != theirs:
            margins.append(float((expected[theirs] - expected[ours]) / expected.std()))
            first_different = step if first_different is None else first_different
        if step + 1 < GREEDY_TOKENS:
            rows, expected = card.decode([0], [theirs])[0], twin.decode([0], [theirs])[0]
    note = f"{GREEDY_TOKENS - len(margins)} of {GREEDY_TOKENS} tokens are the same"
    if first_different is not None:
        note += f"; the first other one is number {first_different + 1}, margin {margins[0]:.2g}"
    return [
        at_most(
            "greedy: largest margin of a token that differs / standard deviation",
            max(margins, default=0.0),
            NEAR_TIE * limits.difference,
            note=note,
        ),
        at_most("greedy: largest difference / standard deviation", worst, limits.difference),
    ]


def _one_pass(
    card: Session, twin: Session, prompts: Sequence[Sequence[int]], limits: Limits
) -> list[Line]:
    """A long prompt at once: its last row, where other kernels run than for rows by the dozen."""
    ids = _long(prompts, min(LONG_TOKENS, card.context_tokens, twin.context_tokens))
    found = differences(_fresh(card, 0, ids, 1), _fresh(twin, 0, ids, 1))
    return [_difference("one long pass, against the twin", found, limits, f"{len(ids)} tokens")]


def _in_pieces(card: Session, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Line]:
    """Pieces of 1, 7 and a third of the rest give what one pass gives."""
    ids = _long(prompts, min(LONG_TOKENS, card.context_tokens))
    rows = min(STEPS, len(ids) // 3)
    whole = _fresh(card, 0, ids, rows)
    third = (len(ids) - 8) // 3
    ends = [0, 1, 8, 8 + third, len(ids) - rows, len(ids)]
    card.truncate(0, 0)
    for start, end in pairwise(ends):
        wanted = rows if end == len(ids) else 1
        pieces = card.prefill(0, ids[start:end], num_logits=wanted).copy()
        _require_length(card, 0, end)
    return [_difference("prompt in pieces = one pass", differences(pieces, whole), limits)]


def _decode(card: Session, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Line]:
    """One token a pass (the decode profile, where there is one) as several in one (profile 0)."""
    ids = _long(prompts, min(LONG_TOKENS, card.context_tokens))
    start = len(ids) - STEPS
    _fresh(card, 0, ids[:start], 1)
    whole = card.prefill(0, ids[start:], num_logits=STEPS).copy()
    card.truncate(0, start)
    steps = np.stack([card.decode([0], [token])[0].copy() for token in ids[start:]])
    _require_length(card, 0, len(ids))
    return [_difference("a token a pass = several in one", differences(steps, whole), limits)]


def _slots(card: Session, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Line]:
    """Prompts of different lengths in all slots, then steps over all at once, in any order."""
    count = card.num_slots
    if count < 2:
        return [told("several slots = single ones", note="the engine has one: `--batch 2`")]
    longest = card.context_tokens - STEPS
    mine = [_long(prompts[i % len(prompts) :], min(longest, 16 + 9 * i)) for i in range(count)]
    fed = [_long(prompts[(i + 1) % len(prompts) :], STEPS) for i in range(count)]
    single = []
    for slot in range(count):
        first = _fresh(card, 0, mine[slot], 1)
        single.append([first[0], *(card.decode([0], [t])[0].copy() for t in fed[slot])])
    card.truncate(0, 0)
    for slot in reversed(range(count)):
        card.prefill(slot, mine[slot][: len(mine[slot]) // 2])
    together = [
        # in the other order, so that each slot is written after both of its neighbours
        [card.prefill(slot, mine[slot][len(mine[slot]) // 2 :])[0].copy()]
        for slot in range(count)
    ]
    for step in range(STEPS):
        # the order of the slots turns, and every second step leaves one of them out
        order = [(step // 2 + i) % count for i in range(count)]
        for group in [order] if step % 2 == 0 else [order[:1], order[1:]]:
            rows = card.decode(group, [fed[slot][step] for slot in group])
            for slot, row in zip(group, rows, strict=True):
                together[slot].append(row.copy())
    for slot in range(count):
        _require_length(card, slot, len(mine[slot]) + STEPS)
    found = np.concatenate(
        [differences(np.stack(a), np.stack(b)) for a, b in zip(together, single, strict=True)]
    )
    return [_difference("several slots = single ones", found, limits, f"{count} slots")]


def _truncate(card: Session, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Line]:
    """What was taken back leaves no trace."""
    head = _long(prompts, min(LONG_TOKENS, card.context_tokens) // 2)
    wrong, right = list(reversed(head)), _long(prompts[1:] or prompts, STEPS)
    expected = _fresh(card, 0, [*head, *right], len(right))
    _fresh(card, 0, [*head, *wrong], 1)
    card.truncate(0, len(head))
    _require_length(card, 0, len(head))
    rows = card.prefill(0, right, num_logits=len(right)).copy()
    return [_difference("truncate and go on = never said", differences(rows, expected), limits)]


def _full(card: Session, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Line]:
    """The last tokens of a full slot, and one more, which is refused and changes nothing."""
    ids = _long(prompts, card.context_tokens)
    start = len(ids) - STEPS
    whole = _fresh(card, 0, ids, STEPS)
    card.truncate(0, start)
    steps = np.stack([card.decode([0], [token])[0].copy() for token in ids[start:]])
    found = _difference(
        "last tokens of a full slot", differences(steps, whole), limits, f"{len(ids)} tokens"
    )
    try:
        card.decode([0], [ids[0]])
        is_refused = False
    except InputError:
        is_refused = card.length(0) == len(ids)
    return [found, must("one token more is refused, and changes nothing", is_refused)]


def _difference(name: str, found: NDArray[np.float64], limits: Limits, note: str = "") -> Line:
    return at_most(name, float(found.max()), limits.difference, note=note)


def _fresh(session: Session, slot: int, ids: Sequence[int], num_logits: int) -> Logits:
    """The last rows of `ids` on an empty slot; a copy, which stays."""
    session.truncate(slot, 0)
    rows = session.prefill(slot, ids, num_logits=num_logits).copy()
    _require_length(session, slot, len(ids))
    return rows


def _require_length(session: Session, slot: int, tokens: int) -> None:
    if session.length(slot) != tokens:
        raise ValueError(f"slot {slot} holds {session.length(slot)} tokens, not {tokens}")


def _long(prompts: Sequence[Sequence[int]], count: int) -> list[int]:
    """`count` tokens: the prompts, one after the other, from the front again where they end."""
    ids = [token for prompt in prompts for token in prompt]
    return (ids * -(-count // len(ids)))[:count]


def _worse(a: float, b: float) -> float:
    """The larger one; NaN is the largest of all."""
    return b if not b <= a else a
