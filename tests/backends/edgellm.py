"""An engine's directory and a runtime for the stand-in of Edge-LLM's wheel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from edgekit.backends.edge_llm.identity import read_identity
from edgekit.backends.edge_llm.layout import EngineLayout
from edgekit.backends.edge_llm.runtime import Runtime
from edgekit.device import Device, Gpu, Jetson

STANDIN = Path(__file__).parents[1] / "data" / "edgellm" / "standin"
(EXIT, KILL, SEGV, OOM, OOM_TEXT, HANG, PRINT, SILENT, BURST, BAD_ALLOC, LOST, DEAF, NO_END,
 UNREAD) = range(900, 914)  # fmt: skip
VOCAB = 1000
ENVIRONMENT = {"PYTHONPATH": str(STANDIN)}
RUNTIME = Runtime(
    python=(sys.executable,),
    version="0.11.0",
    has_trtedge=False,
    details={"tensorrt": "10.16.0", "python": "3.12"},
)
THOR = Device(
    cpu="Cortex",
    cores=14,
    memory_bytes=131_881_062_400,
    available_bytes=120_000_000_000,
    gpus=(Gpu(index=0, name="NVIDIA Thor", sm=110, driver="580.00", cuda="13.0"),),
    jetson=Jetson(board="NVIDIA Jetson AGX Thor Developer Kit", l4t="38.2.0", jetpack="7.0"),
)


_DIRECT = """#!{python}
import argparse, sys
sys.path.insert(0, {standin!r})
from pathlib import Path
from tensorrt_edgellm import building
parser = argparse.ArgumentParser()
for name in ("--model-dir", "--engine-dir", "--components", "--spec-type"):
    parser.add_argument(name)
for name in building.SIZES:
    if {lacks!r} != name:
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=int, default=1)
words = sys.argv[1:]
if Path(sys.argv[0]).name == "trtedge":
    assert words.pop(0) == "build"
asked = vars(parser.parse_args(words))
sizes = {{name: asked[name] for name in building.SIZES}}
stamp = "2026-11-29 12:03:01,123 {{}} experimental.builder: "
source, out = Path(asked["model_dir"]), Path(asked["engine_dir"])
sys.exit(not building.build(source, out, sizes, stamp=stamp))
"""


def write_direct_builder(script: Path, *, lacks: str = "") -> None:
    """The command that builds without ONNX, with the flags of the real one but for `lacks`."""
    text = _DIRECT.format(python=sys.executable, standin=str(STANDIN), lacks=lacks)
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)


def write_tokenizer(directory: Path) -> None:
    """Words are numbers, and their own ids."""
    vocabulary = {str(i): i for i in range(VOCAB)}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(directory / "tokenizer.json"))


def write_engine(
    directory: Path, behaviour: dict[str, Any] | None = None, **changes: Any
) -> tuple[Path, Path]:
    """An engine for the stand-in: its directory, and the file of what was asked."""
    files = directory / "llm"
    files.mkdir(exist_ok=True)
    (files / "fake.json").write_text(json.dumps(behaviour or {}), encoding="utf-8")
    config = {"vocab_size": VOCAB, "eos_token_id": 12}
    (files / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(files)
    sizes: dict[str, Any] = {
        "precision": "fp16", "kv_precision": "fp16", "vocab_size": VOCAB, "max_input_tokens": 60,
        "kv_capacity_tokens": 64, "batch": 1, "has_checkpoint": False,
        "identity": read_identity(RUNTIME, THOR),
    }  # fmt: skip
    EngineLayout(**{**sizes, **changes}).write(directory)
    return directory, files / "seen.jsonl"


def read_seen(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
