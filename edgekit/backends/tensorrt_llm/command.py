"""The command that makes an engine: every size and choice written out, nothing left to defaults.

TensorRT-LLM's own sizes (2048 requests, 8192 tokens at once, the model's whole context) cost more
than a gigabyte of activations and buffers. `choices` has each flag beside its reason; `BuildSizes`
come from the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("fp16", "int8", "int4_awq", "fp8")
"""Of weights: those whose flags are known."""
KV_PRECISIONS = ("fp16", "int8", "fp8")
TOKENS_PER_BLOCK = 32
"""Of a page of the KV cache, as the plan counts them."""
MODULE = "tensorrt_llm.commands.build"
"""What the script `trtllm-build` starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSizes:
    """The four sizes that memory follows from."""

    max_batch_size: int
    """Conversations at once."""
    max_input_len: int
    """Tokens of a prompt."""
    max_seq_len: int
    """Tokens of a prompt and its answer."""
    max_num_tokens: int
    """Tokens of all conversations in one pass: activations are linear in it."""

    def __post_init__(self) -> None:
        sizes = (self.max_batch_size, self.max_input_len, self.max_seq_len, self.max_num_tokens)
        if min(sizes) < 1 or self.max_input_len > self.max_seq_len:
            raise ValueError(f"sizes of no engine: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One flag, its value, and why it has that value."""

    flag: str
    value: str
    why: str


def chunks_prompts(precision: str, kv_precision: str) -> bool:
    """Whether a prompt may go through in parts, and pages of the cache be shared between prompts.

    Both need paged context attention, which reads the cache in its own precision: it has fp16, and
    fp8 only for fp8 weights; the builder turns it off elsewhere (tensorrt_llm/builder.py). A longer
    prompt than `max_num_tokens` is then refused when the engine runs.
    """
    return kv_precision == "fp16" or (kv_precision == "fp8" and precision == "fp8")


def make_sizes(
    *,
    context_tokens: int,
    batch: int,
    chunk_tokens: int,
    in_parts: bool,
    step_tokens: int = 1,
) -> BuildSizes:
    """The sizes of a plan; `chunk_tokens` is the footprint's, `in_parts`: prompts may be cut;
    `step_tokens` is what a conversation has in one step, its next token and drafts.

    Where prompts cannot go through in parts the longest must fit into one pass: activations are
    then those of the whole context.
    """
    at_once = chunk_tokens if in_parts else context_tokens
    # whole pages, and a step of each conversation; more than all of them hold is cut off again
    step = batch * step_tokens
    pages = -(-max(at_once, step) // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
    return BuildSizes(
        max_batch_size=batch,
        max_input_len=max(1, context_tokens - 1),
        max_seq_len=context_tokens,
        max_num_tokens=max(min(pages, context_tokens * batch), step),
    )


def choices(precision: str, kv_precision: str) -> tuple[Choice, ...]:
    """Flags that do not depend on sizes or paths. Raises `ValueError` for what has no engine."""
    if precision not in PRECISIONS or kv_precision not in KV_PRECISIONS:
        raise ValueError(f"no engine of {precision} weights and an {kv_precision} cache")
    is_paged = chunks_prompts(precision, kv_precision)
    is_fp8 = precision == "fp8"
    rows = (
        ("--max_beam_width", "1", "answers are sampled, never searched"),
        ("--workers", "1", "one GPU; more start processes that hold the weights again"),
        ("--kv_cache_type", "paged", "the plan counts pages; the runtime shares and grows them"),
        ("--tokens_per_block", str(TOKENS_PER_BLOCK), "the page that the plan counts with"),
        ("--remove_input_padding", "enable", "max_num_tokens counts packed tokens, no padding"),
        ("--context_fmha", "enable", "without it scores of a prompt are kept whole"),
        (
            "--use_paged_context_fmha",
            _switch(is_paged),
            "prompts in parts; there is no kernel for this cache otherwise",
        ),
        (
            "--use_fp8_context_fmha",
            _switch(is_fp8 and kv_precision == "fp8"),
            "only fp8 weights over an fp8 cache have it",
        ),
        ("--gpt_attention_plugin", "auto", "paged attention is this plugin; at the model's dtype"),
        (
            "--gemm_plugin",
            "disable" if is_fp8 else "auto",
            "cuBLASLt takes less memory for fp16 matrices (the head's, where the others are "
            "quantized); for fp8 NVIDIA's guide turns it off",
        ),
        (
            "--use_fused_mlp",
            _switch(precision == "fp16"),
            "for fp8 it drops one of two scales; for weight-only there is none",
        ),
        ("--low_latency_gemm_plugin", "disable", "not proved: it replaces fp8 kernels"),
        ("--gemm_swiglu_plugin", "disable", "needs the fused MLP"),
        ("--low_latency_gemm_swiglu_plugin", "disable", "needs the fused MLP"),
        ("--fp8_rowwise_gemm_plugin", "disable", "scales are per tensor"),
        ("--nccl_plugin", "disable", "one GPU"),
        ("--lora_plugin", "disable", "no adapters"),
        ("--multiple_profiles", "disable", "each profile has an execution context's memory"),
        ("--reduce_fusion", "disable", "for several GPUs"),
        ("--user_buffer", "disable", "for several GPUs"),
        ("--norm_quant_fusion", "disable", "for nvfp4"),
        ("--paged_state", "disable", "for models with a state instead of a cache"),
        ("--max_prompt_embedding_table_size", "0", "text only"),
        ("--max_draft_len", "0", "drafts of the engine's own would take a larger pass"),
        ("--logits_dtype", "float32", "what sampling reads, and the plan counts"),
        ("--profiling_verbosity", "layer_names_only", "enough for a profiler"),
        ("--log_level", "info", "progress is read from the log"),
    )
    return tuple(Choice(flag=flag, value=value, why=why) for flag, value, why in rows)


def build_command(
    python: Sequence[str],
    *,
    checkpoint: Path,
    engine: Path,
    sizes: BuildSizes,
    precision: str,
    kv_precision: str,
    timing_cache_out: Path,
    timing_cache_in: Path | None = None,
    gathers_logits: bool = False,
) -> tuple[str, ...]:
    """All words, after those that start the interpreter (`Runtime.words`).

    `gathers_logits` keeps the logits of every position of a prompt, `[max_num_tokens, V]` float32
    more memory. `timing_cache_in` must exist.
    """
    words = [*python, "-m", MODULE]
    words += ["--checkpoint_dir", str(checkpoint), "--output_dir", str(engine)]
    words += ["--max_batch_size", str(sizes.max_batch_size)]
    words += ["--max_input_len", str(sizes.max_input_len)]
    words += ["--max_seq_len", str(sizes.max_seq_len)]
    words += ["--max_num_tokens", str(sizes.max_num_tokens)]
    # decoding, one token for each conversation, is what kernels are chosen for
    words += ["--opt_num_tokens", str(min(sizes.max_batch_size, sizes.max_num_tokens))]
    for choice in choices(precision, kv_precision):
        words += [choice.flag, choice.value]
    if gathers_logits:
        words.append("--gather_context_logits")
    if timing_cache_in is not None:
        words += ["--input_timing_cache", str(timing_cache_in)]
    words += ["--output_timing_cache", str(timing_cache_out)]
    return tuple(words)


def _switch(is_on: bool) -> str:
    return "enable" if is_on else "disable"
