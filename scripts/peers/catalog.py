"""Which engines and models are compared: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from peers import prepare
from peers.random_model import write_random_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that every engine converts for itself."""

    name: str
    title: str
    checkpoint: Callable[[Path], Path]
    """Makes the Hugging Face directory below a directory, and returns it."""
    build_flags: tuple[str, ...] = ()
    """For `edgekit build`."""
    has_quality: bool = True
    """Whether its answers mean anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One contestant."""

    name: str
    title: str
    adapter: str
    """A name of `adapters.ADAPTERS`."""
    convert: Callable[[prepare.Source, Path], Path]
    """Makes the engine's files at a path that does not exist yet, and returns what to open."""
    is_ours: bool = False


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        row.name: row
        for row in (
            Model(
                name="smollm2",
                title="SmolLM2-135M-Instruct",
                checkpoint=prepare.smollm2_checkpoint,
            ),
            Model(
                name="random1b",
                title="TinyLlama-1.1B's shape with random weights",
                checkpoint=write_random_checkpoint,
                # nothing to calibrate in noise; the speed is that of any calibration
                build_flags=("--calibration-tokens", "64"),
                has_quality=False,
            ),
        )
    }
)

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        row.name: row
        for row in (
            *(
                Engine(
                    name=f"edgekit-{precision}",
                    title=f"edgekit {precision}",
                    adapter="edgekit",
                    convert=prepare.edgekit_engine(precision),
                    is_ours=True,
                )
                for precision in ("int4_awq", "int8_sq", "int8", "fp16")
            ),
            Engine(
                name="llamacpp-q4_0",
                title="llama.cpp Q4_0",
                adapter="llamacpp",
                convert=prepare.llamacpp_q4_0,
            ),
            Engine(
                name="genai-int4",
                title="ONNX Runtime GenAI int4",
                adapter="genai",
                convert=prepare.genai_int4,
            ),
            Engine(
                name="openvino-int4",
                title="OpenVINO GenAI int4",
                adapter="openvino",
                convert=prepare.openvino_int4,
            ),
            Engine(
                name="ctranslate2-int8",
                title="CTranslate2 int8",
                adapter="ctranslate2",
                convert=prepare.ctranslate2_int8,
            ),
        )
    }
)
DEFAULT_ENGINES = (
    "edgekit-int4_awq", "edgekit-int8_sq",
    "llamacpp-q4_0", "genai-int4", "openvino-int4", "ctranslate2-int8",
)  # fmt: skip
