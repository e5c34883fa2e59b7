"""The quantize step on a tiny llama: what it writes, and that the engine made of it is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgekit.backends import find_backend
from edgekit.checkpoint import read_checkpoint
from edgekit.device import read_device
from edgekit.errors import BudgetError, InputError, MissingBackendError, QualityError
from edgekit.export import export_decoder
from edgekit.export.weights import row_chunks
from edgekit.precision import find_precision
from edgekit.profile import find_profile
from edgekit.quality import Quality, require_quality
from edgekit.quantize import quantize_checkpoint
from edgekit.quantize.recipe import read_recipe
from edgekit.reference import FIRST_POSITION, REFERENCE_FILE, Reference, ask
from edgekit.verify import measure_quality
from tests.quantize.checkpoints import damaged, require_written_as_simulated

MakePath = Callable[..., Path]
Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
PRECISIONS = ["fp16", "int8", "int8_sq", "int4_awq"]


def quality_of(checkpoint: Path, precision: str, export_graph: MakePath) -> Quality:
    storage = find_profile("cpu").storage[precision]
    session = find_backend("onnxruntime").open(
        export_graph(checkpoint, storage, context_tokens=128),
        context_tokens=128, num_slots=1, threads=1,
    )  # fmt: skip
    try:
        return measure_quality(session, Reference.load(checkpoint / REFERENCE_FILE))
    finally:
        session.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_result_is_a_checkpoint_with_its_answers(
    precision: str, quantized: MakePath, make_tiny: MakePath
) -> None:
    path = quantized(precision)
    checkpoint = read_checkpoint(path)
    assert checkpoint.is_quantized == (precision != "fp16")
    assert checkpoint.spec == read_checkpoint(make_tiny()).spec
    tokenizer = (path / "tokenizer.json").read_bytes()
    assert tokenizer == (make_tiny() / "tokenizer.json").read_bytes()
    assert (path / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("precision", "algorithm", "group"),
    [
        ("fp16", "none", None),
        ("int8", "max", None),
        ("int8_sq", "smoothquant", None),
        ("int4_awq", "awq_lite+local_hessian", 32),
    ],
)
def test_the_sidecar_says_how_it_was_made(
    precision: str, algorithm: str, group: int | None, quantized: MakePath
) -> None:
    recipe = read_recipe(quantized(precision))
    assert recipe["precision"] == precision
    assert recipe["algorithm"] == algorithm
    assert recipe["group_size"] == group
    assert recipe["calibration_source"] == "bundled"
    assert recipe["calibration_tokens"] == 64
    assert recipe["calibration_samples"] == 1
    assert recipe["checkpoint_sha256"] == "abc"
    assert recipe["versions"]["torch"] == metadata.version("torch")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_agrees_with_modelopt_s_simulation(
    precision: str, quantized: MakePath, export_graph: MakePath
) -> None:
    quality = quality_of(quantized(precision), precision, export_graph)
    require_quality(quality, precision)
    # 12 prompts of 96 tokens, compared from position 16 to the last but one
    assert quality.positions == 12 * (96 - 1 - FIRST_POSITION)


def test_biases_survive_awq(quantized: MakePath, export_graph: MakePath) -> None:
    # ModelOpt folds o_proj's scale into v_proj, which has a bias in qwen2. Only the simulation
    # is a yardstick here: random weights know nothing that rounding them could spoil.
    quality = quality_of(quantized("int4_awq", "qwen2"), "int4_awq", export_graph)
    assert quality.mean_kl_simulated < 1e-3


def test_a_tied_head_parts_from_the_embedding_which_stays_as_it_was(
    quantized: MakePath, make_tiny: MakePath
) -> None:
    before = load_file(make_tiny("qwen2") / "model.safetensors")
    after = load_file(quantized("int4_awq", "qwen2") / "model.safetensors")
    assert "lm_head.weight" not in before
    table = before["model.embed_tokens.weight"]
    np.testing.assert_array_equal(after["model.embed_tokens.weight"], table.astype(np.float16))
    # two output rows in a byte, and scales in the same groups of 32 as every layer's
    assert after["lm_head.weight"].dtype == np.uint8
    assert after["lm_head.weight"].shape == (table.shape[0] // 2, table.shape[1])
    assert after["lm_head.weight_scale"].shape == (table.shape[0], table.shape[1] // 32)


def test_a_head_written_in_pieces_is_the_same(
    quantized: MakePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = find_profile("cpu").storage["int4_awq"]
    checkpoint = read_checkpoint(quantized("int4_awq"))
    packed = checkpoint.tensors["lm_head.weight"]
    for name, values in (("whole", packed.shape[0] * packed.shape[1]), ("pieces", 1000)):
        monkeypatch.setattr("edgekit.export.weights._CHUNK_VALUES", values)
        assert (len(list(row_chunks(packed))) > 1) == (name == "pieces")
        (tmp_path / name).mkdir()
        export_decoder(checkpoint, storage, tmp_path / name, context_tokens=64)
    assert (tmp_path / "whole" / "model.data").read_bytes() == (
        tmp_path / "pieces" / "model.data"
    ).read_bytes()


def test_fp16_is_the_checkpoint_itself(quantized: MakePath, make_tiny: MakePath) -> None:
    weights = (quantized("fp16") / "model.safetensors").read_bytes()
    assert weights == (make_tiny() / "model.safetensors").read_bytes()
    reference = Reference.load(quantized("fp16") / REFERENCE_FILE)
    np.testing.assert_array_equal(reference.original, reference.simulated)


def test_the_reference_is_what_transformers_answers(
    quantized: MakePath, make_tiny: MakePath, hf_logits: Logits
) -> None:
    reference = Reference.load(quantized("int8") / REFERENCE_FILE)
    answers = ask(
        lambda ids, count: hf_logits(make_tiny(), ids)[-count:],
        reference.prompts, first_position=reference.first_position, top_ids=reference.top_ids,
    )  # fmt: skip
    # stored as fp16: half a step of 2^-6 where log-probabilities reach -16
    assert np.abs(answers.log_probs - reference.original.astype(np.float32)).max() < 2**-6
    np.testing.assert_allclose(answers.next, reference.original_next, atol=1e-3)
    known = list(reference.known_prompt)
    for token in reference.known_answer[:3]:
        assert int(hf_logits(make_tiny(), known)[-1].argmax()) == token
        known.append(token)


@pytest.mark.parametrize(
    ("precision", "family"),
    [
        ("int8", "llama"),
        ("int4_awq", "llama"),
        ("int4_awq", "qwen2"),
    ],
)
def test_the_exported_weights_are_those_that_modelopt_simulated(
    precision: str, family: str, quantized: MakePath, hf_logits: Logits, tmp_path: Path
) -> None:
    require_written_as_simulated(quantized(precision, family), hf_logits, tmp_path)


def test_the_same_seed_gives_the_same_files(make_tiny: MakePath, tmp_path: Path) -> None:
    for out in (tmp_path / "a", tmp_path / "b"):
        out.mkdir()
        quantize_checkpoint(
            read_checkpoint(make_tiny()), find_precision("int4_awq"), out, group_size=32,
            calibration_tokens=32, seed=7,
        )  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_progress_covers_every_step(make_tiny: MakePath, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    quantize_checkpoint(
        read_checkpoint(make_tiny()), find_precision("int8"), tmp_path, group_size=None,
        calibration_tokens=16, report=lambda *step: seen.append(step),
    )  # fmt: skip
    steps = list(dict.fromkeys(name for name, _, _ in seen))
    assert steps == [
        "load", "ask the checkpoint", "quantize", "ask the quantized model", "write",
    ]  # fmt: skip
    for step in steps:
        progress = [(done, total) for name, done, total in seen if name == step]
        assert progress == sorted(progress)
        assert progress[-1][0] == progress[-1][1]


def swap_nibbles(tensors: dict[str, NDArray[Any]]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = (tensors[name] << 4) | (tensors[name] >> 4)


def double_scales(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["model.layers.1.self_attn.o_proj.weight_scale"] *= 2


def quadruple_scales(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["model.layers.1.self_attn.o_proj.weight_scale"] *= 4


@pytest.mark.parametrize(
    ("precision", "edit"),
    [
        ("int8", double_scales),
        # its limits are ten times as wide: ModelOpt simulates other activation scales
        ("int8_sq", quadruple_scales),
        ("int4_awq", double_scales),
        ("int4_awq", swap_nibbles),
    ],
)
def test_one_wrong_layer_fails_the_check(
    precision: str,
    edit: Callable[[dict[str, NDArray[Any]]], None],
    quantized: MakePath,
    export_graph: MakePath,
    tmp_path: Path,
) -> None:
    path = damaged(quantized(precision), tmp_path / "damaged", edit)
    quality = quality_of(path, precision, export_graph)
    with pytest.raises(QualityError, match=r"mean KL divergence from .* is \d\.\d{4}, limit"):
        require_quality(quality, precision)


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(
    make_tiny: MakePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(read_device(), available_bytes=100_000)
    monkeypatch.setattr("edgekit.quantize.model.read_device", lambda: small)
    with pytest.raises(BudgetError, match=r"needed, 97\.66 KiB available"):
        quantize_checkpoint(
            read_checkpoint(make_tiny()), find_precision("int8"), tmp_path, group_size=None
        )
    assert not (tmp_path / REFERENCE_FILE).exists()


def test_a_damaged_tokenizer_is_bad_input(make_tiny: MakePath, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_tiny(), source)
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        quantize_checkpoint(
            read_checkpoint(source), find_precision("int8"), tmp_path / "out", group_size=None
        )


def test_bad_calibration_is_refused_before_the_model_is_loaded(
    make_tiny: MakePath, tmp_path: Path
) -> None:
    steps: list[str] = []
    with pytest.raises(InputError, match="cannot read the calibration file"):
        quantize_checkpoint(
            read_checkpoint(make_tiny()), find_precision("int8"), tmp_path, group_size=None,
            calibration=tmp_path / "none.txt", report=lambda step, *_: steps.append(step),
        )  # fmt: skip
    assert steps == []


def test_without_modelopt_the_way_to_get_it_is_said(
    make_tiny: MakePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingBackendError, match="not installed: nvidia-modelopt") as caught:
        quantize_checkpoint(
            read_checkpoint(make_tiny()), find_precision("int8"), tmp_path, group_size=None
        )
    assert caught.value.hint == "pip install 'edgekit[build]'"
