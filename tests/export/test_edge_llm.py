"""ModelOpt's checkpoint as Edge-LLM takes it: bits copied, small tensors at fp16, no links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jinja2
import numpy as np
import pytest

from edgekit.checkpoint import read_checkpoint
from edgekit.checkpoint.safetensors import encode_header, read_header
from edgekit.checkpoint.tensors import read_tensor
from edgekit.errors import CheckpointError
from edgekit.export import export_edge_llm_checkpoint
from edgekit.profile import Storage
from edgekit.reference import CACHE_RANGES_FILE

STORAGE = Storage(linear_bits=8)


@pytest.fixture
def quantized(make_tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny model that says it is quantized, with norms at fp32 and a scale of an input."""
    source = make_tiny("llama")
    path = tmp_path / "quantized"
    shutil.copytree(source, path)
    tensors = {name: read_tensor(i) for name, i in read_header(path / "model.safetensors").items()}
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = tensors[name].astype(np.float32)
    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    tensors["model.layers.0.self_attn.q_proj.pre_quant_scale"] = scale
    tensors["model.layers.0.self_attn.q_proj.weight_scale"] = np.full(64, 1e-5, np.float32)
    kinds = {
        name: {"float16": "F16", "float32": "F32"}[str(t.dtype)] for name, t in tensors.items()
    }
    header = encode_header({name: t.shape for name, t in tensors.items()}, kinds)
    data = b"".join(np.ascontiguousarray(t).tobytes() for t in tensors.values())
    (path / "model.safetensors").write_bytes(header + data)
    (path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    ranges = {"key": [900.0, 1.0], "value": [1.0, 4480.0]}
    (path / CACHE_RANGES_FILE).write_text(json.dumps(ranges))
    return path


def export(source: Path, out: Path, kv: str = "fp16") -> Path:
    out.mkdir()
    export_edge_llm_checkpoint(
        read_checkpoint(source), STORAGE, out, context_tokens=64, kv_precision=kv
    )
    return out


def test_bits_are_copied_and_small_tensors_become_fp16(quantized: Path, tmp_path: Path) -> None:
    before = read_header(quantized / "model.safetensors")
    after = read_header(export(quantized, tmp_path / "out") / "model.safetensors")
    assert list(before) == list(after)
    for name, info in after.items():
        small = name.endswith(("norm.weight", "pre_quant_scale"))
        assert info.dtype == ("F16" if small else before[name].dtype)
        expected = read_tensor(before[name])
        np.testing.assert_array_equal(
            read_tensor(info), expected.astype("f2") if small else expected
        )


def test_an_fp8_cache_adds_its_scales(quantized: Path, tmp_path: Path) -> None:
    out = export(quantized, tmp_path / "out", "fp8")
    tensors = read_header(out / "model.safetensors")
    scales = {
        n: float(read_tensor(i)) for n, i in tensors.items() if n.endswith(("k_scale", "v_scale"))
    }
    # the largest value that was met by 448, at least 1
    assert scales == {
        "model.layers.0.self_attn.k_proj.k_scale": pytest.approx(900 / 448),
        "model.layers.0.self_attn.v_proj.v_scale": 1.0,
        "model.layers.1.self_attn.k_proj.k_scale": 1.0,
        "model.layers.1.self_attn.v_proj.v_scale": 10.0,
    }
    labels = json.loads((out / "hf_quant_config.json").read_text())
    assert labels["quantization"] == {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}


def test_a_cache_whose_range_is_not_known_is_refused(quantized: Path, tmp_path: Path) -> None:
    (quantized / CACHE_RANGES_FILE).unlink()
    with pytest.raises(CheckpointError, match="the range of the cache's values is not known"):
        export(quantized, tmp_path / "out", "fp8")


def test_a_model_that_is_not_quantized_keeps_its_files(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_tiny("llama")
    out = export(source, tmp_path / "out")
    assert (out / "model.safetensors").stat().st_ino == (source / "model.safetensors").stat().st_ino
    assert not (out / "hf_quant_config.json").exists()
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / "tokenizer.json").is_file()


def test_links_are_followed(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in make_tiny("llama").iterdir():
        (linked / path.name).symlink_to(path)
    out = export(linked, tmp_path / "out")
    assert not any(path.is_symlink() for path in out.iterdir())


def test_where_there_is_no_template_the_text_is_all(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_tiny("llama"), source)
    (source / "chat_template.jinja").unlink(missing_ok=True)
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config))
    out = export(source, tmp_path / "out")
    template = jinja2.Template((out / "chat_template.jinja").read_text())
    assert template.render(messages=[{"role": "user", "content": "as it is"}]) == "as it is"


def test_further_templates_are_left_out(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_tiny("llama"), source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("x")
    out = export(source, tmp_path / "out")
    assert not (out / "additional_chat_templates").exists()


def test_of_named_templates_the_default_is_kept(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_tiny("llama"), source)
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    path.write_text(json.dumps({**config, "chat_template": named}))
    out = export(source, tmp_path / "out")
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "d"
    path.write_text(json.dumps({**config, "chat_template": named[:1]}))
    with pytest.raises(CheckpointError, match="none is called `default`"):
        export(source, tmp_path / "other")
