"""The checkpoint as a torch model: loading it, and asking it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import Checkpoint
from edgekit.device import read_device
from edgekit.errors import BudgetError, InputError
from edgekit.profile import Storage
from edgekit.progress import Progress
from edgekit.steps import BF16_FACTOR, FP32_FACTOR, GPU_FACTOR
from edgekit.units import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROMPTS_AT_ONCE = 4


def load_tokenizer(path: Path) -> Any:
    """transformers' tokenizer of a checkpoint directory. Raises `InputError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # whatever transformers raises on a damaged tokenizer
        raise InputError(f"transformers cannot read the tokenizer in {path}: {exc}") from exc


def load_model(checkpoint: Checkpoint) -> Any:
    """The model in fp32 where that fits into memory, else in bf16; on the GPU if it fits there."""
    import torch
    from transformers import AutoModelForCausalLM

    params = checkpoint.spec.num_params
    available = read_device().available_bytes
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    is_wide = params * 4 * FP32_FACTOR < available
    if params * 4 * GPU_FACTOR >= free > params * 2 * GPU_FACTOR:
        is_wide = False  # 16 bits on the GPU rather than 32 beside it
    dtype, bits = (torch.float32, 4) if is_wide else (torch.bfloat16, 2)
    if params * bits * BF16_FACTOR > available:
        raise BudgetError(
            f"quantizing holds the model in memory: {format_bytes(params * bits)} needed, "
            f"{format_bytes(available)} available",
            hint="quantize on a larger machine and copy the checkpoint here",
        )
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="sdpa",
    ).eval()
    if params * bits * GPU_FACTOR < free:
        model = model.cuda()
    return model


def untie_head(model: Any) -> None:
    """Give a tied head weights of its own: quantizing it leaves the embedding as it is."""
    import torch

    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is table.weight:
        head.weight = torch.nn.Parameter(table.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def round_tables(model: Any, storage: Storage) -> None:
    """Give embedding and head the values that the engine will hold, where it has them at 8 bits.

    So the simulation is of the whole engine, and calibration meets what the layers will. Rounding
    once more, when the graph is written, finds the same codes.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    head_bits = storage.embedding_bits if storage.is_head_calibrated else storage.head_bits
    if head_bits != storage.embedding_bits:
        untie_head(model)
    if storage.embedding_bits == 8:
        _round_to_8_bits(table.weight, storage.head_group_size)
    is_own = head.weight is not table.weight and not storage.is_head_calibrated
    if is_own and head_bits == 8:
        _round_to_8_bits(head.weight, storage.head_group_size)


def _round_to_8_bits(weight: Any, group: int | None) -> None:
    """In place, symmetric, a scale for each group of a row: as `export.weights.round_to_int`."""
    import torch

    width = weight.shape[1]
    sizes = [width] if group is None else [group, 32, 16]
    size = next((size for size in sizes if width % size == 0), None)
    if size is None:
        return  # the export refuses such a table
    with torch.no_grad():
        for rows in weight.split(4096):
            grouped = rows.float().reshape(len(rows), -1, size)
            scales = grouped.abs().amax(dim=2, keepdim=True) / 127
            scales[scales == 0] = 1
            rows.copy_(((grouped / scales).round() * scales).reshape(rows.shape))


def is_quantized(layer: Any) -> bool:
    """Whether ModelOpt quantizes the weights of `layer`."""
    quantizer = getattr(layer, "weight_quantizer", None)
    return quantizer is not None and bool(quantizer.is_enabled)


def ask_in_order(
    model: Any, prompts: Sequence[Sequence[int]], report: Progress, step: str
) -> Callable[[Sequence[int], int], NDArray[np.float32]]:
    """The model as a function for `ask`, which goes through `prompts` in order.

    Prompts run a few at a time: simulated quantization rounds every weight again in each pass.
    They are filled up at the end, which a causal model does not see.
    """
    import torch

    def batches() -> Iterator[tuple[Sequence[int], Any]]:
        report(step, 0, len(prompts))
        for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
            group = [list(p[:-1]) for p in prompts[first : first + _PROMPTS_AT_ONCE]]
            longest = max(map(len, group))
            ids = torch.tensor([p + [p[-1]] * (longest - len(p)) for p in group])
            with torch.inference_mode():
                hidden = model.model(ids.to(model.device), use_cache=False).last_hidden_state
            report(step, first + len(group), len(prompts))
            yield from zip(group, hidden, strict=True)

    waiting = batches()

    def run(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        expected, hidden = next(waiting)
        if list(ids) != expected:
            raise ValueError("prompts are asked in order")
        with torch.inference_mode():
            logits = model.get_output_embeddings()(hidden[len(ids) - count : len(ids)])
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    return run


def greedy_answer(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """At most `tokens` token ids, always the likeliest."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([list(prompt)], device=model.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            # the checkpoint's own generation settings would make it another search
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            num_beams=1,
            pad_token_id=0,
        )
    return [int(i) for i in out[0, len(prompt) :]]


def cache_ranges(model: Any, samples: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """The largest absolute `key` and `value` in each layer's cache over `samples`, keys rotated."""
    import torch

    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for sample in samples:
            ids = torch.tensor([list(sample)], device=model.device)
            layers = model.model(ids, use_cache=True).past_key_values.layers
            for kind, values in (
                ("key", [layer.keys for layer in layers]),
                ("value", [layer.values for layer in layers]),
            ):
                largest = [float(value.abs().max()) for value in values]
                before = found.get(kind, [0.0] * len(largest))
                found[kind] = [max(pair) for pair in zip(before, largest, strict=True)]
    return found
