"""The sizes of an engine, and the command of Edge-LLM that exports a checkpoint on any machine.

Every size is written out: its own are of no use, 32 tokens of input, 96 of cache and one
conversation on the command line (`experimental/builder/cli.py` of 0.11.0), other ones in Python.
What builds on the device is in `builder`.

    0.11.0             tensorrt-edgellm-export M OUT …
    0.11.1 and later   trtedge export M OUT …

(docs of 0.11.1, user_guide/getting_started/cli.html: `trtedge export`, long options with hyphens.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.backends.edge_llm.runtime import Runtime

TOKENS_PER_PAGE = 128
"""Of its KV cache."""
INT4_PLUGIN_VERSION = "2"
"""Of `Int4GroupwiseGemmPlugin`: the fragment layout of its CuTe DSL kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The three sizes that an engine is built with."""

    max_input_tokens: int
    """Of one prompt."""
    kv_capacity_tokens: int
    """Of one conversation, prompt and answer."""
    batch: int
    """Conversations at once."""

    def __post_init__(self) -> None:
        sizes = (self.max_input_tokens, self.kv_capacity_tokens, self.batch)
        if min(sizes) < 1 or self.max_input_tokens > self.kv_capacity_tokens:
            raise ValueError(f"sizes of no engine: {self}")


def make_sizes(*, context_tokens: int, batch: int) -> Sizes:
    """The sizes of a plan: a prompt may fill its whole context, for a longer one than the engine
    was built for is refused (EDGELLM_INPUT_TOO_LONG)."""
    pages = -(-context_tokens // TOKENS_PER_PAGE) * TOKENS_PER_PAGE
    return Sizes(max_input_tokens=context_tokens, kv_capacity_tokens=pages, batch=batch)


def export_command(
    runtime: Runtime, *, checkpoint: Path, out: Path, precision: str
) -> tuple[str, ...]:
    """Write `out/llm/model.onnx` and what lies beside it."""
    home = Path(runtime.python[0]).parent
    words = [str(home / "tensorrt-edgellm-export")]
    if runtime.has_trtedge:
        words = [str(home / "trtedge"), "export"]
    words += [str(checkpoint), str(out)]
    if precision == "int4_awq":
        words += ["--int4-gemm-plugin-version", INT4_PLUGIN_VERSION]
    return tuple(words)
