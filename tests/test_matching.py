from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from edgekit.device import Device, Gpu, Jetson
from edgekit.errors import InputError
from edgekit.matching import is_gpu, matching_profile, profile_of_gpu
from edgekit.profile import Profile, Storage, list_profiles, read_profile
from edgekit.units import GIB, MIB

SHIPPED = [read_profile(path) for path in list_profiles().values()]
ROWS = MappingProxyType({name: Storage(linear_bits=16) for name in ("int4_awq", "int8", "fp16")})


def card(name: str, *, sm: int, gib: float | None, gpu: str) -> Profile:
    return Profile(
        name=name,
        summary=name,
        backends=("tensorrt-llm", "onnxruntime"),
        precisions=("int4_awq", "int8", "fp16"),
        storage=ROWS,
        refused=MappingProxyType({"fp8": "too old"}),
        sm=sm,
        gpu_names=(gpu,),
        memory_bytes=None if gib is None else round(gib * GIB),
    )


def machine(*gpus: Gpu, jetson: Jetson | None = None, gib: float = 64) -> Device:
    memory = round(gib * GIB)
    return Device(
        cpu="c", cores=1, memory_bytes=memory, available_bytes=memory, gpus=gpus, jetson=jetson
    )


def gpu(name: str, gib: float | None, sm: int | None = 86) -> Gpu:
    memory = None if gib is None else round(gib * GIB)
    return Gpu(index=0, name=name, sm=sm, memory_bytes=memory)


@pytest.mark.parametrize(
    ("device", "profile"),
    [
        ("rtx-3070", "rtx-3070"),
        ("rtx-4090", "rtx-4090"),
        ("two-gpus", "rtx-5090"),
        ("agx-orin-jetpack-6", "jetson-orin"),
        ("agx-orin-jetpack-7", "jetson-orin"),
        ("agx-thor-jetpack-7", "jetson-thor"),
        ("driver-without-gpu", None),
        ("container", None),
    ],
)
def test_a_recorded_device_has_its_profile(
    recorded: Callable[[str], Device], device: str, profile: str | None
) -> None:
    found = matching_profile(recorded(device), SHIPPED)
    assert (None if found is None else found.name) == profile


@pytest.mark.parametrize(("mib", "name"), [(10240, "rtx-3080-10gb"), (12288, "rtx-3080-12gb")])
def test_cards_of_one_name_are_told_apart_by_memory(mib: int, name: str) -> None:
    found = Gpu(index=0, name="NVIDIA GeForce RTX 3080", sm=86, memory_bytes=mib * MIB)
    profile = matching_profile(machine(found), SHIPPED)
    assert profile is not None
    assert profile.name == name


@pytest.mark.parametrize(
    ("name", "gib", "matches"),
    [
        ("NVIDIA GeForce RTX 3070", 8, True),
        ("GeForce RTX 3070", 8, True),  # drivers before 470
        ("NVIDIA GeForce RTX 3070", None, True),
        ("NVIDIA GeForce RTX 3070", 16, False),  # with other memory chips
        ("NVIDIA GeForce RTX 3070 Laptop GPU", 8, False),
        ("NVIDIA GeForce RTX 3070 Ti", 8, False),
    ],
)
def test_a_card_is_its_name_and_its_memory(name: str, gib: float | None, *, matches: bool) -> None:
    profile = card("rtx-3070", sm=86, gib=7.75, gpu="NVIDIA GeForce RTX 3070")
    assert is_gpu(profile, gpu(name, gib)) is matches


def test_the_first_gpu_with_a_profile_counts() -> None:
    small = gpu("NVIDIA GeForce MX450", 2, 75)
    large = replace(gpu("NVIDIA GeForce RTX 4090", 24, 89), index=1)
    found = matching_profile(machine(small, large), SHIPPED)
    assert found is not None
    assert found.name == "rtx-4090"


@pytest.mark.parametrize("gib", [30, 7.4])
def test_a_board_with_other_memory_is_another_board(gib: float) -> None:
    jetson = Jetson(board="NVIDIA Jetson AGX Orin Developer Kit")
    assert matching_profile(machine(jetson=jetson, gib=gib), SHIPPED) is None


def test_an_unknown_board_has_no_profile() -> None:
    for board in (None, "Lanner EAI-I233"):
        assert matching_profile(machine(jetson=Jetson(board=board)), SHIPPED) is None


def test_a_card_without_a_profile_gets_that_of_its_architecture_and_its_own_figures() -> None:
    found = replace(gpu("NVIDIA GeForce RTX 3060", 12), bandwidth_bytes_per_s=360_048_000_000)
    profile = profile_of_gpu(found)
    base = next(p for p in SHIPPED if p.name == "rtx-3080-12gb")
    assert profile.name == "rtx-3060-12gb"
    assert profile.summary == (
        "NVIDIA GeForce RTX 3060, 12.00 GiB, 360 GB/s from bus width and memory clock; "
        "otherwise as `rtx-3080-12gb`"
    )
    assert (profile.memory_bytes, profile.bandwidth_bytes_per_s) == (12 * GIB, 360_048_000_000)
    for same in ("backends", "precisions", "storage", "kv", "refused", "desktop_bytes"):
        assert getattr(profile, same) == getattr(base, same)
    assert is_gpu(profile, found)


def test_what_the_driver_does_not_say_stays_unknown() -> None:
    profile = profile_of_gpu(gpu("NVIDIA RTX A4000", None))
    assert (profile.name, profile.memory_bytes) == ("rtx-a4000", None)
    assert profile.bandwidth_bytes_per_s is None
    assert "memory unknown, bandwidth unknown" in profile.summary


def test_an_architecture_without_a_profile_has_onnxruntime_alone() -> None:
    profile = profile_of_gpu(gpu("Tesla T4", 15, 75))
    assert profile.name == "tesla-t4-15gb"
    assert profile.backends == ("onnxruntime",)
    assert set(profile.precisions) == {"fp16", "int8", "int4_awq"}
    assert list(profile.kv) == ["fp16"]
    assert profile.sm == 75


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (gpu("Tesla V100-SXM2-32GB", 32, 70), "sm_70: nothing that edgekit drives has kernels"),
        (gpu("NVIDIA GeForce GTX 1080", 8, 61), "older than sm_75"),
        (gpu("NVIDIA B200", 180, 100), "sm_100: no profile or backend of this version knows it"),
        (
            replace(gpu("NVIDIA GB10", 119, 121), is_integrated=True),
            "sm_121: no profile or backend",
        ),
        (gpu("NVIDIA GPU", 8, None), "the driver does not say which architecture"),
    ],
)
def test_a_gpu_that_nothing_runs_on_is_refused_with_the_nearest_that_works(
    found: Gpu, part: str
) -> None:
    with pytest.raises(InputError, match=part) as caught:
        profile_of_gpu(found)
    assert caught.value.hint == "use `--profile cpu`"


def test_without_any_card_to_go_by_it_is_refused() -> None:
    with pytest.raises(InputError, match="no profile here describes a GPU like Tesla T4"):
        profile_of_gpu(gpu("Tesla T4", 15, 75), [])
