"""`read_checkpoint`: consistent directories are described, all others refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import read_checkpoint, read_tensor
from edgekit.errors import CheckpointError

Make = Callable[..., Path]
FIRST_NORM = "model.layers.0.input_layernorm.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 2
    return caught.value


def edit_config(path: Path, **changes: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def shard(path: Path) -> Path:
    """Split `model.safetensors` into two files with an index."""
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, path / file)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {name: f for f, part in parts.items() for name in part}})
    )
    return path


def test_a_checkpoint_is_described(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    checkpoint = read_checkpoint(path)
    assert (checkpoint.path, checkpoint.name) == (path, "tiny")
    assert checkpoint.source == {"kind": "directory"}
    assert checkpoint.spec.num_layers == 2
    assert checkpoint.config["hidden_size"] == 64
    assert not checkpoint.is_quantized
    # 3 tables and norms, 9 tensors in each of 2 layers
    assert len(checkpoint.tensors) == 21
    expected = load_file(path / "model.safetensors")
    np.testing.assert_array_equal(read_tensor(checkpoint.tensors[Q_PROJ]), expected[Q_PROJ])


def test_the_name_is_that_of_the_directory_even_for_a_dot(
    make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_checkpoint())
    assert read_checkpoint(Path()).name == "tiny"


def test_shards_are_read_through_their_index(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    expected = load_file(path / "model.safetensors")
    checkpoint = read_checkpoint(shard(path))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read_tensor(checkpoint.tensors[name]), tensor)


def test_a_file_beside_the_indexed_shards_is_ignored(make_checkpoint: Make) -> None:
    path = shard(make_checkpoint())
    (path / "consolidated.safetensors").write_bytes(b"not ours")
    assert len(read_checkpoint(path).tensors) == 21


def test_a_missing_shard_is_named(make_checkpoint: Make) -> None:
    path = shard(make_checkpoint())
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards are missing" in str(refusal(path))
    assert "model-00002-of-00002.safetensors" in str(refusal(path))


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../other/model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "x\0y"}},
    ],
)
def test_a_damaged_index_is_refused(make_checkpoint: Make, index: dict[str, Any]) -> None:
    path = shard(make_checkpoint())
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map" in str(refusal(path))


def test_a_tensor_in_two_shards_is_refused(make_checkpoint: Make) -> None:
    path = shard(make_checkpoint())
    shutil.copy(
        path / "model-00001-of-00002.safetensors", path / "model-00002-of-00002.safetensors"
    )
    assert "is in two shards" in str(refusal(path))


def test_no_directory_and_no_config_are_told_apart(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "none")) == f"not a directory: {tmp_path / 'none'}"
    assert str(refusal(tmp_path)) == f"no config.json in {tmp_path}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid"),
        (b"[1]", "not a JSON object"),
        (b'"llama"', "not a JSON object"),
    ],
)
def test_a_config_that_is_no_object_is_refused(
    make_checkpoint: Make, text: bytes, words: str
) -> None:
    path = make_checkpoint()
    (path / "config.json").write_bytes(text)
    assert words in str(refusal(path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused_with_a_way_out(make_checkpoint: Make, name: str) -> None:
    path = make_checkpoint()
    (path / "model.safetensors").rename(path / name)
    error = refusal(path)
    assert str(error).endswith(f"can run code: {name}")
    assert "save_pretrained" in str(error.hint)


def test_pickled_weights_beside_safetensors_are_ignored(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    assert len(read_checkpoint(path).tensors) == 21


def test_no_weights_at_all_are_refused(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    (path / "model.safetensors").unlink()
    assert str(refusal(path)) == f"no safetensors file in {path}"


def test_remote_code_is_refused(make_checkpoint: Make) -> None:
    path = edit_config(make_checkpoint(), auto_map={"AutoModel": "modeling.Model"})
    assert "Python code of its own" in str(refusal(path))


def test_a_truncated_shard_is_refused(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])
    assert "is truncated" in str(refusal(path))


def test_missing_tensors_are_counted_and_named(make_checkpoint: Make) -> None:
    path = make_checkpoint(edit=lambda tensors: tensors.pop(FIRST_NORM))
    assert str(refusal(path)) == f"1 of 21 tensors are missing, first {FIRST_NORM}"


def test_an_absurd_number_of_layers_is_refused_at_once(make_checkpoint: Make) -> None:
    path = edit_config(make_checkpoint(), num_hidden_layers=2**31 - 1)
    assert str(refusal(path)) == "21 tensors cannot make 2147483647 layers"


def test_a_wrong_shape_says_expected_and_found(make_checkpoint: Make) -> None:
    path = edit_config(make_checkpoint(), num_key_value_heads=4)
    assert str(refusal(path)).endswith(
        "k_proj.weight has another shape than config.json says: expected [64, 64], found [32, 64]"
    )


def test_a_weight_that_the_config_does_not_explain_is_refused(make_checkpoint: Make) -> None:
    # a bias that would be left out silently
    name = "model.layers.0.self_attn.q_proj.bias"
    path = make_checkpoint(edit=lambda t: t.update({name: np.zeros(64, np.float16)}))
    assert str(refusal(path)).endswith(f"does not explain: {name}")


def test_rotary_tables_of_old_checkpoints_are_ignored(make_checkpoint: Make) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    path = make_checkpoint(edit=lambda t: t.update({name: np.zeros(8, np.float32)}))
    assert name in read_checkpoint(path).tensors


def test_a_tied_head_may_be_stored_all_the_same(make_checkpoint: Make) -> None:
    tied = make_checkpoint(tie_word_embeddings=True)
    assert "lm_head.weight" not in read_checkpoint(tied).tensors
    stored = make_checkpoint(
        name="stored",
        tie_word_embeddings=True,
        edit=lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}),
    )
    assert "lm_head.weight" in read_checkpoint(stored).tensors


def test_no_tokenizer_is_refused_with_a_way_out(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    (path / "tokenizer.json").unlink()
    error = refusal(path)
    assert str(error) == f"no tokenizer.json in {path}"
    assert "AutoTokenizer" in str(error.hint)


def pack_q_proj(tensors: dict[str, Any]) -> None:
    """As ModelOpt stores int4: two weights in a byte, scales beside them."""
    prefix = Q_PROJ.removesuffix("weight")
    tensors[Q_PROJ] = np.zeros((32, 64), np.uint8)
    tensors[f"{prefix}weight_scale"] = np.zeros((64, 1), np.float32)
    tensors[f"{prefix}pre_quant_scale"] = np.zeros(64, np.float16)


def test_packed_linear_weights_are_accepted_when_the_checkpoint_says_quantized(
    make_checkpoint: Make,
) -> None:
    path = make_checkpoint(edit=pack_q_proj)
    assert "another shape" in str(refusal(path))
    (path / "hf_quant_config.json").write_text("{}")
    assert read_checkpoint(path).is_quantized
    (path / "hf_quant_config.json").unlink()
    edit_config(path, quantization_config={"quant_method": "modelopt"})
    assert read_checkpoint(path).is_quantized


def test_a_quantized_checkpoint_still_needs_every_name_and_the_shapes_of_norms(
    make_checkpoint: Make,
) -> None:
    quantized = {"quantization_config": {"quant_method": "modelopt"}}
    missing = make_checkpoint(edit=lambda t: t.pop(Q_PROJ), name="missing")
    assert Q_PROJ in str(refusal(edit_config(missing, **quantized)))
    norm = make_checkpoint(
        edit=lambda t: t.update({FIRST_NORM: np.zeros(32, np.float16)}), name="norm"
    )
    assert FIRST_NORM in str(refusal(edit_config(norm, **quantized)))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_another_tools_quantization_is_refused_by_name(make_checkpoint: Make, method: str) -> None:
    path = edit_config(make_checkpoint(), quantization_config={"quant_method": method})
    assert str(refusal(path)).endswith(f"by another tool: {method}")


def test_the_digest_is_of_the_contents_alone(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    digest = read_checkpoint(path).sha256()
    assert len(digest) == 64
    copy = path.with_name("elsewhere")
    shutil.copytree(path, copy)
    os.utime(copy / "config.json", (1, 1))
    (copy / "README.md").write_text("words")
    (copy / "edgekit_source.json").write_text('{"kind": "hub"}')
    assert read_checkpoint(copy).sha256() == digest


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "config.json", "generation_config.json"]
)
def test_the_digest_covers_what_decides_the_answers(make_checkpoint: Make, name: str) -> None:
    path = make_checkpoint()
    digest = read_checkpoint(path).sha256()
    with (path / name).open("a") as file:
        file.write(" ")
    assert read_checkpoint(path).sha256() != digest


def test_the_digest_covers_every_weight(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    digest = read_checkpoint(path).sha256()
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    assert read_checkpoint(path).sha256() != digest


def test_hashing_reports_up_to_the_last_byte(make_checkpoint: Make) -> None:
    seen: list[tuple[str, int, int]] = []
    read_checkpoint(make_checkpoint()).sha256(lambda *step: seen.append(step))
    assert seen[-1][1] == seen[-1][2] > 0


def test_reading_a_checkpoint_imports_no_heavy_library(make_checkpoint: Make) -> None:
    code = (
        "import sys; from pathlib import Path; from edgekit.checkpoint import read_checkpoint;"
        f"read_checkpoint(Path({str(make_checkpoint())!r})).sha256();"
        "print(sorted({'numpy', 'torch', 'gguf', 'tokenizers', 'huggingface_hub', 'safetensors'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
