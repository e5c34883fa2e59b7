"""The quantize step: load, record answers, quantize, record again, export."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekit.checkpoint import Checkpoint
from edgekit.checkpoint.tokenizer_files import copy_tokenizer
from edgekit.errors import (
    BackendError,
    storage_errors,
)
from edgekit.footprint import kept_layers
from edgekit.models import find_convention
from edgekit.precision import Precision
from edgekit.profile import Storage
from edgekit.progress import Progress, no_progress
from edgekit.quantize.blocks import blocks_on_processor
from edgekit.quantize.calibration import (
    DEFAULT_TOKENS,
    Calibration,
    chat_ids,
    read_calibration,
    read_heldout,
)
from edgekit.quantize.model import (
    ask_in_order,
    cache_ranges,
    greedy_answer,
    is_quantized,
    load_model,
    load_tokenizer,
    round_tables,
    untie_head,
)
from edgekit.quantize.recipe import (
    ALPHA_STEPS,
    SCALE_SEARCH,
    Recipe,
    is_awq,
    modelopt_config,
    required_versions,
)
from edgekit.quantize.scales import fold_scales, own_scales
from edgekit.quantize.zero_points import NAME as ZERO_POINT_SEARCH
from edgekit.quantize.zero_points import say_zero_points, search_zero_points, take_off_biases
from edgekit.reference import (
    CACHE_RANGES_FILE,
    FIRST_POSITION,
    KNOWN_PROMPT,
    KNOWN_TOKENS,
    REFERENCE_FILE,
    SAMPLE_TOKENS,
    Reference,
    ask,
)
from edgekit.scratch import link_or_copy


def quantize_checkpoint(
    checkpoint: Checkpoint,
    precision: Precision,
    out: Path,
    *,
    group_size: int | None,
    includes_head: bool = False,
    storage: Storage | None = None,
    calibration: Path | None = None,
    calibration_tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    checkpoint_sha256: str = "",
    target_backend: str = "",
    report: Progress = no_progress,
) -> None:
    """Write the quantized checkpoint into the existing directory `out`.

    With `includes_head` the head is quantized as the linear layers are; a tied one is first parted
    from the embedding, which stays as it is. `storage` says how the engine will hold both tables:
    where it rounds them, they are rounded before anything but the original is measured; and whether
    weights have zero points.
    `target_backend` names one whose layers multiply by input scales of their own: none is averaged
    or folded, and the checkpoint is for it alone. The same
    inputs and seed on the same machine give the same files. Raises `InputError` for bad
    calibration, `BudgetError` when the model does not fit into memory, `BackendError` when ModelOpt
    fails, `MissingBackendError` without the `build` extra.
    """
    versions = required_versions()
    import torch

    torch.manual_seed(seed)
    with _quiet(), storage_errors(out):
        tokenizer = load_tokenizer(checkpoint.path)
        found = find_convention(checkpoint.name, str(getattr(tokenizer, "chat_template", None)))
        convention = found[0] if found else None
        texts = read_calibration(tokenizer, convention, path=calibration, tokens=calibration_tokens)
        report("load", 0, 1)
        model = load_model(checkpoint)
        report("load", 1, 1)
        prompts = [ids[:SAMPLE_TOKENS] for ids in read_heldout(tokenizer, convention)]
        prompts = [p for p in prompts if len(p) > FIRST_POSITION + 1]
        known = chat_ids(
            tokenizer, [{"role": "user", "content": KNOWN_PROMPT}], add_generation_prompt=True
        )
        before = ask(ask_in_order(model, prompts, report, "ask the checkpoint"), prompts)
        answer = greedy_answer(model, known, KNOWN_TOKENS)
        if includes_head:
            untie_head(model)
        if storage is not None:
            round_tables(model, storage)
        config = None
        kept = () if storage is None else kept_layers(checkpoint.spec, storage)
        if precision.modelopt_config is not None:
            config = modelopt_config(
                precision,
                group_size,
                includes_head=includes_head,
                kept=kept,
            )
        shares = not target_backend
        zero_points = storage is not None and storage.has_zero_points and is_awq(precision)
        algorithm = _quantize(
            model,
            precision,
            group_size,
            config,
            texts,
            report,
            shares_scales=shares,
            zero_points=zero_points,
        )
        after = before
        if precision.modelopt_config is not None:
            simulate = ask_in_order(model, prompts, report, "ask the quantized model")
            with _float_activations(model), blocks_on_processor(model):
                after = ask(simulate, prompts, top_ids=before.top_ids)
        import numpy as np

        Reference(
            prompts=tuple(tuple(p) for p in prompts),
            first_position=FIRST_POSITION,
            top_ids=before.top_ids,
            original=before.log_probs.astype(np.float16),
            simulated=after.log_probs.astype(np.float16),
            original_next=before.next,
            simulated_next=after.next,
            known_prompt=tuple(known),
            known_answer=tuple(answer),
        ).save(out / REFERENCE_FILE)
        with blocks_on_processor(model):
            ranges = cache_ranges(model, [*texts.samples])
        (out / CACHE_RANGES_FILE).write_text(json.dumps(ranges) + "\n", encoding="utf-8")
        with contextlib.nullcontext() if shares else own_scales():
            _export(model, checkpoint, precision, out, report)
    Recipe(
        precision=precision.name,
        group_size=group_size,
        includes_head=includes_head,
        calibration_source=texts.source,
        calibration_sha256=texts.sha256,
        calibration_samples=len(texts.samples),
        calibration_tokens=texts.num_tokens,
        seed=seed,
        algorithm=algorithm,
        versions=versions,
        checkpoint_sha256=checkpoint_sha256,
        target_backend=target_backend,
        kept_layers=kept,
    ).write(out)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' chatter off the terminal: they print, warn and draw bars of their own."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        yield


def _quantize(
    model: Any,
    precision: Precision,
    group_size: int | None,
    config: dict[str, Any] | None,
    texts: Calibration,
    report: Progress,
    *,
    shares_scales: bool = True,
    zero_points: bool = False,
) -> str:
    """Quantize `model` in place; returns the names of the algorithms that ran."""
    if config is None:
        return "none"
    import modelopt.torch.quantization as mtq

    method = config["algorithm"]
    name = str(method["method"] if isinstance(method, dict) else method)
    try:
        passes = [1]
        if is_awq(precision):
            passes += [ALPHA_STEPS + 1, 1] if zero_points else [ALPHA_STEPS + 1, 1, 1]
        loop = _ForwardLoop(model, texts, report, passes)
        mtq.quantize(model, config, loop)
        if shares_scales:
            fold_scales(model)
        if zero_points:
            search_zero_points(model, loop, group_size or 0, report)
            name += f"+{ZERO_POINT_SEARCH}"
        elif is_awq(precision):
            from modelopt.torch.quantization.model_calib import local_hessian_calibrate

            local_hessian_calibrate(
                model, loop, fp8_scale_sweep=False, block_size=group_size or 0, **SCALE_SEARCH
            )
            name += "+local_hessian"
        if not zero_points:  # whose search came after the last pass
            loop.finish()
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as exc:
        raise BackendError(f"ModelOpt failed at {precision.name}: {exc}") from exc
    return name


@contextlib.contextmanager
def _float_activations(model: Any) -> Iterator[None]:
    """Simulate quantized weights alone.

    W8A8 kernels scale activations by what they meet in each call, ModelOpt by what it met in
    calibration: comparing an engine with the latter would hide mistakes behind that difference.
    """
    active = [
        module
        for name, module in model.named_modules()
        if name.endswith("input_quantizer") and module.is_enabled
    ]
    for quantizer in active:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in active:
            quantizer.enable()


class _ForwardLoop:
    """Runs the calibration texts through the model as often as ModelOpt asks, with progress.

    AWQ's second pass tries every exponent in every layer and takes about `ALPHA_STEPS` times as
    long as a plain one: the passes are weighted so that the time left is right from the start.
    """

    def __init__(
        self, model: Any, texts: Calibration, report: Progress, passes: Sequence[int]
    ) -> None:
        self._texts = texts
        self._report = report
        self._weights = [*passes]
        self._pass = 0
        self._done = 0

    @property
    def _total(self) -> int:
        return sum(self._weights) * self._texts.num_tokens

    def __call__(self, model: Any) -> None:
        import torch

        if self._pass >= len(self._weights):
            self._weights.append(1)
        with torch.inference_mode():
            for sample in self._texts.samples:
                ids = torch.tensor([sample], device=model.device)
                model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
                self._done += len(sample) * self._weights[self._pass]
                self._report("quantize", self._done, self._total)
        self._pass += 1

    def finish(self) -> None:
        """Report completion, whatever the number of passes was."""
        self._report("quantize", self._total, self._total)


def _export(
    model: Any, checkpoint: Checkpoint, precision: Precision, out: Path, report: Progress
) -> None:
    report("write", 0, 1)
    if precision.modelopt_config is None:
        for path in sorted({info.path for info in checkpoint.tensors.values()}):
            link_or_copy(path, out / path.name)
        for name in ("config.json", "model.safetensors.index.json"):
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, out / name)
    else:
        import torch
        from modelopt.torch.export import export_hf_checkpoint

        # tables that are not quantized: fp16 holds what they came as; the export runs
        # the model once, which the hooks keep in one type
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        table.to(torch.float16).register_forward_hook(lambda _m, _i, o: o.to(model.dtype))
        if not is_quantized(head):
            head.to(torch.float16).register_forward_pre_hook(lambda _m, i: (i[0].half(),))
        has_zero_points = take_off_biases(model)
        export_hf_checkpoint(model, export_dir=out)
        if has_zero_points:
            say_zero_points(out)
    copy_tokenizer(checkpoint.path, out)
    report("write", 1, 1)
