"""Read what a checkpoint is from `config.json` and the headers of its shards. Loads no weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekit.checkpoint.safetensors import TensorInfo, read_header
from edgekit.errors import CheckpointError, storage_errors
from edgekit.families import expected_tensors, read_spec
from edgekit.model import ModelSpec
from edgekit.progress import Progress, no_progress

SOURCE_FILE = "edgekit_source.json"
"""Where a checkpoint came from; written by `resolve_model`, no part of the digest."""
ZERO_POINT = ".weight_zero_point"
"""Behind a layer's name: its tensor of zero points."""
_HASHED_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HASH_STEP_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A directory with `config.json`, a tokenizer and safetensors, found to be consistent."""

    path: Path
    name: str
    """What to call the model: the directory, the repository or the GGUF file it came from."""
    config: Mapping[str, Any]
    """`config.json` as parsed."""
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    """By Hugging Face name, over all shards."""
    source: Mapping[str, Any]
    """`kind` (directory, gguf or hub) and what that kind knows: `repository` and `revision`;
    `file`, `sha256` and `quant_types` (type -> number of tensors)."""

    @property
    def is_quantized(self) -> bool:
        """Whether ModelOpt wrote it: weights may be packed and have scales beside them."""
        return is_quantized(self.path, self.config)

    @property
    def has_zero_points(self) -> bool:
        """Whether 4-bit weights have zero points beside their scales: edgekit's own addition."""
        return any(name.endswith(ZERO_POINT) for name in self.tensors)

    def sha256(self, report: Progress = no_progress) -> str:
        """Digest of everything that decides the model's answers, as 64 hex digits.

        Covers the names and bytes of config, tokenizer, chat template, generation config and
        shards; not the directory's name, nor file times, nor other files in it. Reads every
        byte: about a second per GiB from a fast disk.
        """
        names = [name for name in _HASHED_FILES if (self.path / name).is_file()]
        paths = sorted({*(self.path / name for name in names), *self._shards})
        total = sum(path.stat().st_size for path in paths)
        digest, done = hashlib.sha256(), 0
        for path in paths:
            file_digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_HASH_STEP_BYTES):
                    file_digest.update(block)
                    done += len(block)
                    report("hash the checkpoint", done, total)
            digest.update(f"{path.name}\0{file_digest.hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def _shards(self) -> set[Path]:
        return {info.path for info in self.tensors.values()}


def read_checkpoint(path: Path) -> Checkpoint:
    """Check the checkpoint in directory `path` and say what it is; reads headers only.

    Raises `CheckpointError` in one sentence for whatever would otherwise fail later or, worse,
    compute something else: a missing, truncated or inconsistent shard, a tensor that is
    missing, of another shape, or not explained by `config.json`, pickled weights, no tokenizer.
    """
    if not path.is_dir():
        raise CheckpointError(f"not a directory: {path}")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"no config.json in {path}", hint="give a directory in Hugging Face's layout"
        )
    config = read_json(path / "config.json")
    spec = read_spec(config)
    _refuse_foreign_quantization(config)
    tensors = _merge(find_shards(path))
    _check_tensors(spec, tensors, is_quantized=is_quantized(path, config))
    if not (path / "tokenizer.json").is_file():
        raise CheckpointError(
            f"no tokenizer.json in {path}",
            hint="write one with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
        )
    source: dict[str, Any] = {"kind": "directory"}
    if (path / SOURCE_FILE).is_file():
        source |= read_json(path / SOURCE_FILE)
    return Checkpoint(
        path=path,
        name=str(source.pop("name", path.resolve().name)),
        config=MappingProxyType(config),
        spec=spec,
        tensors=MappingProxyType(tensors),
        source=MappingProxyType(source),
    )


def is_quantized(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint in `path` carries ModelOpt's quantization record."""
    return bool(config.get("quantization_config")) or (path / "hf_quant_config.json").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises `CheckpointError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"not valid JSON: {path}") from exc
    if not isinstance(data, dict):
        raise CheckpointError(f"not a JSON object: {path}")
    return data


def find_shards(path: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint, in the order `transformers` prefers.

    `model.safetensors`, else the files that the index names, else all there are.
    """
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_shards(index)
    if shards := sorted(path.glob("*.safetensors")):
        return shards
    if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
        raise CheckpointError(
            f"the weights in {path} are pickled, which can run code: {pickles[0]}",
            hint="convert them where you trust them: "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)`",
        )
    raise CheckpointError(f"no safetensors file in {path}")


def _indexed_shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"no weight_map in {index}")
    names = set(weight_map.values()) if all(map(_is_file_name, weight_map.values())) else set()
    if not names:
        raise CheckpointError(f"the weight_map names something that is not a file: {index}")
    shards = [index.parent / name for name in sorted(names)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} shards are missing in {index.parent}, "
            f"first {missing[0]}",
            hint="download or copy the checkpoint again",
        )
    return shards


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value and "\0" not in value


def _merge(shards: Iterable[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name} is in two shards: {tensors[name].path.name}, {shard.name}"
                )
            tensors[name] = info
    return tensors


def _refuse_foreign_quantization(config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method not in (None, "modelopt"):
        raise CheckpointError(
            f"the checkpoint is already quantized by another tool: {method}",
            hint="give the original checkpoint, or one that ModelOpt quantized",
        )


def _check_tensors(
    spec: ModelSpec, tensors: Mapping[str, TensorInfo], *, is_quantized: bool
) -> None:
    """Names and shapes against the spec. ModelOpt packs linear weights: only their names count."""
    if spec.num_layers > len(tensors):  # before a damaged count makes a table of that size
        raise CheckpointError(f"{len(tensors)} tensors cannot make {spec.num_layers} layers")
    expected = expected_tensors(spec)
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(
            f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}"
        )
    # a tied head may be stored all the same
    known = {"lm_head.weight": expected["model.embed_tokens.weight"], **expected}
    for name, shape in known.items():
        is_packed = is_quantized and name.endswith(("_proj.weight", "lm_head.weight"))
        if name in tensors and not is_packed and tensors[name].shape != shape:
            raise CheckpointError(
                f"{name} has another shape than config.json says: "
                f"expected {list(shape)}, found {list(tensors[name].shape)}"
            )
    for name in tensors:
        if name.endswith((".weight", ".bias")) and name not in known:
            raise CheckpointError(
                f"the checkpoint holds a tensor that config.json does not explain: {name}"
            )


def write_source(path: Path, **source: object) -> None:
    """Record in a checkpoint where it came from."""
    text = json.dumps(source, indent=2, sort_keys=True, ensure_ascii=False)
    with storage_errors(path):
        (path / SOURCE_FILE).write_text(text + "\n", encoding="utf-8")
