"""What is served: SmolLM2 as an engine of edgekit, and as llama.cpp's Q4_0 file."""

from __future__ import annotations

import shutil
from pathlib import Path

from peers.environment import own_python, run
from peers.prepare import cache_directory, prepared, smollm2_checkpoint, smollm2_gguf
from serve_load.llama_server import llama_tool

_CONTEXT_TOKENS = 4096


def smollm2_engine() -> Path:
    """SmolLM2 at int4_awq with room for a long prompt, built on first use. Raises `PeerError`."""
    return prepared(cache_directory("smollm2", "serve-int4_awq"), _build)


def _build(out: Path) -> Path:
    checkpoint = smollm2_checkpoint(out.parent)
    run(
        [
            own_python(), "-c", "from edgekit.cli import main; main()",
            "build", "--profile", "cpu", "--model", checkpoint, "--precision", "int4_awq",
            "--context", _CONTEXT_TOKENS, "--store", out,
        ],
        what="edgekit build",
    )  # fmt: skip
    shutil.rmtree(out / ".work", ignore_errors=True)  # the checkpoint is not needed again
    return next(out.glob("*/*/*/manifest.json")).parent


def smollm2_q4_0() -> Path:
    """The same at Q4_0, quantized by llama.cpp on first use. Raises `PeerError`."""
    return prepared(cache_directory("smollm2", "serve-q4_0"), _quantize)


def _quantize(out: Path) -> Path:
    checkpoint = smollm2_checkpoint(out.parent)
    f16, q4_0 = out / "f16.gguf", out / "q4_0.gguf"
    write = "import sys; from pathlib import Path; from peers.gguf_writer import write_f16_gguf; "
    write += "write_f16_gguf(*map(Path, sys.argv[1:]))"
    run([own_python(), "-c", write, checkpoint, smollm2_gguf(), f16], what="F16 GGUF")
    run([llama_tool("llama-quantize"), f16, q4_0, "Q4_0"], what="llama.cpp's quantizer")
    f16.unlink()
    return q4_0
