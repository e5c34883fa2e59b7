"""The graph that prompts go through: what it is made of, and that answers after it are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit.backends.onnxruntime.session import PREFILL_CHUNK_TOKENS, OrtSession, open_session
from edgekit.checkpoint import read_checkpoint
from edgekit.export.decoder import PROMPT_GRAPH
from edgekit.export.linear import load_block, round_channels
from edgekit.export.weights import IntLinear
from edgekit.profile import Storage

Floats = NDArray[np.float32]
Logits = Callable[[Path, Sequence[int]], Floats]
Cache = Callable[[Path, Sequence[int]], list[tuple[Floats, Floats]]]
MakePath = Callable[..., Path]
MakeQuantized = Callable[..., tuple[Path, Path]]

PLAIN = Storage(linear_bits=4, group_size=32, head_bits=32, embedding_bits=16)
STORAGE = replace(PLAIN, prompt_bits=8)


def ids(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, 384, count)]


def opened(graph: Path, *, context_tokens: int = 64, num_slots: int = 1) -> OrtSession:
    return open_session(graph, context_tokens=context_tokens, num_slots=num_slots, threads=1)


def after(session: OrtSession, tokens: Sequence[int], held: int, slot: int = 0) -> Floats:
    """Logits of all but the first `held` tokens, which go in as a prompt does."""
    session.truncate(slot, 0)
    assert session.prefill(slot, tokens[:held], num_logits=0).shape == (0, session.vocab_size)
    return session.prefill(slot, tokens[held:], num_logits=len(tokens) - held).copy()


def cache_error(session: OrtSession, exact: Path, hf_cache: Cache) -> float:
    """The largest relative error (of norms) of a layer's keys or values after a prompt of 48."""
    session.truncate(0, 0)
    session.prefill(0, ids(48), num_logits=0)
    assert session._runner is not None
    held = session._runner._buffers.values
    errors = []
    for layer, pair in enumerate(hf_cache(exact, ids(48))):
        for kind, wanted in zip(("key", "value"), pair, strict=True):
            found = held[f"{layer}.{kind}"].numpy()[0, :, :48]
            errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return float(max(errors))


@pytest.fixture(scope="module")
def hf_cache() -> Cache:
    """`cache(checkpoint, ids)`: transformers' keys and values of every layer, `[Hkv, T, D]`."""
    import torch
    import transformers

    def cache(checkpoint: Path, tokens: Sequence[int]) -> list[tuple[Floats, Floats]]:
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        with torch.inference_mode():
            held = model(torch.tensor([list(tokens)]), use_cache=True).past_key_values
        return [(layer.keys[0].numpy(), layer.values[0].numpy()) for layer in held.layers]

    return cache


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_cache_is_that_of_the_weights(
    family: str, make_tiny: MakePath, make_quantized: MakeQuantized, export_graph: MakePath,
    hf_cache: Cache,
) -> None:  # fmt: skip
    """With llama3 rope, with biases, with q/k norms; the yardstick is `codes x scale` in fp32."""
    checkpoint, plain = make_quantized(make_tiny(family), 4, 32, {})
    session = opened(export_graph(checkpoint, STORAGE))
    assert session.fills_apart
    # 7 bits of weights and 8 of activations round by 1 % of what these add up to
    assert cache_error(session, plain, hf_cache) < 0.05
    session.close()


def test_a_prompt_graph_that_is_wrong_shows(
    make_tiny: MakePath, make_quantized: MakeQuantized, export_graph: MakePath, hf_cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    checkpoint, plain = make_quantized(make_tiny(seed=1), 4, 32, {})

    def slipped(layer: IntLinear) -> IntLinear:
        right = round_channels(layer)
        return replace(right, scales=np.roll(right.scales, 1, axis=0))

    monkeypatch.setattr("edgekit.export.linear.round_channels", slipped)
    session = opened(export_graph(checkpoint, STORAGE))
    assert cache_error(session, plain, hf_cache) > 0.2
    session.close()


def test_weights_are_the_decoder_s_rounded_once_more(
    make_tiny: MakePath, make_quantized: MakeQuantized, export_graph: MakePath
) -> None:
    checkpoint, _ = make_quantized(make_tiny(), 4, 32, {})
    path = export_graph(checkpoint, STORAGE) / PROMPT_GRAPH
    model = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = {n.name: n for n in model.graph.node if n.op_type == "DynamicQuantizeMatMul"}
    attention, mlp = "model.layers.{}.self_attn", "model.layers.{}.mlp"
    of_layer = {
        f"{attention}.qkv_proj": [f"{attention}.{x}_proj" for x in "qkv"],
        f"{attention}.o_proj": [f"{attention}.o_proj"],
        f"{mlp}.gate_up_proj": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
    }
    # of the last layer only what its cache holds
    wanted = [*(name.format(0) for name in of_layer), f"{attention}.qkv_proj".format(1)]
    assert set(products) == {f"{name}.out" for name in wanted}
    block = load_block(read_checkpoint(checkpoint), "model.layers.0")
    for name, members in of_layer.items():
        _, codes, scales, zero = products[f"{name.format(0)}.out"].input
        weights = np.concatenate(
            [layer.dequantize() for m in members if (layer := block.linears[m.format(0)])]
        )
        assert stored[codes].dtype == np.int8
        # seven bits, for pairs of full ones saturate on AVX2
        assert np.abs(stored[codes]).max() == 63
        assert not stored[zero].any()
        error = np.abs(stored[codes].T * stored[scales][:, None] - weights)
        assert (error <= stored[scales][:, None] * 0.5001).all()
    assert [o.name for o in model.graph.output] == [
        f"present.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")
    ]


def test_rounding_keeps_the_largest_weight_of_a_channel() -> None:
    # steps of 0.5 and 0.1: 7 x 0.5 = 3.5 is the channel's largest, so its step is 3.5 / 63 = 1 / 18
    layer = IntLinear(
        codes=np.array([[7, -2, 5, -7], [0, 0, 0, 0]], np.int8),
        scales=np.array([[0.5, 0.1], [0.5, 0.1]], np.float32),
        bits=4,
        pre_quant_scale=None,
    )
    rounded = round_channels(layer)
    # 3.5, -1.0, 0.5 and -0.7 in eighteenths: 63, -18, 9 and -12.6
    assert rounded.codes.tolist() == [[63, -18, 9, -13], [0, 0, 0, 0]]
    assert rounded.scales[:, 0].tolist() == pytest.approx([1 / 18, 1])


@pytest.mark.parametrize("num_logits", [1, 5])
def test_rows_that_are_wanted_come_from_the_decoder(
    num_logits: int, make_tiny: MakePath, make_quantized: MakeQuantized, export_graph: MakePath
) -> None:
    """In one call as in two, over two whole chunks and a part of a third."""
    count = 2 * PREFILL_CHUNK_TOKENS + 40
    checkpoint, _ = make_quantized(make_tiny(), 4, 32, {})
    graph = export_graph(checkpoint, STORAGE, context_tokens=count)
    session = opened(graph, context_tokens=count)
    rows = session.prefill(0, ids(count), num_logits=num_logits)
    assert session.length(0) == count
    expected = after(session, ids(count), count - num_logits)
    np.testing.assert_array_equal(rows, expected)
    session.close()


def test_short_pieces_do_without(
    make_tiny: MakePath, make_quantized: MakeQuantized, export_graph: MakePath
) -> None:
    checkpoint, _ = make_quantized(make_tiny(), 4, 32, {})
    both, plain = (opened(export_graph(checkpoint, s)) for s in (STORAGE, PLAIN))
    assert not plain.fills_apart
    np.testing.assert_array_equal(after(both, ids(20), 12), after(plain, ids(20), 12))
    assert np.abs(after(both, ids(40), 32) - after(plain, ids(40), 32)).max() > 0
    both.close()
    plain.close()


def test_several_slots_do_without(
    make_tiny: MakePath, make_quantized: MakeQuantized, export_graph: MakePath
) -> None:
    """An answer must not depend on which of them held its beginning."""
    checkpoint, _ = make_quantized(make_tiny(), 4, 32, {})
    both, plain = (opened(export_graph(checkpoint, s), num_slots=2) for s in (STORAGE, PLAIN))
    assert not both.fills_apart
    np.testing.assert_array_equal(after(both, ids(40), 32, 1), after(plain, ids(40), 32, 1))
    both.close()
    plain.close()


def test_layers_without_quantized_weights_stay_as_they_are(
    make_tiny: MakePath, export_graph: MakePath, hf_logits: Logits
) -> None:
    checkpoint = make_tiny("llama")
    session = opened(export_graph(checkpoint, STORAGE))
    found = after(session, ids(56), 40)
    assert np.abs(found - hf_logits(checkpoint, ids(56))[40:]).max() <= 1e-2
    session.close()
