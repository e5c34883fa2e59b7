"""TensorRT-LLM in a container: words for docker and podman, and what they say when they cannot.

Images are never pulled from here: the error names the command that does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgekit.errors import BackendError, MissingBackendError

_LIMITS = ("--ipc=host", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864")
"""What NVIDIA's images ask for when they start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory of this machine that a container sees under the same path."""

    path: Path
    is_writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """How one container tool is given GPU and user, and what is to do when it fails."""

    gpus: tuple[str, ...]
    keeps_user: bool
    """Files must be written as the caller; podman's root is the caller already."""
    start: str
    """Starts its service, or mends it."""
    permit: str
    gpu_setup: str

    def run_words(self, uid: int, gid: int) -> tuple[str, ...]:
        """`run` and its options, up to the image."""
        user = ("--user", f"{uid}:{gid}") if self.keeps_user else ()
        # a user without a name and a home of its own: caches go where it may write
        home = ("-e", "HOME=/tmp", "-e", "USER=edgekit")
        # --init: signals reach Python, which as process 1 would not hear them
        return ("run", "--rm", "--init", "--pull=never", *self.gpus, *_LIMITS, *user, *home)


TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        "docker": Tool(
            gpus=("--gpus", "all"),
            keeps_user=True,
            start="sudo systemctl start docker",
            permit="sudo usermod -aG docker $USER, then log in again",
            gpu_setup="sudo apt-get install nvidia-container-toolkit && "
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
        ),
        "podman": Tool(
            gpus=("--device", "nvidia.com/gpu=all", "--security-opt", "label=disable"),
            keeps_user=False,
            start="podman system migrate",
            permit="podman system migrate",
            gpu_setup="sudo apt-get install nvidia-container-toolkit && "
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ),
    }
)
_NO_IMAGE = re.compile(r"no such image|image not known|no such object", re.IGNORECASE)
_NO_RIGHTS = re.compile(r"permission denied", re.IGNORECASE)
_NO_DAEMON = re.compile(
    r"cannot connect to|daemon running|connection refused|no answer within", re.IGNORECASE
)
_NO_GPU = re.compile(
    r"could not select device driver|unresolvable CDI devices|nvidia-container-cli|"
    r"nvidia\.com/gpu|unknown or invalid runtime name: nvidia|failed to discover GPU",
    re.IGNORECASE,
)


def container_words(
    mounts: Sequence[Mount],
    settings: Mapping[str, str],
    *,
    name: str | None = None,
    is_interactive: bool = False,
) -> tuple[str, ...]:
    """The options of one start."""
    words = ["-i"] if is_interactive else []
    if name is not None:
        words += ["--name", name]
    for mount in mounts:
        path = mount.path.absolute()
        access = "" if mount.is_writable else ",readonly"
        words += ["--mount", f"type=bind,source={path},target={path}{access}"]
    for key, value in sorted(settings.items()):
        words += ["-e", f"{key}={value}"]
    return tuple(words)


def require_image(tool: str, image: str, returncode: int, stderr: str) -> None:
    """Raises `MissingBackendError` or `BackendError` unless `image inspect` found the image."""
    if returncode == 0:
        return
    row = TOOLS[tool]
    if _NO_RIGHTS.search(stderr):
        raise MissingBackendError(f"this user may not use {tool}", hint=row.permit)
    if _NO_DAEMON.search(stderr):
        raise MissingBackendError(f"{tool} is installed but does not answer", hint=row.start)
    if _NO_IMAGE.search(stderr):
        raise MissingBackendError(
            f"{tool} has no such image on this machine: {image}", hint=f"{tool} pull {image}"
        )
    raise BackendError(
        f"{tool} cannot look at the image {image}: {_last(stderr, returncode)}",
        hint=f"{tool} image inspect {image}",
    )


def explain(tool: str, image: str, stderr: str, last: str) -> BackendError:
    """Why the container did not start, or did not say what is in it."""
    if _NO_GPU.search(stderr):
        return MissingBackendError(
            f"{tool} cannot give the GPU to a container: {last}", hint=TOOLS[tool].gpu_setup
        )
    return BackendError(
        f"the image {image} does not start Python: {last}",
        hint=f"{tool} run --rm {image} python3 --version",
    )


def _last(stderr: str, returncode: int) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {returncode}"
