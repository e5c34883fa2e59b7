"""ONNX Runtime's CUDA provider: decode steps that are recorded once and replayed.

The contract itself runs there too: see `test_contract.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.providers import PROVIDERS
from edgekit.backends.onnxruntime.session import OrtSession, open_on
from edgekit.profile import Storage

pytestmark = pytest.mark.gpu

CUDA = PROVIDERS[0]
EAGER = replace(CUDA, options=MappingProxyType({}), captures_decode=False)
MakePath = Callable[..., Path]
Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
# activations round at 2^-11 = 5e-4, some thirty times on the way: a percent of their spread
TOLERANCE = 2e-2
INT4 = Storage(linear_bits=4, group_size=32, head_bits=8, head_group_size=32, embedding_bits=8)


def ids(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, 384, count)]


@pytest.fixture
def recorded(make_tiny: MakePath, export_graph: MakePath) -> Iterator[OrtSession]:
    graph = export_graph(make_tiny("qwen2"))
    session = open_on(CUDA, graph, context_tokens=64, num_slots=3, threads=None)
    yield session
    session.close()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(
    family: str, make_tiny: MakePath, export_graph: MakePath, hf_logits: Logits
) -> None:
    checkpoint = make_tiny(family)
    session = open_on(CUDA, export_graph(checkpoint), context_tokens=64, num_slots=1, threads=None)
    prompt = session.prefill(0, ids(48)[:40], num_logits=40).copy()
    steps = [session.decode([0], [token])[0].copy() for token in ids(48)[40:]]
    expected = hf_logits(checkpoint, ids(48))
    error = np.abs(np.concatenate([prompt, steps]) - expected).max()
    assert error <= TOLERANCE * expected.std()
    session.close()


def test_a_step_recorded_on_an_empty_slot_serves_a_long_one(
    recorded: OrtSession, make_tiny: MakePath, hf_logits: Logits
) -> None:
    # recorded as the first token of all, where attention could take the way of a whole prompt
    expected = hf_logits(make_tiny("qwen2"), ids(60))
    rows = [recorded.decode([0], [token])[0].copy() for token in ids(60)]
    assert np.abs(np.stack(rows) - expected).max() <= TOLERANCE * expected.std()


def test_a_step_recorded_on_a_long_slot_serves_a_short_one(
    recorded: OrtSession, make_tiny: MakePath, hf_logits: Logits
) -> None:
    expected = hf_logits(make_tiny("qwen2"), ids(60))
    recorded.prefill(0, ids(59))
    recorded.decode([0], ids(60)[59:])
    recorded.truncate(0, 2)
    row = recorded.decode([0], [ids(60)[2]])[0]
    assert np.abs(row - expected[2]).max() <= TOLERANCE * expected.std()


def test_a_replayed_step_is_an_eager_one(
    recorded: OrtSession, make_tiny: MakePath, export_graph: MakePath
) -> None:
    eager = open_on(
        EAGER, export_graph(make_tiny("qwen2")), context_tokens=64, num_slots=3, threads=None
    )
    # prefills between the steps move the scratch memory that the recordings use
    for turn in range(3):
        for session in (recorded, eager):
            for slot in range(3):
                session.truncate(slot, 0)
                session.prefill(slot, ids(5 + 7 * turn + slot))
        for slots in ([0], [1], [0, 1, 2], [2, 0], [0]):
            tokens = ids(len(slots))
            ours, theirs = recorded.decode(slots, tokens).copy(), eager.decode(slots, tokens)
            # the split of the work over the cache differs, and with it the order of fp16 sums
            assert np.abs(ours - theirs).max() <= TOLERANCE * theirs.std()
    eager.close()


def test_quantized_tables_run_on_the_gpu(make_tiny: MakePath, export_graph: MakePath) -> None:
    graph = export_graph(make_tiny("qwen2"), INT4)
    session = open_on(CUDA, graph, context_tokens=64, num_slots=1, threads=None)
    on_cpu = open_on(PROVIDERS[1], graph, context_tokens=64, num_slots=1, threads=1)
    expected = on_cpu.prefill(0, ids(16), num_logits=16)
    found = session.prefill(0, ids(16), num_logits=16)
    # the CPU's kernels round activations to int8 per group: 1/254 of the largest
    assert np.abs(found - expected).max() <= 5 * TOLERANCE * expected.std()
    session.close()
    on_cpu.close()
