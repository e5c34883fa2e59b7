"""What the other machine says of itself, asked before any work, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit import __version__
from edgekit.backends import list_backends
from edgekit.device import Device
from edgekit.engine import MANIFEST_FORMAT
from edgekit.errors import InputError, MissingBackendError, StaleEngineError, StorageError
from edgekit.plan import Plan
from edgekit.planning import Request
from edgekit.remote.drive import error_of, parse_json
from edgekit.remote.ssh import Ssh
from edgekit.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`edgekit doctor --json` of another machine, as far as a build needs it."""

    host: str
    device: Device
    profile: str
    """What it is."""
    backends: tuple[tuple[str, str, str | None], ...]
    """Backend, profile, and why it is not real there (`None`: it is), first choice first."""
    free_bytes: int | None
    """On the disk of its store."""


def ask_facts(ssh: Ssh, *, runtimes: Sequence[str]) -> Facts:
    """Ask the machine. Raises `MissingBackendError` where edgekit is not there, `StaleEngineError`
    where it is another version, `RemoteError`."""
    address = ssh.address
    words = [address.command, "doctor", "--json", "--store", address.path(address.store)]
    done = ssh.run(*words, *runtimes)
    lines = done.stderr.decode(errors="replace").splitlines()
    if done.returncode not in (0, MissingBackendError.exit_code) or not done.stdout.strip():
        raise error_of(address.host, done.returncode or MissingBackendError.exit_code, lines)
    data = parse_json(address.host, done.stdout.decode(errors="replace"))
    _require_version(address.host, data)
    return _read(address.host, data)


def request_there(facts: Facts, asked: Request) -> Request:
    """What is asked for, with that machine as the target and a backend that is real on it.

    Raises `InputError` for another profile than it has, or a backend without a stage;
    `MissingBackendError` where none of them is real there.
    """
    host = facts.host
    if asked.targets or asked.stage != "engine":
        raise InputError(
            "`--on` builds one engine, for that machine",
            hint="leave `--for` and `--stage` out, or `--on`",
        )
    profile = asked.profile or facts.profile
    known = list(dict.fromkeys(of for _, of, _ in facts.backends))
    if profile not in known:
        raise InputError(
            f"{host} is `{facts.profile}`, not `{profile}`",
            hint=f"leave `--profile` out, or use one of {', '.join(known)}",
        )
    rows = [
        row for row in facts.backends if row[1] == profile and asked.backend in ("auto", row[0])
    ]
    staged = {info.name for info in list_backends() if info.has_stage}
    carried = [row for row in rows if row[0] in staged]
    if not carried:
        raise InputError(
            f"nothing of `{profile}` with {asked.backend} is compiled on the machine itself",
            hint=f"build here with `--profile {profile}`, then `edgekit pack` here and "
            "`edgekit unpack` there",
        )
    real = [name for name, _, reason in carried if reason is None]
    if not real:
        told = "; ".join(f"{name}: {reason}" for name, _, reason in carried)
        raise MissingBackendError(
            f"{host} cannot compile for `{profile}`: {told}",
            hint=f"`ssh {host} edgekit doctor` says what to install there",
        )
    return replace(asked, profile=profile, backend=real[0], there=facts.device, stage="checkpoint")


def require_space(facts: Facts, plan: Plan) -> None:
    """Raises `StorageError` where stage and engine have no room side by side on its disk."""
    needed = 2 * plan.weights_bytes
    if facts.free_bytes is not None and facts.free_bytes < needed:
        raise StorageError(
            f"stage and engine take about {format_bytes(needed)}, and "
            f"{format_bytes(facts.free_bytes)} are free on the disk of {facts.host}",
            hint="free some space there, or choose another disk with `--on-store`",
        )


def _require_version(host: str, data: dict[str, Any]) -> None:
    version = data.get("edgekit_version")
    if version != __version__ or data.get("manifest_format") != MANIFEST_FORMAT:
        raise StaleEngineError(
            f"{host} has edgekit {version or 'of an older version'}, here is {__version__}",
            hint="install the same version on both",
        )


def _read(host: str, data: dict[str, Any]) -> Facts:
    try:
        return Facts(
            host=host,
            device=Device.from_dict(data["device"]),
            profile=str(data["profile"]),
            backends=tuple(
                (str(row["name"]), str(row["profile"]), row["reason"]) for row in data["backends"]
            ),
            free_bytes=data["store"]["free_bytes"],
        )
    except (KeyError, TypeError) as exc:
        raise StaleEngineError(
            f"edgekit on {host} tells of itself in another form: {exc}",
            hint="install the same version on both",
        ) from exc
