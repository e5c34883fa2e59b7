"""Edge-LLM's runtime behind a line protocol: `PYTHON worker.py`, in an interpreter of its own.

This file imports nothing of edgekit and runs on Python 3.10 and later; `worker_wire.py` has what
every worker does. `-->` is sent to the worker, `<--` by it. `id` is a number the parent chooses,
never twice.

    <-- hello    protocol, pid, python          first, before anything is imported
    --> load     engine, checkpoint ("" where the engine holds its weights), max_batch_size
    <-- loading  step                           0 importing, 1 loading
    <-- ready    versions, device               or error: see below
    --> generate id, text, sampling, max_new_tokens, stop_token_ids, banned_ids, top
    <-- tokens   id, token_ids, top             new ones only, any number of times; `top`: of each,
                                                [id, log-probability] of the likeliest
    <-- done     id, reason: "stop" | "length" | "cancelled", prompt_tokens   last of its id
    --> cancel   id                             done follows, unless the request has ended already
    <-- error    id?, kind: "memory" | "version" | "foreign" | "input" | "internal", message
                                                last of its id; without id: of load, or a bad line
    --> ping     <-- pong                       answered once loaded
    --> close                                   the process ends, as it does when stdin ends

The runtime takes text, no token ids, and has its own tokenizer: a prompt is sent as it is, with no
template of the runtime's around it. How many tokens it saw is in `done`; none is an error, since an
engine whose tokenizer finds nothing answers fluently to nothing (NVIDIA/TensorRT-Edge-LLM#164).

A stop token ends the answer and is its last token, whether the runtime gives it or not.

Names of Edge-LLM are those of the wheel 0.11.0: `tensorrt_edgellm/runtime.py`,
`experimental/server/runtime/engine.py`, and the bindings in `experimental/pybind` of its sources.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.backends import worker_wire as wire
else:  # edgekit is not installed where this runs
    _spec = spec_from_file_location("worker_wire", Path(__file__).parents[1] / "worker_wire.py")
    _spec.loader.exec_module(wire := module_from_spec(_spec))

PROTOCOL = 1
_ENVIRONMENT = {"EDGELLM_LOG_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"}
_ABSENT = {"min_p": (0.0, None), "repetition_penalty": (1.0, None)}
"""Fields that Edge-LLM's sampler has not, and the values that mean nothing."""
_LEAST_TEMPERATURE = 1e-3
"""Below it the sampler is greedy (`cpp/sampler/sampling.h`)."""
_MOST_TOP_P = 0.999998
"""With neither top_k nor top_p the sampler refuses, or is greedy at temperature 1: it takes
1 - 1e-6 and more for no top_p (`shouldUseNonGreedySampling`)."""
_BANNED_BIAS = -100.0
"""What is added to a logit that must not win; the least that its server allows."""
_POLL_MS = 100
_RETRY_S = 0.01
_REASONS = {"END_ID": "stop", "STOP_WORDS": "stop", "LENGTH": "length", "CANCELLED": "cancelled"}
WORDS = {
    "memory": (*wire.MEMORY_WORDS, "failed to allocate", "nvmapmemalloc"),
    "foreign": ("failed to deserialize", "version tag does not match", "incompatible device",
                "expecting compute", "plan file is not compatible", "compiled on a different",
                "serializationcheck", "checkpoint does not match build provider",
                "no checkpoint identity", "no identity for its"),
    "input": ("edgellm_input_too_long",),
    "version": ("nativeselectionerror", "nativedetectionerror", "nativeloaderror",
                "tensorrtdependencyerror", "nativemanifest"),
}  # fmt: skip


def sampling_fields(sampling: dict[str, Any]) -> dict[str, Any]:
    """`temperature`, `top_k`, `top_p` and `seed` for a request; nothing is left to defaults.

    What the sampler does not have is refused, for it would be ignored. Without a seed one is drawn:
    the runtime's own is always the same.
    """
    if unknown := sorted(set(sampling) - _SAMPLING):
        raise wire.RefusedError("input", f"unknown sampling field: {', '.join(unknown)}")
    for name, neutral in _ABSENT.items():
        if sampling.get(name) not in neutral:
            raise wire.RefusedError("input", f"it has no {name}: {sampling[name]}")
    temperature, top_p = sampling.get("temperature", 0.0), sampling.get("top_p", 1.0)
    top_k, seed = sampling.get("top_k", 0), sampling.get("seed")
    seed = random.SystemRandom().getrandbits(63) if seed is None else seed
    if temperature < _LEAST_TEMPERATURE or top_p == 0 or top_k == 1:
        return {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "seed": seed}
    if not top_k:
        top_p = min(top_p, _MOST_TOP_P)
    return {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}


def make_request(native: Any, channel: Any, message: dict[str, Any]) -> Any:
    """A request of Edge-LLM for the text as it is. `native` is its module of bindings."""
    fields = sampling_fields(message["sampling"])
    item = native.Request(messages=[native.create_text_message("user", message["text"])])
    item.sampling_seed = fields["seed"]
    item.logit_bias = dict.fromkeys(message.get("banned_ids") or [], _BANNED_BIAS)
    request = native.LLMGenerationRequest()
    request.requests, request.stream_channels = [item], [channel]
    request.temperature, request.top_p = fields["temperature"], fields["top_p"]
    request.top_k = fields["top_k"]
    request.max_generate_length = message["max_new_tokens"]
    request.apply_chat_template = request.add_generation_prompt = False
    request.enable_thinking = False  # the template that it would steer is not used
    request.disable_spec_decode = True
    request.skip_special_tokens = False
    request.num_logprobs = message.get("top") or 0
    return request


class OneByOne:
    """`LLMRuntime`: one request at a time, in the order in which they came."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._thread = ThreadPoolExecutor(1)

    def submit(self, request: Any, channel: Any) -> Any:
        """What has `done` and `result`."""
        return self._thread.submit(self._run, request, channel)

    def _run(self, request: Any, channel: Any) -> None:
        if not channel.is_cancelled():  # while it waited
            self._runtime.handle_request(request)

    def count(self, request: Any) -> int:
        """Tokens of its prompt."""
        return int(self._runtime.count_prompt_tokens(request)[0])


class Together:
    """`RequestEngine`: several requests share the passes of the engine."""

    def __init__(self, engine: Any, busy: type[Exception]) -> None:
        self._engine, self._busy = engine, busy

    def submit(self, request: Any, channel: Any) -> Any:
        """What has `done` and `result`. Waits while the engine's queue is full."""
        while not channel.is_cancelled():
            try:
                return _Outcome(self._engine.submit(request))
            except self._busy:
                time.sleep(_RETRY_S)
        return None

    def count(self, request: Any) -> int:
        """Tokens of its prompt."""
        return int(self._engine.count_prompt_tokens(request)[0])


class _Outcome:
    """A `RequestHandle` with the names of a `Future`."""

    def __init__(self, handle: Any) -> None:
        self.done, self.result = handle.ready, handle.get


class Server:
    """Requests of one loaded engine; each has a thread that reads its channel."""

    def __init__(self, pipes: wire.Wire, options: dict[str, Any]) -> None:
        self._wire = pipes
        self._open: dict[int, Any] = {}
        """The channel of every request not yet answered; None before there is one."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        pipes.send("loading", step=0)
        self._native = _load_native()
        pipes.send("loading", step=1)
        self._engine = _load_engine(self._native, options)

    def run(self) -> None:
        """Answer until `close`."""
        self._wire.serve(self._handle)
        os.write(2, f"{wire.LOADED_MARK}\n".encode())
        self._wire.send("ready", **_machine())
        self._closed.wait()
        with self._lock:
            left, self._open = self._open, {}  # what still comes of them is no answer
        for channel in left.values():
            _cancel(channel)

    def _handle(self, message: dict[str, Any]) -> None:
        kind, number = message["type"], message.get("id")
        if kind == "ping":
            self._wire.send("pong")
        elif kind == "close":
            self._closed.set()
        elif kind == "cancel" and isinstance(number, int):
            self._end(number, "done", reason="cancelled", prompt_tokens=None)
        elif kind == "generate" and isinstance(number, int):
            with self._lock:
                self._open[number] = None
            threading.Thread(target=self._answer, args=(number, message), daemon=True).start()
        else:
            self._wire.fail(wire.RefusedError("input", f"unknown message: {kind!r}"))

    def _answer(self, number: int, message: dict[str, Any]) -> None:
        try:
            channel = self._native.StreamChannel.create()
            channel.set_skip_special_tokens(False)
            with self._lock:
                if number not in self._open:
                    return
                self._open[number] = channel
            request = make_request(self._native, channel, message)
            if not (counted := self._engine.count(request)):
                raise wire.RefusedError("internal", "its tokenizer finds no token in the prompt")
            outcome = self._engine.submit(request, channel)
            if outcome is not None:
                reason = self._stream(number, channel, outcome, message)
                self._end(number, "done", reason=reason, prompt_tokens=counted)
        except Exception as exc:
            with self._lock:
                is_open = self._open.pop(number, self) is not self
            if is_open:
                self._wire.fail(exc, id=number)

    def _end(self, number: int, kind: str, **fields: Any) -> None:
        """Send its last message, unless it was sent; nothing more is wanted of its channel."""
        with self._lock:
            channel = self._open.pop(number, self)
        if channel is not self:
            if fields["reason"] == "cancelled":
                _cancel(channel)
            self._wire.send(kind, id=number, **fields)

    def _stream(self, number: int, channel: Any, outcome: Any, message: dict[str, Any]) -> str:
        """Send tokens as they come; returns why there are no more."""
        limit, stop_ids = message["max_new_tokens"], message.get("stop_token_ids") or []
        count, reason = 0, None
        while reason is None:
            chunk = _next_chunk(channel, outcome)
            if chunk is None:
                outcome.result()  # raises what kept it from ending as it should
                raise RuntimeError("the answer ended without a reason")
            if not chunk.prompt_token_count:
                raise wire.RefusedError("internal", "it has read no token of the prompt")
            new = list(chunk.token_ids)[: limit - count]
            top = [[[e.token_id, e.logprob] for e in step] for step in chunk.logprobs][: len(new)]
            end = next((i for i, token_id in enumerate(new) if token_id in stop_ids), None)
            count += len(new)
            if end is not None:
                new, top, reason = new[: end + 1], top[: end + 1], "stop"
            elif chunk.finished:
                reason = self._reason(chunk, outcome)
                if reason == "stop" and stop_ids and count < limit:
                    new.append(stop_ids[0])
            elif count >= limit:
                reason = "length"
            if new and self._is_open(number):
                self._wire.send("tokens", id=number, token_ids=new, top=top)
            if reason is not None and not chunk.finished:
                channel.cancel()
        return reason

    def _reason(self, chunk: Any, outcome: Any) -> str:
        if chunk.reason.name not in _REASONS:
            outcome.result()
            raise RuntimeError(f"the answer ended as {chunk.reason.name}")
        return _REASONS[chunk.reason.name]

    def _is_open(self, number: int) -> bool:
        with self._lock:
            return number in self._open


def _next_chunk(channel: Any, outcome: Any) -> Any:
    """Waits for one; None when no more come. A request that never reached the engine leaves its
    channel as it was, so its outcome is looked at, too, and the channel once more after that."""
    while True:
        chunk = channel.wait_pop(timeout_ms=_POLL_MS)
        if chunk is not None:
            return chunk
        if channel.is_finished() or channel.is_cancelled() or outcome.done():
            return channel.try_pop()


def _cancel(channel: Any) -> None:
    if channel is not None:
        with contextlib.suppress(Exception):  # it has ended
            channel.cancel()


def _load_native() -> Any:
    """The module of bindings that fits this machine; Edge-LLM's own errors name their class."""
    try:
        return importlib.import_module("tensorrt_edgellm.runtime").load()
    except Exception as exc:
        if "NativeRuntimeError" in {kind.__name__ for kind in type(exc).__mro__}:
            raise wire.RefusedError("version", f"{type(exc).__name__}: {exc}") from exc
        raise


def _load_engine(native: Any, options: dict[str, Any]) -> OneByOne | Together:
    where = {
        "engine_dir": options["engine"],
        "multimodal_engine_dir": "",
        "lora_weights_map": {},
        "checkpoint_dir": options["checkpoint"],
        "context_cache_config": native.ContextCacheConfig(),
    }
    if options["max_batch_size"] > 1:
        engine = native.RequestEngine(**where, max_batch_size=options["max_batch_size"])
        return Together(engine, native.SubmitError)
    runtime = native.LLMRuntime(**where)
    runtime.capture_decoding_cuda_graph()
    return OneByOne(runtime)


def _machine() -> dict[str, Any]:
    versions = {"python": sys.version.split()[0]}
    for name in ("tensorrt-edgellm", "tensorrt"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"versions": versions, "device": {}}


def main() -> None:
    """Load what is asked for, answer."""
    wire.run(
        lambda pipes, options: Server(pipes, options).run(),
        protocol=PROTOCOL,
        words=WORDS,
        environment=_ENVIRONMENT,
        here=Path(__file__).resolve().parent,
    )


if __name__ == "__main__":
    main()
