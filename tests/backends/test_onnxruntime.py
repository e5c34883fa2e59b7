"""ONNX Runtime: the logits are the checkpoint's, and no provider is taken that was not meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgekit.backends import find_backend
from edgekit.backends.onnxruntime.providers import PROVIDERS, choose_provider
from edgekit.backends.onnxruntime.session import (
    PREFILL_CHUNK_TOKENS,
    load_graph,
    open_on,
    open_session,
)
from edgekit.errors import BackendError, EngineError, MissingBackendError
from tests.providers import FP16_ON_CPU

Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
MakePath = Callable[..., Path]

MODELS = [
    pytest.param("llama", {}, id="llama, untied, llama3 rope"),
    pytest.param("llama", {"tie_word_embeddings": True}, id="llama, tied"),
    pytest.param("llama", {"dtype": "bfloat16"}, id="llama, bfloat16"),
    pytest.param("llama", {"num_key_value_heads": 4}, id="llama, as many KV heads"),
    pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama, all biases"),
    pytest.param("qwen2", {}, id="qwen2, qkv bias, tied"),
    pytest.param("qwen2", {"tie_word_embeddings": False}, id="qwen2, untied"),
    pytest.param("qwen3", {}, id="qwen3, q/k norm, tied"),
]


def ids(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, 384, count)]


@pytest.mark.parametrize(("family", "config"), MODELS)
def test_logits_are_those_of_transformers(
    family: str, config: dict[str, object], make_tiny: MakePath, export_graph: MakePath,
    hf_logits: Logits,
) -> None:  # fmt: skip
    checkpoint = make_tiny(family, **config)
    session = open_session(export_graph(checkpoint), context_tokens=64, num_slots=1, threads=1)
    found = session.prefill(0, ids(48), num_logits=48)
    expected = hf_logits(checkpoint, ids(48))
    assert expected.std() > 0.3
    # weights are stored as fp16, activations are fp32: a bfloat16 weight below 2^-14 loses bits
    # (2^-25 of it at most), everything else is rounding of sums at 2^-24
    assert np.abs(found - expected).max() <= 1e-2
    session.close()


def test_a_float32_checkpoint_loses_no_more_than_fp16_takes(
    make_tiny: MakePath, export_graph: MakePath, hf_logits: Logits
) -> None:
    checkpoint = make_tiny("llama", dtype="float32")
    session = open_session(export_graph(checkpoint), context_tokens=64, num_slots=1, threads=1)
    found = session.prefill(0, ids(48), num_logits=48)
    # every weight is off by 2^-12 of itself at most: with random signs that is 2.4e-4 of logits
    # of 0.5 per product, and there are fifteen products on the way
    assert np.abs(found - hf_logits(checkpoint, ids(48))).max() <= 1e-2
    session.close()


@pytest.mark.parametrize("num_logits", [1, PREFILL_CHUNK_TOKENS + 9, 2 * PREFILL_CHUNK_TOKENS + 1])
def test_prompts_longer_than_a_chunk_are_those_of_transformers(
    num_logits: int, make_tiny: MakePath, export_graph: MakePath, hf_logits: Logits
) -> None:
    # two whole chunks and one token: rows of the last, of parts of all three, and every row
    count = 2 * PREFILL_CHUNK_TOKENS + 1
    checkpoint = make_tiny("llama")
    graph = export_graph(checkpoint, context_tokens=count)
    session = open_session(graph, context_tokens=count, num_slots=1, threads=1)
    found = session.prefill(0, ids(count), num_logits=num_logits)
    expected = hf_logits(checkpoint, ids(count))[-num_logits:]
    assert found.shape == (num_logits, 384)
    # as above; rotary tables are fp32 in both, 1e-4 apart at the end
    assert np.abs(found - expected).max() <= 1e-2
    session.close()


def test_steps_after_a_prompt_in_pieces_are_right(
    make_tiny: MakePath, export_graph: MakePath, hf_logits: Logits
) -> None:
    count = PREFILL_CHUNK_TOKENS + 40
    checkpoint = make_tiny("qwen3")
    graph = export_graph(checkpoint, context_tokens=count + 8)
    session = open_session(graph, context_tokens=count + 8, num_slots=2, threads=1)
    prompt = session.prefill(1, ids(count + 8)[:count], num_logits=count).copy()
    steps = [session.decode([1], [token])[0].copy() for token in ids(count + 8)[count:]]
    expected = hf_logits(checkpoint, ids(count + 8))
    # the tolerance of the tests above
    assert np.abs(np.concatenate([prompt, steps]) - expected).max() <= 1e-2
    session.close()


@pytest.mark.parametrize(("family", "config"), MODELS)
def test_the_graph_for_cuda_says_the_same_in_fp16(
    family: str, config: dict[str, object], make_tiny: MakePath, export_graph: MakePath,
    hf_logits: Logits,
) -> None:  # fmt: skip
    """On the CPU provider, which widens to fp32 around operators that it has no fp16 kernel for."""
    checkpoint = make_tiny(family, **config)
    session = open_on(
        FP16_ON_CPU, export_graph(checkpoint), context_tokens=64, num_slots=1, threads=1
    )
    prompt = session.prefill(0, ids(48)[:40], num_logits=40).copy()
    steps = [session.decode([0], [token])[0].copy() for token in ids(48)[40:]]
    expected = hf_logits(checkpoint, ids(48))
    # activations round at 2^-11 = 5e-4, some thirty times on the way: a percent of their spread
    error = np.abs(np.concatenate([prompt, steps]) - expected).max()
    assert error <= 2e-2 * expected.std()
    session.close()


def test_logits_are_fp32_whatever_the_graph_computes_in(
    make_tiny: MakePath, export_graph: MakePath
) -> None:
    graph = export_graph(make_tiny())
    for name in ("model.onnx", "model_fp16.onnx"):
        model = onnx.load(graph / name, load_external_data=False)
        logits = next(o for o in model.graph.output if o.name == "logits")
        assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_a_repeated_decode_copies_no_logits(make_tiny: MakePath, export_graph: MakePath) -> None:
    session = open_session(export_graph(make_tiny()), context_tokens=64, num_slots=1, threads=1)
    session.prefill(0, ids(4))
    first, second = session.decode([0], [1]), session.decode([0], [2])
    # the promise is "valid until the next call": one buffer serves all of them
    assert first.ctypes.data == second.ctypes.data
    session.close()


@pytest.mark.parametrize(
    ("allowed", "asked", "threads"),
    [
        (range(4), None, 0),  # ONNX Runtime's own choice: all cores, each thread kept on one
        ([2], None, 1),
        ([1, 2], None, 2),
        ([2], 3, 3),
    ],
)
def test_threads_are_as_many_as_the_cores_that_the_process_may_use(
    allowed: Sequence[int], asked: int | None, threads: int,
    make_tiny: MakePath, export_graph: MakePath, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("edgekit.device.machine._QUOTA_FILES", ())
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4)
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda self: list(allowed), raising=False)
    graph = export_graph(make_tiny("llama")) / "model.onnx"
    session = load_graph(graph, choose_provider(graph.parent, "CPUExecutionProvider"), asked)
    assert session.get_session_options().intra_op_num_threads == threads


def test_the_cpu_is_chosen_where_it_is_all_there_is(
    make_tiny: MakePath, export_graph: MakePath
) -> None:
    graph = export_graph(make_tiny())
    assert choose_provider(graph, "CPUExecutionProvider").graph == "model.onnx"


def test_a_gpu_that_was_asked_for_is_never_silently_a_cpu(
    make_tiny: MakePath, export_graph: MakePath
) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingBackendError, match=r"this ONNX Runtime has .*CPUExecutionProvider"):
        open_session(
            export_graph(make_tiny()), context_tokens=16, num_slots=1, threads=None,
            provider="CUDAExecutionProvider",
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Specified provider")  # how a build without CUDA goes on
def test_a_provider_that_does_not_start_is_an_error(
    make_tiny: MakePath, export_graph: MakePath
) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match="cannot start it") as caught:
        open_on(PROVIDERS[0], export_graph(make_tiny()), context_tokens=16, num_slots=1, threads=1)
    assert caught.value.hint is not None


def test_an_engine_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingBackendError, match="no execution provider here can run"):
        find_backend("onnxruntime").open(tmp_path, context_tokens=16, num_slots=1)


def test_a_graph_that_edgekit_did_not_write_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["logits"])],
        "other",
        [value("x", TensorProto.FLOAT, [1, 1, 4])],
        [value("logits", TensorProto.FLOAT, [1, 1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="not a decoder graph of edgekit"):
        find_backend("onnxruntime").open(tmp_path, context_tokens=16, num_slots=1)


def test_every_provider_names_a_graph_that_export_writes(
    make_tiny: MakePath, export_graph: MakePath
) -> None:
    graph = export_graph(make_tiny())
    assert all((graph / row.graph).is_file() for row in PROVIDERS)
