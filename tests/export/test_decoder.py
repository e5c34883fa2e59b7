"""The graph files: valid ONNX, weights shared, nothing beyond the range of fp16."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError
from edgekit.export import export_decoder
from edgekit.profile import Storage, find_profile

FP16 = Storage(linear_bits=32, head_bits=32, embedding_bits=16)
INT8_TABLES = Storage(linear_bits=32, head_bits=8, head_group_size=32, embedding_bits=8)
W8A8 = Storage(linear_bits=8, int8_activations=True, head_bits=8, embedding_bits=8)


def external(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Initializer -> its offset and length in the data file."""
    found = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            assert place["location"] == "model.data"
            found[tensor.name] = (int(place["offset"]), int(place["length"]))
    return found


def load_graph(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def check(path: Path) -> None:
    """onnx's checker, over the file and its external data.

    ONNX Runtime keeps SimplifiedLayerNormalization in the standard domain, where onnx has no such
    operator: it is checked as one of ONNX Runtime's, which is to say not by its schema.
    """
    model = load_graph(path)
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    copy = path.with_name(f"checked-{path.name}")
    onnx.save(model, copy)
    onnx.checker.check_model(copy)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("storage", [FP16, INT8_TABLES], ids=["fp16", "int8 tables"])
def test_a_graph_passes_the_checker(
    family: str, storage: Storage, make_tiny: Callable[..., Path],
    export_graph: Callable[..., Path],
) -> None:  # fmt: skip
    graph = export_graph(make_tiny(family), storage)
    for name in ("model.onnx", "model_fp16.onnx"):
        check(graph / name)


def test_every_weight_lies_within_the_data_file(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path]
) -> None:
    graph = export_graph(make_tiny(), INT8_TABLES)
    size = (graph / "model.data").stat().st_size
    for name in ("model.onnx", "model_fp16.onnx"):
        places = external(load_graph(graph / name)).values()
        assert places
        assert all(offset + length <= size for offset, length in places)


def test_both_graphs_share_the_large_weights(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path]
) -> None:
    graph = export_graph(make_tiny(), FP16)
    cpu, cuda = (external(load_graph(graph / n)) for n in ("model.onnx", "model_fp16.onnx"))
    name = "model.layers.0.mlp.gate_up_proj.weight"
    assert cpu[name] == cuda[name]
    # gate and up: 2 x 160 x 64 weights of two bytes
    assert cpu[name][1] == 2 * 160 * 64 * 2


def test_a_tied_table_is_stored_once_and_used_twice(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path]
) -> None:
    places = external(load_graph(export_graph(make_tiny("qwen2"), INT8_TABLES) / "model.onnx"))
    table = "model.embed_tokens.int8"
    assert places[table] == places[f"{table}.rows"]
    assert not any(name.startswith("lm_head") for name in places)


def test_an_untied_head_has_a_table_of_its_own(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path]
) -> None:
    places = external(load_graph(export_graph(make_tiny("llama"), INT8_TABLES) / "model.onnx"))
    assert places["lm_head.int8"] != places["model.embed_tokens.int8.rows"]


def test_w8a8_has_no_graph_for_cuda(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    export_decoder(read_checkpoint(make_tiny()), W8A8, tmp_path, context_tokens=16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.data", "model.onnx"]


def test_the_same_checkpoint_gives_the_same_bytes(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for out in (tmp_path / "a", tmp_path / "b"):
        out.mkdir()
        export_decoder(read_checkpoint(make_tiny()), INT8_TABLES, out, context_tokens=16)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_progress_is_reported_by_layer(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export_decoder(
        read_checkpoint(make_tiny()), FP16, tmp_path, context_tokens=16,
        report=lambda step, done, total: seen.append((step, done, total)),
    )  # fmt: skip
    assert seen == [("export", 0, 2), ("export", 1, 2), ("export", 2, 2)]


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_weight_beyond_fp16_is_refused(
    name: str, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_tiny(dtype="bfloat16")
    path = tmp_path / "large"
    path.mkdir()
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    _overwrite_first_value(path / "model.safetensors", name, 1e6)
    with pytest.raises(CheckpointError, match=f"a weight of {name}.* beyond the range of fp16"):
        (tmp_path / "out").mkdir()
        export_decoder(read_checkpoint(path), FP16, tmp_path / "out", context_tokens=16)


def _overwrite_first_value(path: Path, name: str, value: float) -> None:
    from edgekit.checkpoint.safetensors import read_header

    info = read_header(path)[name]
    assert info.dtype == "BF16"
    # bfloat16 is the upper half of a float32
    half = (np.float32(value).view(np.uint32) >> 16).astype(np.uint16)
    with path.open("r+b") as file:
        file.seek(info.offset)
        file.write(half.tobytes())


def test_a_width_that_no_group_divides_is_refused(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    # hidden 72 = 8 x 9: a table cannot be quantized in groups of 16 or 32
    path = make_tiny("qwen3", hidden_size=72)
    with pytest.raises(CheckpointError, match="not a multiple of 16: 72"):
        export_decoder(read_checkpoint(path), INT8_TABLES, tmp_path, context_tokens=16)


def test_every_storage_of_the_cpu_profile_can_be_exported(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for name, storage in find_profile("cpu").storage.items():
        out = tmp_path / name
        out.mkdir()
        export_decoder(read_checkpoint(make_tiny()), storage, out, context_tokens=16)
        check(out / "model.onnx")


_PEAK = """
import sys, tracemalloc
from pathlib import Path
from edgekit.checkpoint import read_checkpoint
from edgekit.export import export_decoder
from edgekit.profile import Storage
import onnx
checkpoint = read_checkpoint(Path(sys.argv[1]))
bits = int(sys.argv[3])
storage = Storage(linear_bits=32, head_bits=bits, head_group_size=32, embedding_bits=bits)
tracemalloc.start()
export_decoder(checkpoint, storage, Path(sys.argv[2]), context_tokens=16)
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("bits", [16, 8])
def test_memory_does_not_grow_with_the_largest_tensor(
    bits: int, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    # one table of 2^20 x 64 weights: 128 MiB as bfloat16, 256 MiB as float32
    source = make_tiny("qwen2", dtype="bfloat16")
    path = tmp_path / "large"
    path.mkdir()
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(_without_bf16(path / "model.safetensors"))
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, path / "model-2.safetensors")
    (path / "model.safetensors").unlink()
    _sparse_table(path / "model-1.safetensors", 1 << 20, 64)
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"vocab_size": 384', '"vocab_size": 1048576'))
    out = tmp_path / "out"
    out.mkdir()
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), str(out), str(bits)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # chunks of 8 Mi values, 32 MiB as float32, and a handful of temporaries of that size at most
    assert int(found.stdout) < 192 * 1024**2


def _sparse_table(path: Path, rows: int, columns: int) -> None:
    """A table of zeros that takes no room on the disk."""
    from edgekit.checkpoint.safetensors import encode_header

    header = encode_header({"model.embed_tokens.weight": (rows, columns)}, "BF16")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + rows * columns * 2)


def _without_bf16(path: Path) -> Path:
    """The same file as float32: numpy has no bfloat16."""
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    save_torch({k: v.to(torch.float32) for k, v in load_torch(path).items()}, path)
    return path
