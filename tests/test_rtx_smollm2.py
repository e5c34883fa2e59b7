"""A real model, compiled for two cards at once and checked through its twin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from edgekit.backends import Session, find_backend
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE
from edgekit.checkpoint import read_checkpoint
from edgekit.cli import main
from edgekit.export import export_standard_decoder
from edgekit.profile import find_profile
from edgekit.target import with_storage

pytestmark = pytest.mark.slow

PROMPT = "<|im_start|>user\nExplain in two sentences why the sky is blue.<|im_end|>\n"
PROMPT += "<|im_start|>assistant\n"
TOKENS = 32
NEAR_TIE = 0.05
"""fp16 logits of about 20 come in steps of 0.016."""


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = tmp_path_factory.mktemp("store")
    words = ["build", "--model", str(smollm2_gguf), "--for", "rtx-3070,rtx-4090", "--store"]
    words += [str(store), "--precision", "int4_awq", "--context", "512", "--json"]
    result = CliRunner().invoke(main, [*words, "--calibration-tokens", "256"])
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


@pytest.fixture(scope="module")
def quantized(engine: dict[str, Any]) -> Path:
    store = Path(engine["engine"]).parents[2]
    [found] = store.glob(".work/quantized-*")
    return found


@pytest.fixture(scope="module")
def twin(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    checkpoint, out = read_checkpoint(quantized), tmp_path_factory.mktemp("graph")
    card = with_storage(find_profile("rtx-3070"), "tensorrt-rtx")
    storage = card.storage_for("int4_awq", checkpoint.spec.num_params)
    export_standard_decoder(checkpoint, storage, out, context_tokens=512)
    session = find_backend("tensorrt-rtx").open_twin(out, context_tokens=256, num_slots=3)
    yield session
    session.close()


@pytest.fixture(scope="module")
def meant(quantized: Path) -> Any:
    """What the quantized checkpoint stands for: read back by hand, run by transformers in fp32."""
    stored = {
        name: value
        for path in quantized.glob("*.safetensors")
        for name, value in load(path).items()
    }
    plain = {}
    for name, value in stored.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.weight_scale" in stored:
            plain[name] = by_hand(
                value, stored[f"{layer}.weight_scale"], stored.get(f"{layer}.pre_quant_scale")
            )
        elif name.endswith((".weight", ".bias")):
            plain[name] = value.astype(np.float32)
    config = AutoConfig.from_pretrained(quantized)
    config.quantization_config = None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing = model.load_state_dict({n: torch.tensor(v) for n, v in plain.items()}, strict=False)
    assert [name for name in missing.missing_keys if name != "lm_head.weight"] == []
    model.tie_weights()
    return model


def load(path: Path) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = load_file(path)
    return found


def by_hand(
    packed: NDArray[np.uint8], scales: NDArray[Any], input_scale: NDArray[Any] | None
) -> NDArray[np.float32]:
    """`[N / 2, K]` bytes, the low nibble an even row -> weights `[N, K]` of unscaled inputs."""
    rows, columns = packed.shape
    codes = np.empty((2 * rows, columns), np.float32)
    for place in (0, 1):
        nibbles = (packed >> (4 * place) & 15).astype(np.int8)
        codes[place::2] = np.where(nibbles > 7, nibbles - 16, nibbles)
    weights = codes * np.repeat(scales.astype(np.float32), columns // scales.shape[1], axis=1)
    return weights if input_scale is None else weights * input_scale.astype(np.float32)


def test_the_engine_is_as_large_as_planned(engine: dict[str, Any]) -> None:
    size = (Path(engine["engine"]) / "backend" / PLAN_FILE).stat().st_size
    assert abs(size / engine["plan"]["engine_bytes"] - 1) <= 0.03


def test_it_holds_both_cards_and_fused_kernels(engine: dict[str, Any]) -> None:
    plan = (Path(engine["engine"]) / "backend" / PLAN_FILE).read_bytes()
    assert b"accelerators={sm86 sm89 }" in plan
    for kernel in (b"_gemm_mha_v2", b"_gemv_mha_v1", b"int4_block_dq"):
        assert kernel in plan


def test_it_agrees_with_the_simulation_and_answers(engine: dict[str, Any]) -> None:
    quality = engine["quality"]
    assert quality["mean_kl_simulated"] <= 1e-3
    assert "Paris" in quality["known_answer"]
    assert quality["perplexity_ratio"] <= 1.25


def test_the_twin_says_what_the_checkpoint_means(
    twin: Session, meant: Any, quantized: Path
) -> None:
    """32 greedy tokens of the checkpoint read by hand; the twin would say the same."""
    prompt = Tokenizer.from_file(str(quantized / "tokenizer.json")).encode(PROMPT).ids
    with torch.inference_mode():
        said = meant.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()  # fmt: skip
        expected = meant(torch.tensor([said])).logits[0].numpy()[len(prompt) - 1 : -1]
    twin.truncate(0, 0)
    rows = [twin.prefill(0, prompt)[-1].copy()]
    rows += [twin.decode([0], [token])[0].copy() for token in said[len(prompt) : -1]]
    found = np.stack(rows)
    for step, token in enumerate(said[len(prompt) :]):
        best, second = np.sort(expected[step])[[-1, -2]]
        assert found[step].argmax() == token or best - second < NEAR_TIE
    log_p = expected - np.log(np.exp(expected).sum(axis=1, keepdims=True))
    log_q = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    assert float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()) <= 1e-3


def test_pieces_steps_and_slots_give_the_logits_of_one_pass(twin: Session, quantized: Path) -> None:
    ids = Tokenizer.from_file(str(quantized / "tokenizer.json")).encode(PROMPT * 3).ids[:48]
    for slot in range(3):
        twin.truncate(slot, 0)
    whole = twin.prefill(0, ids, num_logits=len(ids)).copy()
    pieces = [twin.prefill(1, part, num_logits=len(part)).copy() for part in (ids[:7], ids[7:30])]
    limit = 0.02 * float(whole.std())
    assert np.abs(np.concatenate(pieces) - whole[:30]).max() < limit
    twin.truncate(0, 30)
    twin.prefill(2, ids[:30])
    for position in range(30, 48):
        rows = twin.decode([0, 1, 2], [ids[position]] * 3)
        assert np.abs(rows - whole[position]).max() < limit
