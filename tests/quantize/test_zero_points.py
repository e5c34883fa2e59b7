"""Zero points: the search, what ModelOpt simulates of it, and what is written and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgekit.backends import find_backend
from edgekit.backends.onnxruntime.providers import Provider
from edgekit.backends.onnxruntime.session import open_on
from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError, InputError
from edgekit.export import EXPORTERS
from edgekit.export.weights import read_linear
from edgekit.preflight import require_storage, require_zero_points
from edgekit.profile import find_profile
from edgekit.quality import require_quality
from edgekit.quantize.model import load_model
from edgekit.quantize.recipe import read_recipe
from edgekit.quantize.zero_points import collected_inputs, search
from edgekit.reference import REFERENCE_FILE, Reference
from edgekit.storage import Storage
from edgekit.verify import measure_quality
from tests.providers import CPU, FP16_ON_CPU
from tests.quantize.checkpoints import damaged, require_written_as_simulated

MakePath = Callable[..., Path]
Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
Floats = NDArray[np.float32]


@pytest.fixture(scope="session")
def storage() -> Storage:
    """Of a small model on the `cpu` profile, in groups that the tiny layers have; a table at 8 bits
    would blur what is compared."""
    row = find_profile("cpu").storage_for("int4_awq", 1000)
    assert row.has_zero_points
    return replace(row, group_size=32, embedding_bits=16)


@pytest.fixture(scope="session")
def checkpoint(quantized: MakePath, storage: Storage) -> Path:
    return quantized("int4_awq", storage=storage)


def found(weights: Floats, hessians: Floats, group: int) -> tuple[Floats, Floats, Floats]:
    """Scales, zero points and rounded weights."""
    import torch

    scales, zeros = (
        part.numpy() for part in search(torch.tensor(weights), torch.tensor(hessians), group)
    )
    return scales, zeros, rounded(weights, scales, zeros, group)


def rounded(weights: Floats, scales: Floats, zeros: Floats, group: int) -> Floats:
    """Written out: the nearest code of -8..7 for each weight, and what it stands for."""
    steps, offsets = np.repeat(scales, group, axis=1), np.repeat(zeros, group, axis=1)
    codes = np.clip(np.rint(weights / steps + offsets), -8, 7)
    result: Floats = (codes - offsets) * steps
    return result


def test_sixteen_steps_above_zero_are_met_exactly() -> None:
    # 0, 0.1 … 1.5: a symmetric scale has eight codes for them, with a zero point there are sixteen
    weights = np.linspace(0, 1.5, 16, dtype=np.float32)[None]
    scales, zeros, back = found(weights, np.eye(16, dtype=np.float32)[None], 16)
    assert scales == pytest.approx(0.1)
    assert zeros.tolist() == [[-8]]
    np.testing.assert_allclose(back, weights, atol=1e-6)


def test_a_group_of_zeros_stays_zero() -> None:
    scales, _, back = found(np.zeros((2, 32), np.float32), np.ones((2, 16, 16), np.float32), 16)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert not back.any()


def test_the_input_that_is_met_counts() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 16)).astype(np.float32)
    weights[:, 0] *= 5  # an outlier, which a scale that cuts it off would pay for
    alone, even = np.full(16, 1e-6, np.float32), np.ones(16, np.float32)
    alone[0] = 1
    first = [
        np.abs(found(weights, np.diag(inputs)[None], 16)[2] - weights)[:, 0].mean()
        for inputs in (alone, even)
    ]
    assert first[0] < 0.3 * first[1]


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, (2, 32), elements=st.floats(-10, 10, width=16)),
    hnp.arrays(np.float32, (24, 32), elements=st.floats(-4, 4, width=16)),
)
def test_nothing_is_worse_than_rounding_from_the_smallest_to_the_largest(
    weights: Floats, inputs: Floats
) -> None:
    blocks = inputs.reshape(24, 2, 16).transpose(1, 0, 2)
    _, zeros, back = found(weights, blocks.transpose(0, 2, 1) @ blocks, 16)
    assert set(np.unique(zeros)) <= set(range(-8, 8))
    groups = weights.reshape(2, 2, 16)
    high, low = groups.max(axis=2).clip(min=0), groups.min(axis=2).clip(max=0)
    steps = np.where(high > low, (high - low) / 15, 1).astype(np.float32)
    plain = rounded(weights, steps, np.floor(-0.5 - (high + low) / (2 * steps)).clip(-8, 7), 16)
    errors = [
        ((inputs.reshape(24, 2, 16) * (way - weights)[row].reshape(2, 16)).sum(axis=2) ** 2).sum()
        for way in (back, plain)
        for row in range(2)
    ]
    # sums in another order; a group's error may be nothing
    assert sum(errors[:2]) <= sum(errors[2:]) * 1.001 + 1e-2


def test_the_sidecar_and_the_labels_say_so(checkpoint: Path) -> None:
    assert read_recipe(checkpoint)["algorithm"] == "awq_lite+zero_point_search"
    labels = json.loads((checkpoint / "hf_quant_config.json").read_text())
    assert labels["quantization"]["has_zero_point"] is True
    assert labels["quantization"]["quant_algo"] == "W4A16_AWQ"
    assert read_checkpoint(checkpoint).has_zero_points


def test_every_layer_and_the_head_has_zero_points_beside_its_scales(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    layers = [name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")]
    assert len(layers) == 2 * 7 + 1
    used: set[int] = set()
    for layer in layers:
        zeros = stored[f"{layer}_zero_point"]
        assert (zeros.dtype, zeros.shape) == (np.int8, stored[f"{layer}_scale"].shape)
        used |= set(np.unique(zeros).tolist())
    # some groups do not lie around zero: the tests below could fail
    assert len(used) > 4
    assert used <= set(range(-8, 8))


def test_what_is_written_is_what_modelopt_simulated(
    checkpoint: Path, hf_logits: Logits, tmp_path: Path
) -> None:
    require_written_as_simulated(checkpoint, hf_logits, tmp_path)


@pytest.mark.parametrize("damage", [None, "zero points"])
def test_the_engine_agrees_with_the_simulation(
    damage: str | None, checkpoint: Path, storage: Storage, export_graph: MakePath, tmp_path: Path
) -> None:
    path = checkpoint
    if damage:

        def shift(tensors: dict[str, NDArray[Any]]) -> None:
            tensors["model.layers.0.self_attn.o_proj.weight_zero_point"] ^= 2

        path = damaged(checkpoint, tmp_path / "damaged", shift)
    session = find_backend("onnxruntime").open(
        export_graph(path, storage, context_tokens=128),
        context_tokens=128, num_slots=1, threads=1,
    )  # fmt: skip
    try:
        quality = measure_quality(session, Reference.load(checkpoint / REFERENCE_FILE))
    finally:
        session.close()
    if damage is None:
        require_quality(quality, "int4_awq")
    assert (quality.mean_kl_simulated < 1e-3) == (damage is None)


@pytest.fixture(scope="session")
def wide(quantized: MakePath, storage: Storage) -> tuple[Path, Storage]:
    """Groups of 256, as the `cpu` profile has them for large models."""
    row = find_profile("cpu").storage_for("int4_awq", 10**9)
    assert (row.group_size, row.has_zero_points) == (256, True)
    row = replace(row, embedding_bits=16)
    return quantized("int4_awq", storage=row, hidden_size=256, intermediate_size=512), row


def test_groups_that_cuda_has_not_are_there_in_parts(
    wide: tuple[Path, Storage], export_graph: MakePath
) -> None:
    graph = export_graph(*wide, context_tokens=128)
    cpu, cuda = (
        onnx.load(graph / name, load_external_data=False)
        for name in ("model.onnx", "model_fp16.onnx")
    )
    assert groups_of(cpu) == {256}
    assert groups_of(cuda) == {128}
    for name in ("model.layers.1.mlp.down_proj.int4", "lm_head.int4"):
        [whole], [parts] = (
            [t for t in model.graph.initializer if t.name.startswith(name)] for model in (cpu, cuda)
        )
        assert whole.external_data == parts.external_data
        rows, groups, half = whole.dims
        assert list(parts.dims) == [rows, 2 * groups, half // 2]


def groups_of(model: onnx.ModelProto) -> set[int]:
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2 * 4 + 1
    return {a.i for node in nodes for a in node.attribute if a.name == "block_size"}


@pytest.mark.parametrize("provider", [CPU, FP16_ON_CPU], ids=["fp32", "fp16"])
def test_both_graphs_agree_with_the_simulation_of_wide_groups(
    provider: Provider, wide: tuple[Path, Storage], export_graph: MakePath
) -> None:
    session = open_on(
        provider, export_graph(*wide, context_tokens=128),
        context_tokens=128, num_slots=1, threads=1,
    )  # fmt: skip
    try:
        quality = measure_quality(session, Reference.load(wide[0] / REFERENCE_FILE))
    finally:
        session.close()
    # fp32 is off by activations at 8 bits, fp16 by its rounding; a wrong scale or zero point in
    # one matrix is off by 0.1 and more
    assert quality.mean_kl_simulated < 2e-3


def test_layers_that_read_one_tensor_share_their_sums(make_tiny: MakePath) -> None:
    import torch

    path = make_tiny()
    model = load_model(read_checkpoint(path))
    layers = {n: x for n, x in model.named_modules() if isinstance(x, torch.nn.Linear)}
    for layer in layers.values():
        layer.input_quantizer = torch.nn.Identity()
        layer.weight_quantizer = SimpleNamespace(disable=lambda: None, enable=lambda: None)
        layer.register_forward_pre_hook(lambda own, given: (own.input_quantizer(given[0]),))
    samples = [torch.arange(9)[None] + 3 * n for n in range(3)]
    inputs: dict[str, list[Any]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _own, given, name=name: inputs[name].append(given[0])
        )
    with collected_inputs(layers, 32) as sums, torch.inference_mode():
        for sample in samples:
            model(sample)
    for name, parts in inputs.items():
        x = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).double().numpy()
        for group, found_sum in enumerate(sums[name].numpy()):
            own = x[:, group * 32 : (group + 1) * 32]
            np.testing.assert_allclose(found_sum, own.T @ own, rtol=1e-4, atol=1e-4)
    # q, k and v; o; gate and up; down: four of each layer's seven, and the head's
    assert len({id(each) for each in sums.values()}) == 2 * 4 + 1


def test_biases_and_merged_layers_keep_theirs(quantized: MakePath, storage: Storage) -> None:
    path = quantized("int4_awq", "qwen2", storage=storage)
    layer = read_linear(read_checkpoint(path), "model.layers.1.self_attn.v_proj")
    assert layer is not None
    assert layer.zero_points is not None
    assert layer.zero_points.any()


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt-llm", "edge-llm"])
def test_other_backends_refuse_them_before_any_work(
    backend: str, checkpoint: Path, tmp_path: Path
) -> None:
    read = read_checkpoint(checkpoint)
    with pytest.raises(
        InputError, match=f"weights have zero points, which the kernels of {backend}"
    ):
        require_zero_points(read, find_backend(backend))
    require_zero_points(read, find_backend("onnxruntime"))
    storage = find_profile("rtx-4090").storage_for("int4_awq", 10**9)
    export = EXPORTERS[find_backend(backend).info.consumes]
    with pytest.raises(CheckpointError, match="this format has no zero points"):
        export(read, storage, tmp_path, context_tokens=64)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt-llm", "edge-llm"])
def test_a_profile_cannot_ask_other_backends_for_them(backend: str, storage: Storage) -> None:
    profile = find_profile("cpu")
    message = f"the profile `cpu` has zero points.* {backend}"
    with pytest.raises(InputError, match=message) as caught:
        require_storage(storage, profile, backend)
    assert "`--backend onnxruntime`" in (caught.value.hint or "")
    require_storage(storage, profile, "onnxruntime")
    require_storage(replace(storage, has_zero_points=False), profile, backend)


def test_inputs_that_are_not_numbers_are_told() -> None:
    inputs = np.full((1, 16, 16), np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        found(np.ones((2, 16), np.float32), inputs, 16)
