"""Is there a card here that a backend compiles for? Which, and with which precisions."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from edgekit import __version__
from edgekit.backends import find_backend
from edgekit.backends.base import Wanted
from edgekit.device import Device, Gpu
from edgekit.errors import EdgekitError, InputError, MissingBackendError
from edgekit.matching import is_gpu
from edgekit.profile import Profile
from edgekit.target import find_target, with_storage
from edgekit.units import format_bytes
from gpu_check.lines import Line, told

BACKEND = "tensorrt-rtx"
_PACKAGES = ("tensorrt-rtx-cu13-bindings", "cuda-bindings", "onnxruntime", "numpy")
_CARDS = "it runs on RTX cards: RTX 30, 40 and 50, and the workstation cards of these years"
_TRTLLM_CARDS = "it runs on RTX 30, 40 and 50, A100 and H100: `edgekit profiles`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The GPU that is checked."""

    gpu: Gpu
    profile: Profile
    precisions: tuple[str, ...]
    """Of the profile, those that the backend has on this architecture."""
    backend: str = BACKEND

    @property
    def lines(self) -> tuple[Line, ...]:
        """For the report."""
        gpu = self.gpu
        known = {
            "GPU": gpu.name,
            "architecture": f"sm_{gpu.sm}",
            "driver": f"{gpu.driver or 'unknown'}, CUDA up to {gpu.cuda or 'unknown'}",
            "memory": _bytes(gpu.memory_bytes),
            "free": _bytes(gpu.free_bytes),
            "has a display": {None: "unknown", True: "yes", False: "no"}[gpu.has_display],
            "profile": self.profile.name,
            "precisions": ", ".join(self.precisions),
            "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        }
        rows = [told(name, note=text) for name, text in known.items()]
        bandwidth = self.profile.bandwidth_bytes_per_s or gpu.bandwidth_bytes_per_s
        said = "unknown" if bandwidth is None else f"{bandwidth / 1e9:.0f} GB/s"
        return (*rows, told("bandwidth of its memory", note=said))


def find_card(device: Device, backend: str = BACKEND) -> Card:
    """The first GPU that has a profile. Raises `MissingBackendError` where there is none that the
    backend compiles for, or what it needs is not installed."""
    is_rtx = backend == BACKEND
    name, cards = ("TensorRT-RTX", _CARDS) if is_rtx else ("TensorRT-LLM", _TRTLLM_CARDS)
    if not device.gpus:
        raise MissingBackendError(
            device.gpu_problem or "there is no NVIDIA GPU here, or no driver for it",
            hint="run this on a machine with an RTX card and NVIDIA's driver; `nvidia-smi` lists "
            "what the driver finds",
        )
    try:
        profile = find_target(None, device)
    except InputError as exc:
        raise MissingBackendError(str(exc), hint=cards) from exc
    gpu = next((gpu for gpu in device.gpus if is_gpu(profile, gpu)), None)
    if gpu is None or gpu.sm is None or backend not in profile.backends:
        named = device.gpus[0] if gpu is None else gpu
        raise MissingBackendError(
            f"{name} does not compile for {named.name} (sm_{named.sm})", hint=cards
        )
    if is_rtx:
        _require_driver(gpu)
        able = [each for each in profile.precisions if _is_possible(each, gpu.sm)]
    else:
        info = find_backend(backend).info
        able = [each for each in profile.precisions if each in info.precisions]
    if not able:
        raise MissingBackendError(
            f"{name} has no precision of `{profile.name}` on sm_{gpu.sm}", hint=cards
        )
    return Card(
        gpu=gpu,
        profile=with_storage(profile, backend),
        precisions=tuple(able),
        backend=backend,
    )


def choose(card: Card, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The precisions to check. Raises `InputError` for one that the card has not."""
    if wanted is None:
        return card.precisions
    if unknown := [name for name in wanted if name not in card.precisions]:
        raise InputError(
            f"not possible on {card.gpu.name} with {card.backend}: {', '.join(unknown)}",
            hint=f"it has {', '.join(card.precisions)}",
        )
    return tuple(dict.fromkeys(wanted))


def versions(backend: str = BACKEND) -> dict[str, str]:
    """Of what decides the numbers; of TensorRT-LLM each engine says its own."""
    found = {"edgekit": __version__, "Python": platform.python_version()}
    for name in _PACKAGES if backend == BACKEND else _PACKAGES[-1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _is_possible(precision: str, sm: int) -> bool:
    from edgekit.backends.tensorrt_rtx import INFO
    from edgekit.backends.tensorrt_rtx.compiler import require_capabilities

    wanted = Wanted(precision=precision, context_tokens=1, batch=1, capabilities=(sm,))
    try:
        require_capabilities(wanted)
    except MissingBackendError:
        raise
    except EdgekitError:
        return False
    return precision in INFO.precisions


def _require_driver(gpu: Gpu) -> None:
    """Raises `MissingBackendError` for a driver older than the CUDA that the packages are for."""
    from edgekit.backends.tensorrt_rtx import DISTRIBUTIONS

    needed = re.search(r"cu(\d+)", DISTRIBUTIONS[0])
    if needed is None or gpu.cuda is None:
        return
    if int(gpu.cuda.split(".")[0]) < int(needed[1]):
        raise MissingBackendError(
            f"the NVIDIA driver {gpu.driver} runs CUDA up to {gpu.cuda}, "
            f"{DISTRIBUTIONS[0]} needs CUDA {needed[1]}",
            hint="install NVIDIA's driver 580 or newer",
        )


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else format_bytes(count)
