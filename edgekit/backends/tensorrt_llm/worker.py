"""TensorRT-LLM's LLM API behind a line protocol: `PYTHON worker.py`, in an interpreter of its own.

This file imports nothing of edgekit and runs on Python 3.10 and later. One JSON object a line, in
on stdin, out on what was stdout; all that libraries print goes to stderr. `-->` is sent to the
worker, `<--` by it. `id` is a number the parent chooses, never twice.

    <-- hello    protocol, pid, python          first, before anything is imported
    --> load     model, backend: "tensorrt" (an engine) | "pytorch" (a checkpoint),
                 context_tokens, kv_tokens, max_batch_size, max_num_tokens, chunked_prefill?,
                 gather_logits?, kv_dtype?, speculation?: {kind: "ngram", ...} (a checkpoint)
    <-- loading  step                           0 importing, 1 loading
    <-- ready    versions, device               or error: see below
    --> generate id, token_ids, sampling, max_new_tokens, stop_token_ids?
    <-- tokens   id, token_ids                  new ones only, any number of times
    <-- done     id, reason: "stop" | "length" | "cancelled" | ...     last of its id
    --> cancel   id                             done follows, unless the request has ended already
    --> score    id, token_ids, path, first     log-probabilities after each position from `first`
    <-- scores   id, path, shape, dtype         last of its id; the file is raw, little-endian
    <-- error    id?, kind: "memory" | "version" | "foreign" | "input" | "internal", message
                                                last of its id; without id: of load, or a bad line
    --> ping     <-- pong                       answered once loaded
    --> close                                   the process ends, as it does when stdin ends

A stop token ends the answer and is its last token, whatever the runtime says: engines leave the end
token out (`cpp/tensorrt_llm/kernels/samplingTopKKernels.cu`), with speculation more may follow it.

Names of TensorRT-LLM were read in its sources from 1.0 to 1.3.0rc, not run. In `tensorrt_llm/`:
`llmapi/llm.py` (`generate_async`), `llmapi/llm_args.py` (arguments of `LLM`), `sampling_params.py`,
`executor/result.py` (outputs, `abort`), `executor/executor.py`, `usage/usage_lib.py` (variables).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.backends import worker_wire as wire
else:  # edgekit is not installed where this runs
    _spec = spec_from_file_location("worker_wire", Path(__file__).parents[1] / "worker_wire.py")
    _spec.loader.exec_module(wire := module_from_spec(_spec))

RefusedError, LOADED_MARK = wire.RefusedError, wire.LOADED_MARK
PROTOCOL = 1
KV_SHARE = 0.95
"""Of what is free once loaded; the smaller of it and `kv_tokens` wins. 1 is refused, 0.9 the
default (`kvCacheManager.cpp`): this leaves the decision to the plan."""
_ENVIRONMENT = {"TLLM_WORKER_USE_SINGLE_PROCESS": "1", "TLLM_LOG_LEVEL": "INFO",
                "TRTLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
"""No second process that could outlive this one; nothing is reported (1.3) or downloaded."""
_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"}
WORDS = {
    "memory": wire.MEMORY_WORDS,
    "foreign": ("version tag does not match", "incompatible device", "expecting compute",
                "plan file is not compatible", "compiled on a different", "serializationcheck"),
}  # fmt: skip


def sampling_fields(sampling: dict[str, Any], limit: int, stop_ids: list[int]) -> dict[str, Any]:
    """Arguments of `SamplingParams`, nothing left to its defaults that would matter.

    Greedy is top_k 1 and no temperature, which must not be 0. Top_p is always given where it is
    not greedy: without top_k and top_p the runtime is greedy whatever the temperature. Without a
    seed its own is 0, so one is drawn. Without a tokenizer an end token must be given; -1 is none.
    """
    if unknown := sorted(set(sampling) - _SAMPLING):
        raise RefusedError("input", f"unknown sampling field: {', '.join(unknown)}")
    fields: dict[str, Any] = {
        "max_tokens": limit,  # its default is 32
        "end_id": stop_ids[0] if stop_ids else -1,
        "pad_id": 0,
        "stop_token_ids": stop_ids[1:] or None,
        "include_stop_str_in_output": True,
        "detokenize": False,
        "add_special_tokens": False,
    }
    if (penalty := sampling.get("repetition_penalty", 1.0)) != 1.0:
        fields["repetition_penalty"] = penalty
    temperature, top_p = sampling.get("temperature", 0.0), sampling.get("top_p", 1.0)
    top_k, seed = sampling.get("top_k", 0), sampling.get("seed")
    if temperature == 0 or top_p == 0 or top_k == 1:
        return {**fields, "top_k": 1}
    fields |= {"temperature": temperature, "top_p": top_p, "min_p": sampling.get("min_p") or None}
    fields["seed"] = random.SystemRandom().getrandbits(63) if seed is None else seed
    if top_k:
        fields["top_k"] = min(top_k, 1024)  # kernels of engines take no more
    return fields


class Server:
    """Requests of one loaded model."""

    def __init__(self, pipes: wire.Wire, options: dict[str, Any]) -> None:
        self._wire = pipes
        self._open: dict[int, Any] = {}
        """What the LLM API returned for every request not yet answered; None before that."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        pipes.send("loading", step=0)
        self._trt: Any = importlib.import_module("tensorrt_llm")
        pipes.send("loading", step=1)
        self._llm = _load(self._trt, options)

    async def run(self) -> None:
        """Answer until `close`."""
        post = asyncio.get_running_loop().call_soon_threadsafe
        self._wire.serve(lambda message: post(self._handle, message))
        os.write(2, f"{LOADED_MARK}\n".encode())
        self._wire.send("ready", **_machine())
        await self._closed.wait()
        left, self._open = self._open, {}  # what still comes of them is no answer
        for output in left.values():
            _abort(output)
        self._llm.shutdown()

    def _handle(self, message: dict[str, Any]) -> None:
        kind, number = message["type"], message.get("id")
        if kind == "ping":
            self._wire.send("pong")
        elif kind == "close":
            self._closed.set()
        elif kind == "cancel":
            if number in self._open:
                _abort(self._open.pop(number))
                self._wire.send("done", id=number, reason="cancelled")
        elif kind in ("generate", "score") and isinstance(number, int):
            self._open[number] = None
            self._tasks.add(task := asyncio.create_task(self._answer(number, message)))
            task.add_done_callback(self._tasks.discard)
        else:
            self._wire.fail(RefusedError("input", f"unknown message: {kind!r}"))

    async def _answer(self, number: int, message: dict[str, Any]) -> None:
        work = self._generate if message["type"] == "generate" else self._score
        try:
            if number in self._open:
                await work(number, message)
        except Exception as exc:
            if self._open.pop(number, self) is not self:
                self._wire.fail(exc, id=number)

    def _end(self, number: int, kind: str, **fields: Any) -> None:
        if self._open.pop(number, self) is not self:
            self._wire.send(kind, id=number, **fields)

    async def _generate(self, number: int, message: dict[str, Any]) -> None:
        limit, stop_ids = message["max_new_tokens"], message.get("stop_token_ids") or []
        fields = sampling_fields(message["sampling"], limit, stop_ids)
        params, count = self._trt.SamplingParams(**fields), 0
        output = self._llm.generate_async(message["token_ids"], params, streaming=True)
        self._open[number] = output
        async for result in output:
            if number not in self._open:
                continue  # it has ended: what still comes is read, so that nothing waits for it
            answer = result.outputs[0]
            new, reason = list(answer.token_ids[count:limit]), answer.finish_reason
            count += len(new)
            end = next((i for i, token_id in enumerate(new) if token_id in stop_ids), None)
            if end is not None:
                new, reason = new[: end + 1], "stop"
            elif reason == "stop" and stop_ids and count < limit:
                by = answer.stop_reason
                new.append(by if by in stop_ids else stop_ids[0])
            if new:
                self._wire.send("tokens", id=number, token_ids=new)
            if reason is not None:
                self._end(number, "done", reason=reason)
                if not result.finished:  # tokens may follow a stop token
                    _abort(output)
        self._end(number, "done", reason="length")

    async def _score(self, number: int, message: dict[str, Any]) -> None:
        """Log-probabilities `[T - first, V]`, float32: row i is of the token after `first + i`.

        A row is a request of one token, whose prefix is in the KV cache. `return_context_logits`
        gives all at once, but of an engine that was built to hold logits of `max_num_tokens` x V.
        """
        token_ids, fields, width = message["token_ids"], sampling_fields({}, 1, []), 0
        with Path(message["path"]).open("wb") as file:
            for end in range(message["first"] + 1, len(token_ids) + 1):
                params = self._trt.SamplingParams(**fields, return_generation_logits=True)
                output = self._llm.generate_async(token_ids[:end], params, streaming=False)
                self._open[number] = output
                await output.aresult()
                if number not in self._open:
                    return
                logits = output.outputs[0].generation_logits
                if logits is None:
                    raise RefusedError("input", "no logits came: load with gather_logits")
                scores = logits.reshape(1, -1).float().log_softmax(-1).cpu().numpy()
                file.write(scores.astype("<f4").tobytes())
                width = int(scores.shape[1])
        shape = [len(token_ids) - message["first"], width]
        self._end(number, "scores", path=message["path"], shape=shape, dtype="float32")


def _load(trt: Any, options: dict[str, Any]) -> Any:
    api: Any = importlib.import_module("tensorrt_llm.llmapi")
    is_engine, batch = options["backend"] == "tensorrt", options["max_batch_size"]
    try:
        where = "tensorrt_llm._tensorrt_engine" if is_engine else "tensorrt_llm"
        kind: Any = importlib.import_module(where).LLM
    except ImportError as exc:
        raise RefusedError("version", f"TensorRT-LLM {trt.__version__} has no engines") from exc
    in_parts = options.get("chunked_prefill", not is_engine)
    pool = {"max_tokens": options["kv_tokens"], "free_gpu_memory_fraction": KV_SHARE}
    fields = {"skip_tokenizer_init": True, "enable_chunked_prefill": in_parts,
              "max_batch_size": batch, "max_num_tokens": options["max_num_tokens"]}  # fmt: skip
    if is_engine:  # its other sizes are in it
        fields["fail_fast_on_attention_window_too_large"] = True
    else:
        pool |= {"dtype": options.get("kv_dtype", "auto"), "enable_block_reuse": in_parts,
                 "tokens_per_block": 32}  # fmt: skip
        # one graph, of as many conversations as there can be: each takes up to 200 MB
        graphs = api.CudaGraphConfig(batch_sizes=[batch], enable_padding=True)
        fields |= {"max_seq_len": options["context_tokens"], "dtype": "float16",
                   "cuda_graph_config": graphs, "max_beam_width": 1}  # fmt: skip
    if options.get("gather_logits"):
        fields["gather_generation_logits"] = True
    if speculation := dict(options.get("speculation") or {}):
        if is_engine or speculation.pop("kind") != "ngram":
            raise RefusedError("input", "drafts are the PyTorch backend's, by n-gram alone")
        fields["speculative_config"] = api.NGramDecodingConfig(**speculation)
        fields["disable_overlap_scheduler"] = True  # drafts follow from the last step's tokens
    return kind(options["model"], kv_cache_config=api.KvCacheConfig(**pool), **fields)


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {"versions": {"python": sys.version.split()[0]}, "device": {}}
    for name in ("tensorrt_llm", "tensorrt", "torch"):
        with contextlib.suppress(Exception):
            found["versions"][name] = str(importlib.import_module(name).__version__)
    with contextlib.suppress(Exception):
        cuda = importlib.import_module("torch").cuda
        major, minor = cuda.get_device_capability(0)
        found["device"] = {"gpu": cuda.get_device_name(0), "sm": 10 * major + minor}
    return found


def _abort(output: Any) -> None:
    with contextlib.suppress(Exception):  # it has ended, or was not begun
        output.abort()


def main() -> None:
    """Load what is asked for, answer."""
    wire.run(
        lambda pipes, options: asyncio.run(Server(pipes, options).run()),
        protocol=PROTOCOL,
        words=WORDS,
        environment=_ENVIRONMENT,
        here=Path(__file__).resolve().parent,
    )


if __name__ == "__main__":
    main()
