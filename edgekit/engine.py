"""The engine directory and the store of engines: write, verify, list.

    engines/<model>/<profile>/<precision>-<backend>/
    ├── manifest.json   what the engine is, what it came from, the digest of every file
    ├── tokenizer/      copied, so that the directory works without the checkpoint
    ├── reference/      the checkpoint's own answers, for `edgekit verify` on the device
    └── backend/        files that only the backend understands

An engine is written in a scratch directory beside its final place and renamed at the end, so it
exists whole or not at all. The manifest carries a digest of itself: an edit by hand is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from edgekit import __version__
from edgekit.errors import EngineError, InputError, StaleEngineError, storage_errors
from edgekit.scratch import exists, remove_scratch, sha256_file, write_beside

MANIFEST_FORMAT = 1
MANIFEST_FILE = "manifest.json"
STAGE_FILE = "stage.json"
"""The manifest of what is not an engine yet: everything up to the compiler, to be carried on."""
DEFAULT_STORE = Path("engines")
WORK = ".work"
"""Below a store: what builds can use again, and their lock."""
_HASHED_ON_OPEN_BYTES = 512 * 1024**2
"""Files up to this size are hashed whenever an engine is opened, larger ones by `verify`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything needed to trust an engine without opening it. Sizes in bytes."""

    format: int = MANIFEST_FORMAT
    edgekit_version: str = __version__
    model: str
    checkpoint_sha256: str
    precision: str
    kv_precision: str
    profile: str
    backend: dict[str, str]
    """`name` and `version`."""
    context_tokens: int
    batch: int
    plan: dict[str, Any]
    device: dict[str, Any]
    """What the engine was compiled for and on; the backend fills it."""
    quality: dict[str, Any] = field(default_factory=dict)
    """What `verify` measured."""
    build_key: str
    """Digest of every input of the build: the same key is the same engine."""
    files: dict[str, str] = field(default_factory=dict)
    """Relative path -> sha256, for every file but the manifest."""
    file_bytes: dict[str, int] = field(default_factory=dict)
    """Relative path -> size."""

    @property
    def ran_on_processor(self) -> bool:
        """It was compiled and checked on a processor, not on a GPU."""
        return str(self.device.get("execution_provider", "CPU")).startswith("CPU")

    def write(self, engine: Path, *, file: str = MANIFEST_FILE) -> None:
        """Write it, keys sorted so that two builds can be compared."""
        data = asdict(self)
        data["manifest_sha256"] = _digest_of(data)
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
        write_beside(engine / file, text + "\n")

    def sealed(self, engine: Path) -> Self:
        """This manifest with the digests of all files that lie in `engine` now."""
        names = _list_files(engine)
        return replace(
            self,
            files={name: sha256_file(engine / name) for name in names},
            file_bytes={name: (engine / name).stat().st_size for name in names},
        )


def _list_files(engine: Path) -> list[str]:
    """Every file of an engine but its manifest, relative and sorted."""
    names = [p.relative_to(engine).as_posix() for p in engine.rglob("*") if p.is_file()]
    return sorted(name for name in names if name not in (MANIFEST_FILE, STAGE_FILE))


def _digest_of(data: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in data.items() if k != "manifest_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(engine: Path, *, file: str = MANIFEST_FILE) -> Manifest:
    """The manifest of an engine directory. Raises `EngineError`, `StaleEngineError`."""
    path = engine / file
    if not path.is_file():
        raise EngineError(
            f"not an engine directory: {engine}",
            hint="build one with `edgekit build`, or list yours with `edgekit engines`",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not an object")
    except (ValueError, OSError, RecursionError) as exc:
        raise EngineError(f"unreadable manifest {path}: {exc}", hint=_REBUILD) from exc
    if data.get("format") != MANIFEST_FORMAT:
        raise StaleEngineError(
            f"{path} has format {data.get('format')!r}, this edgekit reads {MANIFEST_FORMAT}",
            hint=_REBUILD,
        )
    said = data.pop("manifest_sha256", None)
    if said != _digest_of(data):
        raise EngineError(f"the manifest was changed after the build: {path}", hint=_REBUILD)
    if unknown := set(data) ^ {f.name for f in fields(Manifest)}:
        raise EngineError(f"manifest {path} has unexpected keys: {', '.join(sorted(unknown))}")
    return Manifest(**data)


def open_manifest(engine: Path, *, full: bool = False, file: str = MANIFEST_FILE) -> Manifest:
    """Read the manifest and check the files it names against it.

    Sizes are always compared; contents are hashed where that is quick, and all of them with
    `full`. Raises `EngineError` naming the first file that is missing, differs, or is none
    of the engine's: a chat template that was put beside changes the answers as well.
    """
    manifest = read_manifest(engine, file=file)
    require_sizes(engine, manifest)
    for name, expected in manifest.files.items():
        is_quick = manifest.file_bytes[name] <= _HASHED_ON_OPEN_BYTES
        if (full or is_quick) and sha256_file(engine / name) != expected:
            raise EngineError(
                f"engine file differs from what was built: {engine / name}", hint=_REBUILD
            )
    return manifest


def require_sizes(engine: Path, manifest: Manifest) -> None:
    """Raises `EngineError` naming the first file that is missing, has another size, or is none of
    the engine's; reads no contents."""
    for name in manifest.files:
        path = engine / name
        if not path.is_file():
            raise EngineError(f"engine file is missing: {path}", hint=_REBUILD)
        size, said = path.stat().st_size, manifest.file_bytes.get(name, -1)
        if size != said:
            raise EngineError(
                f"engine file {path} has {size} bytes, the manifest says {said}", hint=_REBUILD
            )
    if extra := [name for name in _list_files(engine) if name not in manifest.files]:
        raise EngineError(f"no file of this engine: {engine / extra[0]}", hint="move it elsewhere")


_REBUILD = "build it again with `edgekit build`"


def rebuild_command(manifest: Manifest) -> str:
    """The `edgekit build` that makes this engine again; `--model` says its name, which may have to
    be its path."""
    devices = manifest.plan.get("devices") or [manifest.profile]
    words = ["edgekit", "build", "--model", manifest.model]
    words += ["--for", ",".join(devices)] if len(devices) > 1 else ["--profile", manifest.profile]
    words += ["--backend", manifest.backend["name"], "--precision", manifest.precision]
    words += ["--kv", manifest.kv_precision, "--context", str(manifest.context_tokens)]
    return shlex.join([*words, "--batch", str(manifest.batch)])


@contextmanager
def naming_rebuild(manifest: Manifest) -> Iterator[None]:
    """Errors of a stale engine say the whole command that makes it again."""
    try:
        yield
    except StaleEngineError as exc:
        if exc.hint is not None:
            exc.hint = exc.hint.replace("`edgekit build`", f"`{rebuild_command(manifest)}`")
        raise


def engine_path(store: Path, *, model: str, profile: str, precision: str, backend: str) -> Path:
    """Where an engine of that kind lies in the store. Raises `InputError` for a model whose name
    is no name of one visible directory."""
    if re.fullmatch(r"[^./\\\0][^/\\\0]*", model) is None:
        raise InputError(
            f"cannot keep an engine under the name of this model: {model!r}",
            hint="rename the checkpoint's directory",
        )
    return store / model / profile / f"{precision}-{backend}"


def stage_path(engine: Path) -> Path:
    """Where the stage before an engine lies: beside it."""
    return engine.with_name(f"{engine.name}.stage")


def device_cache(engine: Path) -> Path:
    """Where a backend may keep what it makes for one device of an engine: beside it, for the
    engine's own files are sealed. The directory need not exist, or be writable."""
    engine = engine.absolute()
    return engine.with_name(f".{engine.name}.cache")


def list_engines(store: Path) -> list[Path]:
    """Every engine directory of a store, newest first."""
    found = [p.parent for p in store.glob("*/*/*/manifest.json") if not _is_hidden(p, store)]
    return sorted(found, key=lambda p: -(p / "manifest.json").stat().st_mtime_ns)


def list_manifests(store: Path) -> tuple[list[tuple[Path, Manifest]], list[EngineError]]:
    """Every engine of a store with its manifest, newest first, and what is wrong with the rest."""
    found, damaged = [], []
    for engine in list_engines(store):
        try:
            found.append((engine, read_manifest(engine)))
        except EngineError as exc:
            damaged.append(exc)
    return found, damaged


def _is_hidden(path: Path, store: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(store).parts)


def find_engine(store: Path, name: str | None = None, *, is_exact: bool = False) -> Path:
    """An engine by directory, by its path or part of its path in the store, or the newest one.

    The whole path comes before a whole word of it (`int8` is none of `int8_sq`), that before any
    part (never with `is_exact`). Raises `InputError` when nothing or more than one matches.
    """
    if name is not None and exists(Path(name) / "manifest.json"):
        return Path(name)
    if name is not None and exists(Path(name) / STAGE_FILE):
        raise EngineError(
            f"not an engine yet, but a stage: {name}", hint=f"on its device: edgekit compile {name}"
        )
    if name is not None and exists(Path(name)):
        raise EngineError(
            f"not an engine directory: {name}", hint="list yours with `edgekit engines`"
        )
    engines = list_engines(store)
    if not engines:
        raise InputError(
            f"no engine in the store: {store}", hint="build one with `edgekit build --model …`"
        )
    if name is None:
        return engines[0]
    paths = {p: p.relative_to(store).as_posix() for p in engines}
    word = re.compile(rf"(?:^|[/-]){re.escape(name)}(?:$|[/-])")
    matches = (
        [p for p, path in paths.items() if path == name]
        or [p for p, path in paths.items() if word.search(path)]
        or [p for p, path in paths.items() if name in path and not is_exact]
    )
    if len(matches) == 1:
        return matches[0]
    listed = [paths[p] for p in matches or engines]
    problem = "matches more than one engine" if matches else "no engine matches"
    raise InputError(f"{problem}: {name}", hint="yours are " + ", ".join(listed))


def remove_engine(engine: Path, store: Path) -> None:
    """Delete an engine, damaged or not, and the directories above it that become empty, up to
    the store. Raises `EngineError` for a directory without a manifest."""
    if not (engine / "manifest.json").is_file():
        raise EngineError(f"not an engine directory: {engine}")
    if store.resolve() not in engine.resolve().parents:
        read_manifest(engine)  # outside the store only what is an engine beyond doubt is deleted
    with storage_errors(engine):
        shutil.rmtree(device_cache(engine), ignore_errors=True)
        shutil.rmtree(engine)
    for parent in engine.parents:
        if parent == store or store not in parent.parents or any(parent.iterdir()):
            return
        parent.rmdir()


@contextmanager
def build_lock(store: Path) -> Iterator[None]:
    """One build at a time per store; the lock goes with its process. Raises `InputError`."""
    import fcntl

    path = store / WORK / "lock"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise InputError(
                f"another build is running in this store: {store}",
                hint="wait for it, or choose another place with `--store`",
            ) from exc
        yield


def remove_leftovers(store: Path) -> None:
    """Delete what killed builds left. Call it with the lock held."""
    # only where a build writes: a store may lie in a directory that holds other things
    for directory in (store / WORK, *store.glob("[!.]*/*")):
        remove_scratch(directory)
