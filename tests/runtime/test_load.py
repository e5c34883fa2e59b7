from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from edgekit.device import Device, Gpu, read_device
from edgekit.engine import Manifest, open_manifest
from edgekit.errors import BudgetError, EngineError, InputError
from edgekit.runtime import load
from edgekit.runtime.load import load_engine
from edgekit.runtime.room import require_room_to_load
from edgekit.runtime.sampling import Sampling
from edgekit.units import MIB

PLAN = {
    "weights_bytes": 10 * MIB, "workspace_bytes": 5 * MIB, "runtime_bytes": 1 * MIB,
    "kv_cache_bytes": 128 * MIB, "context_tokens": 128, "batch": 1,
}  # fmt: skip


class Backend:
    """Notes how it was asked to open an engine."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.is_closed = False

    def open(self, engine: Path, **options: Any) -> Backend:
        self.asked = {"engine": engine, **options}
        return self

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()
    monkeypatch.setattr(load, "find_backend", lambda _: made)
    return made


def write_engine(
    directory: Path, inner: tokenizers.Tokenizer, generation_config: dict[str, Any]
) -> Path:
    (directory / "tokenizer").mkdir()
    (directory / "backend").mkdir()
    inner.save(str(directory / "tokenizer" / "tokenizer.json"))
    (directory / "tokenizer" / "generation_config.json").write_text(json.dumps(generation_config))
    manifest = Manifest(
        model="tiny",
        checkpoint_sha256="",
        precision="fp16",
        kv_precision="fp16",
        profile="cpu",
        backend={"name": "onnxruntime", "version": "0"},
        context_tokens=128,
        batch=1,
        plan=PLAN,
        device={},
        build_key="",
    )
    manifest.sealed(directory).write(directory)
    return directory


@pytest.fixture
def engine(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> Path:
    return write_engine(tmp_path, byte_level, {"do_sample": True, "temperature": 0.6})


def test_the_backend_opens_its_own_directory(engine: Path, backend: Backend) -> None:
    load_engine(engine, threads=3, num_slots=2)
    assert backend.asked == {
        "engine": engine / "backend",
        "context_tokens": 128,
        "num_slots": 2,
        "threads": 3,
    }


def test_a_smaller_context_is_passed_on(engine: Path, backend: Backend) -> None:
    load_engine(engine, context_tokens=64)
    assert backend.asked["context_tokens"] == 64


def test_a_larger_context_than_built_is_refused(engine: Path, backend: Backend) -> None:
    with pytest.raises(InputError, match="context of 128 tokens, asked for 129"):
        load_engine(engine, context_tokens=129)
    assert backend.asked == {}


def test_sampling_is_what_the_checkpoint_recommends(engine: Path, backend: Backend) -> None:
    assert load_engine(engine).sampling == Sampling(temperature=0.6)


def test_leaving_the_block_closes_the_session(engine: Path, backend: Backend) -> None:
    with load_engine(engine) as loaded:
        assert loaded.manifest.model == "tiny"
        assert not backend.is_closed
    assert backend.is_closed


def test_a_damaged_tokenizer_is_found_before_the_weights_are_loaded(
    engine: Path, backend: Backend
) -> None:
    (engine / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        load_engine(engine)
    assert backend.asked == {}


def test_a_bad_recommended_sampling_is_an_engine_error(
    byte_level: tokenizers.Tokenizer, tmp_path: Path, backend: Backend
) -> None:
    config = {"do_sample": True, "temperature": "hot"}
    with pytest.raises(EngineError, match=r"generation_config\.json: temperature must be"):
        load_engine(write_engine(tmp_path, byte_level, config))


def test_a_directory_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not an engine directory"):
        load_engine(tmp_path)


def machine_with(mib: int) -> Device:
    """So much is left for an engine on the `cpu` profile, whose reserve is 512 MiB."""
    return replace(read_device(), available_bytes=(512 + mib) * MIB)


def test_what_does_not_fit_now_is_refused_before_it_is_loaded(
    engine: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 10 + 5 + 1 MiB, and 1 MiB of cache for each of 128 tokens
    monkeypatch.setattr(load, "read_device", lambda: machine_with(143))
    with pytest.raises(BudgetError, match=r"takes 144\.00 MiB with 128 tokens .* 143\.00 MiB"):
        load_engine(engine)
    assert backend.asked == {}
    monkeypatch.setattr(load, "read_device", lambda: machine_with(144))
    with load_engine(engine):
        pass
    # twice the cache for two conversations
    with pytest.raises(BudgetError, match=r"takes 272\.00 MiB"):
        load_engine(engine, num_slots=2)


def test_the_remedy_is_a_context_that_fits(engine: Path) -> None:
    manifest = open_manifest(engine)
    plan = {**PLAN, "kv_cache_bytes": 128 * MIB, "context_tokens": 4096}
    larger = replace(manifest, context_tokens=4096, plan=plan)
    # 84 MiB left for the cache, of which a token takes 1/32: 2688, in steps of 256: 2560
    with pytest.raises(BudgetError) as caught:
        require_room_to_load(larger, machine_with(100), context_tokens=4096, num_slots=1)
    assert caught.value.hint == "use `--context 2560`, or stop other programs"
    require_room_to_load(larger, machine_with(100), context_tokens=2560, num_slots=1)


def test_an_engine_of_a_processor_is_not_measured_against_a_gpu(engine: Path) -> None:
    lost = replace(open_manifest(engine), profile="my-laptop", device={})
    gpu = Gpu(index=0, name="NVIDIA GeForce GT 1030", sm=61, memory_bytes=2**31, free_bytes=1)
    machine = replace(machine_with(200), gpus=(gpu,))
    require_room_to_load(lost, machine, context_tokens=128, num_slots=1)
    with pytest.raises(BudgetError):
        require_room_to_load(lost, machine_with(100), context_tokens=128, num_slots=1)


def for_cards(engine: Path, **plan: Any) -> Manifest:
    """An engine of TensorRT-RTX with 128 tokens of context, for two cards."""
    cards = {"devices": ["rtx-3070", "rtx-4090"], **plan}
    return replace(
        open_manifest(engine),
        profile="rtx-3070",
        backend={"name": "tensorrt-rtx", "version": "0"},
        device={"capabilities": [86, 89]},
        plan={**PLAN, **cards},
    )


def card(name: str, mib: int) -> Device:
    sm, total = {"3070": (86, 8192), "4090": (89, 24_080)}[name]
    gpu = Gpu(
        index=0,
        name=f"NVIDIA GeForce RTX {name}",
        sm=sm,
        memory_bytes=total * MIB,
        free_bytes=mib * MIB,
    )
    return replace(read_device(), gpus=(gpu,))


def test_several_slots_do_without_the_weights_of_prompts(engine: Path) -> None:
    manifest = open_manifest(engine)
    # 10 MiB of weights, 4 of them for prompts, 1 of runtime, 5 of workspace, 1 MiB a token
    manifest = replace(manifest, plan={**PLAN, "weights": {"linears": 6 * MIB, "prompts": 4 * MIB}})
    for slots, needed in ((1, 10 + 6 + 64), (2, 6 + 6 + 128)):
        enough, less = machine_with(needed), machine_with(needed - 1)
        require_room_to_load(manifest, enough, context_tokens=64, num_slots=slots)
        with pytest.raises(BudgetError, match=f"takes {needed}.00 MiB"):
            require_room_to_load(manifest, less, context_tokens=64, num_slots=slots)


def test_an_engine_with_a_fixed_context_takes_its_memory_whatever_is_asked(engine: Path) -> None:
    manifest = for_cards(engine)
    require_room_to_load(manifest, card("3070", 144), context_tokens=16, num_slots=1)
    with pytest.raises(BudgetError, match="128 tokens"):
        require_room_to_load(manifest, card("3070", 143), context_tokens=16, num_slots=1)


def test_the_context_of_an_engine_is_changed_by_building_it_again(engine: Path) -> None:
    large = replace(
        for_cards(engine, context_tokens=4096, kv_cache_bytes=4096 * MIB), context_tokens=4096
    )
    with pytest.raises(BudgetError) as caught:
        require_room_to_load(large, card("3070", 2080), context_tokens=256, num_slots=1)
    assert caught.value.hint == "build it again with `--context 2048`, or stop other programs"


def test_an_engine_for_several_cards_is_measured_against_the_one_that_is_here(
    engine: Path,
) -> None:
    large = for_cards(engine, weights_bytes=12_000 * MIB)
    require_room_to_load(large, card("4090", 20_000), context_tokens=128, num_slots=1)
    with pytest.raises(BudgetError, match="GPU 0"):
        require_room_to_load(large, card("4090", 11_000), context_tokens=128, num_slots=1)


def test_the_gpu_that_is_weighed_is_the_one_that_will_be_used(
    engine: Path, byte_level: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choosing(Backend):
        def gpu_uuid(self, engine: Path) -> str | None:
            assert engine.name == "backend"
            return "GPU-second"

    for_cards(engine).write(engine)
    monkeypatch.setattr(load, "find_backend", lambda _: Choosing())
    [full] = card("3070", 100).gpus
    for free_bytes, is_refused in ((144 * MIB, False), (143 * MIB, True)):
        # NVML counts the full one first, CUDA takes the other
        second = replace(full, index=1, uuid="GPU-second", free_bytes=free_bytes)
        first = replace(full, uuid="GPU-first", free_bytes=0 if not is_refused else 2**33)
        device = replace(read_device(), gpus=(first, second))
        monkeypatch.setattr(load, "read_device", lambda device=device: device)
        if is_refused:
            with pytest.raises(BudgetError, match="GPU 1"):
                load_engine(engine)
        else:
            load_engine(engine)
