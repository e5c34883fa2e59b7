"""`resolve_model`: directory, GGUF file or hub id, and nothing downloaded by accident."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from edgekit.checkpoint import resolve_model
from edgekit.checkpoint.resolve import model_name
from edgekit.errors import InputError, StorageError

Make = Callable[..., Path]
Calls = list[dict[str, Any]]


@pytest.fixture
def hub(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A hub that has one model and notes every call; the network is not there."""
    calls: Calls = []
    source = make_checkpoint(name="remote")

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        path = Path(options["cache_dir"]) / "models--org--small" / "snapshots" / ("c0ffee" * 6)
        if not path.exists():
            if options["local_files_only"]:
                raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
            shutil.copytree(source, path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def refusal(model: str, work: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve_model(model, work=work, **options)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_directory_is_read_in_place(make_checkpoint: Make, tmp_path: Path, hub: Calls) -> None:
    path = make_checkpoint()
    checkpoint = resolve_model(str(path), work=tmp_path / "work")
    assert checkpoint.path == path
    assert not (tmp_path / "work").exists()
    assert hub == []


def test_a_directory_wins_over_a_hub_id_of_the_same_name(
    make_checkpoint: Make, tmp_path: Path, hub: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    make_checkpoint(name="org/small")
    assert resolve_model("org/small", work=tmp_path / "work").name == "small"
    assert hub == []


@pytest.mark.parametrize(
    "model",
    [
        "./org/small",
        "../org/small",
        "/org/small",
        "~/small",
        "small",
        "a/b/c",
        "org/small.gguf",
        "org/model.safetensors",
        "",
        "org/",
        "org/small@",
        "org\\small",
        "-o/small",
    ],
)
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(
    tmp_path: Path, hub: Calls, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(model, tmp_path / "work")
    assert str(error) == f"no such file or directory: {model}"
    assert "org/name" in str(error.hint)
    assert hub == []


def test_a_gguf_file_is_converted_once_and_found_by_its_contents(
    write_gguf: Make, tmp_path: Path
) -> None:
    path, work = write_gguf(name="Tiny-1B.Q4_K_M.gguf"), tmp_path / "work"
    first = resolve_model(str(path), work=work)
    assert first.name == "Tiny-1B"
    assert first.path.parent == work
    assert len(first.path.name) == len("checkpoint-") + 16
    assert [entry.name for entry in work.iterdir()] == [first.path.name]
    written = (first.path / "model.safetensors").stat().st_mtime_ns
    moved = path.rename(tmp_path / "moved.gguf")
    again = resolve_model(str(moved), work=work)
    assert again.path == first.path
    assert again.name == "moved"
    assert (again.path / "model.safetensors").stat().st_mtime_ns == written


def test_another_gguf_file_gets_another_directory(write_gguf: Make, tmp_path: Path) -> None:
    first = resolve_model(str(write_gguf()), work=tmp_path / "work")
    changed = write_gguf(metadata={"llama.context_length": 256})
    assert resolve_model(str(changed), work=tmp_path / "work").path != first.path


def test_what_a_killed_conversion_left_is_not_in_the_way(
    write_gguf: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, work = write_gguf(), tmp_path / "work"
    done = resolve_model(str(path), work=work).path
    done.rename(work / f".building-{done.name}-1")
    assert resolve_model(str(path), work=work).path == done


def test_progress_of_a_conversion_reaches_its_total(write_gguf: Make, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def report(step: str, done: int, total: int) -> None:
        assert done >= seen.get(step, (0, 0))[0]
        seen[step] = (done, total)

    resolve_model(str(write_gguf()), work=tmp_path / "work", report=report)
    assert list(seen) == ["hash the GGUF file", "convert the GGUF file"]
    assert all(done == total for done, total in seen.values())


def test_an_interrupted_conversion_leaves_nothing(write_gguf: Make, tmp_path: Path) -> None:
    def report(step: str, done: int, total: int) -> None:
        if step.startswith("convert"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model(str(write_gguf()), work=tmp_path / "work", report=report)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_work_directory_that_cannot_be_made_is_a_storage_error(
    write_gguf: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    gguf = write_gguf()
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(StorageError, match="permission denied"):
        resolve_model(str(gguf), work=tmp_path / "work")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04" * 10)
    error = refusal(str(tmp_path / "model.bin"), tmp_path / "work")
    assert str(error) == f"not a GGUF file: {tmp_path / 'model.bin'}"


def test_a_hub_id_is_downloaded_below_work(tmp_path: Path, hub: Calls) -> None:
    checkpoint = resolve_model("org/small@main", work=tmp_path / "work")
    assert checkpoint.name == "small"
    assert checkpoint.source == {"kind": "hub", "repository": "org/small", "revision": "c0ffee" * 6}
    assert hub == [
        {
            "repo_id": "org/small",
            "revision": "main",
            "cache_dir": tmp_path / "work" / "hub",
            "local_files_only": False,
            "allow_patterns": ["*.json", "*.safetensors", "*.jinja", "tokenizer.model*", "*.txt"],
        }
    ]


def test_offline_takes_what_was_downloaded_before(tmp_path: Path, hub: Calls) -> None:
    first = resolve_model("org/small", work=tmp_path / "work")
    again = resolve_model("org/small", work=tmp_path / "work", offline=True)
    assert again.path == first.path
    assert [call["local_files_only"] for call in hub] == [False, True]


def test_offline_without_a_download_says_how_to_go_on(tmp_path: Path, hub: Calls) -> None:
    error = refusal("org/small", tmp_path / "work", offline=True)
    assert str(error) == "not on this machine, and downloads are off: org/small"
    assert "`--offline`" in str(error.hint)


def test_offline_refuses_a_download_that_stopped_halfway(tmp_path: Path, hub: Calls) -> None:
    done = resolve_model("org/small", work=tmp_path / "work")
    # recorded only after the last file
    (done.path / "edgekit_source.json").unlink()
    assert "downloads are off" in str(refusal("org/small", tmp_path / "work", offline=True))


def test_a_download_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    error = refusal("org/small", tmp_path / "work")
    assert str(error) == "cannot download org/small: no route to host"
    assert "continues" in str(error.hint)


def test_a_full_disk_while_downloading_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise OSError(28, "No space left on device", "blobs")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(StorageError, match="no space left"):
        resolve_model("org/small", work=tmp_path / "work")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct"),
        ("model-IQ4_XS.gguf", "model"),
        ("model.BF16.gguf", "model"),
        ("plain.gguf", "plain"),
        ("Qwen3-0.6B.gguf", "Qwen3-0.6B"),
        ("q4_0.gguf", "q4_0"),
    ],
)
def test_the_name_of_a_model_has_no_quant_type(file: str, name: str) -> None:
    assert model_name(Path(file)) == name
