"""Builds that are killed, interrupted, or run out of disk: one sentence, and nothing left behind.

A helper process builds once, which loads the large libraries, and then forks a child for every
command line, so that a fault costs a second and not ten.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgekit.engine import list_engines, open_manifest
from edgekit.errors import StorageError

pytestmark = pytest.mark.slow  # many builds

_SERVER = """
import json, os, signal, sys, traceback
import modelopt.torch.export, modelopt.torch.quantization
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from edgekit.cli import main

def child(job):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(job["cwd"])
    try:
        exec(job["setup"], {})
        main(job["arguments"], prog_name="edgekit")
    except SystemExit as exc:
        code = exc.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

stdout = os.dup(1)
os.dup2(2, 1)
main(sys.argv[1:], prog_name="edgekit", standalone_mode=False)
os.dup2(stdout, 1)
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if not (pid := os.fork()):
        child(job)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a child ended."""

    code: int
    """Negative: the signal that killed it."""
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def server(
    gguf_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    first = arguments(gguf_file, tmp_path_factory.mktemp("first") / "store")
    # a warning is no error in there: the libraries have some of their own
    command = [sys.executable, "-W", "ignore", "-c", _SERVER, *map(str, first)]
    # one thread: a pool of threads does not survive a fork
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def run(server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run("build", ..., setup="python code that the child runs first")`."""
    scratch = tmp_path_factory.mktemp("output")
    assert server.stdin is not None
    assert server.stdout is not None
    pipe_in, pipe_out = server.stdin, server.stdout

    def run(*arguments: str | Path, setup: str = "") -> Done:
        out, err = scratch / "out", scratch / "err"
        job = {
            "arguments": [str(a) for a in arguments],
            "setup": setup,
            "out": str(out),
            "err": str(err),
            "cwd": str(scratch),
        }
        pipe_in.write(json.dumps(job) + "\n")
        pipe_in.flush()
        code = int(pipe_out.readline())
        return Done(code=code, out=out.read_text(), err=err.read_text())

    return run


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers whose build has every step there is, conversion included."""
    path: Path = tmp_path_factory.mktemp("models") / "tiny.Q8_0.gguf"
    write_gguf(path)
    return path


def write_gguf(path: Path) -> None:
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    # an MLP so wide that the weights are the largest file of every step
    hidden, mlp, layers, heads, kv_heads = 64, 4096, 2, 4, 2
    tokens = [*ByteLevel.alphabet(), "he", "ll", "hell", "hello", "<s>", "</s>"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), hidden), "output": (len(tokens), hidden),
        "output_norm": (hidden,),
    }  # fmt: skip
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden),
                "attn_k": (hidden // 2, hidden), "attn_v": (hidden // 2, hidden),
                "attn_output": (hidden, hidden), "ffn_gate": (mlp, hidden), "ffn_up": (mlp, hidden),
                "ffn_down": (hidden, mlp),
            }.items()
        }  # fmt: skip
    for name, shape in shapes.items():
        values = 0.15 * rng.standard_normal(shape) + (len(shape) == 1)
        dtype = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(f"{name}.weight", values.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def arguments(model: Path, store: Path, *more: str | Path) -> list[str | Path]:
    quick = ["--calibration-tokens", "32", "--context", "128", "--precision", "int8"]
    return ["build", "--model", model, "--store", store, *quick, *more]


def tree(store: Path) -> list[str]:
    """Every file and directory below `store`."""
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*"))


_RECORD = """
from edgekit.cli.progress import ProgressLine
def note(self, step, done, total):
    with open({file!r}, "a") as file:
        file.write(step + "\\n")
ProgressLine.__call__ = note
"""

_SIGNAL_AT_STEP = """
import os
from edgekit.cli.progress import ProgressLine
original = ProgressLine.__call__
def stop(self, step, done, total):
    original(self, step, done, total)
    if step == {step!r}:
        os.kill(os.getpid(), {signal})
ProgressLine.__call__ = stop
"""

_KILL_AT_RENAME = """
import os
count = 0
def wrap(original):
    def rename(*arguments, **named):
        global count
        count += 1
        if count == {number} and {before}:
            os.kill(os.getpid(), 9)
        original(*arguments, **named)
        if count == {number}:
            os.kill(os.getpid(), 9)
    return rename
os.rename, os.replace = wrap(os.rename), wrap(os.replace)
"""


@dataclass(frozen=True)
class Undisturbed:
    """A build that nothing happened to."""

    store: Path
    steps: tuple[str, ...]
    tree: list[str]


@pytest.fixture(scope="module")
def undisturbed(run: Run, gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    directory = tmp_path_factory.mktemp("undisturbed")
    store, log = directory / "store", directory / "steps"
    done = run(*arguments(gguf_file, store), setup=_RECORD.format(file=str(log)))
    assert done.code == 0, done.err
    steps = tuple(dict.fromkeys(log.read_text().splitlines()))
    return Undisturbed(store=store, steps=steps, tree=tree(store))


STEPS = (
    "hash the GGUF file", "convert the GGUF file", "hash the checkpoint", "load",
    "ask the checkpoint", "quantize", "ask the quantized model", "write", "export", "compile",
    "verify",
)  # fmt: skip


def test_a_build_reports_these_steps_each_of_which_is_killed_below(
    undisturbed: Undisturbed,
) -> None:
    assert undisturbed.steps == STEPS
    assert not [name for name in undisturbed.tree if "building" in name]


@pytest.mark.parametrize("step", STEPS)
def test_a_build_that_was_killed_goes_on(
    run: Run, gguf_file: Path, undisturbed: Undisturbed, tmp_path: Path, step: str
) -> None:
    store = tmp_path / "store"
    setup = _SIGNAL_AT_STEP.format(step=step, signal=int(signal.SIGKILL))
    assert run(*arguments(gguf_file, store), setup=setup).code == -signal.SIGKILL
    assert list_engines(store) == []
    done = run(*arguments(gguf_file, store))
    assert done.code == 0, done.err
    assert tree(store) == undisturbed.tree
    engine = Path(done.out.splitlines()[0])
    again = open_manifest(engine, full=True)
    once = open_manifest(undisturbed.store / engine.relative_to(store), full=True)
    assert again.quality["known_answer_ids"] == once.quality["known_answer_ids"]
    assert again.quality["mean_kl"] == pytest.approx(once.quality["mean_kl"], rel=1e-3)
    assert again.build_key == once.build_key


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_ends_with_130_and_leaves_finished_steps_only(
    run: Run, gguf_file: Path, undisturbed: Undisturbed, tmp_path: Path, step: str
) -> None:
    store = tmp_path / "store"
    setup = _SIGNAL_AT_STEP.format(step=step, signal=int(signal.SIGINT))
    done = run(*arguments(gguf_file, store), setup=setup)
    assert (done.code, done.out) == (130, "")
    assert done.err.endswith("\ninterrupted\n")
    assert "Traceback" not in done.err
    left = tree(store)
    assert set(left) <= {name for name in undisturbed.tree if name.startswith(".work")}
    for name in {name.split("/")[1] for name in left if "/" in name}:
        # a directory below .work is a whole one
        assert [n for n in left if n.startswith(f".work/{name}")] == [
            n for n in undisturbed.tree if n.startswith(f".work/{name}")
        ]


@pytest.fixture(scope="module")
def model(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted checkpoint, in a directory called `tiny`."""
    [source] = undisturbed.store.glob(".work/checkpoint-*")
    path: Path = tmp_path_factory.mktemp("converted") / "tiny"
    shutil.copytree(source, path)
    return path


@pytest.fixture
def store(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A copy of the undisturbed store."""
    shutil.copytree(undisturbed.store, tmp_path / "store")
    return tmp_path / "store"


RENAMES = 6
"""Three files into the engine, the manifest, the old engine aside, the new one into place."""


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, RENAMES + 2))
def test_a_replacement_that_was_killed_between_two_renames_loses_no_engine(
    run: Run, gguf_file: Path, store: Path, undisturbed: Undisturbed, number: int, before: bool
) -> None:
    setup = _KILL_AT_RENAME.format(number=number, before=before)
    done = run(*arguments(gguf_file, store, "--force"), setup=setup)
    assert done.code == (0 if number > RENAMES else -signal.SIGKILL)
    done = run(*arguments(gguf_file, store))
    assert done.code == 0, done.err
    # the old engine was moved back, or the new one is in place: nothing is built again
    assert "nothing to do" in done.err
    assert tree(store) == undisturbed.tree
    [engine] = list_engines(store)
    open_manifest(engine, full=True)


_FILE_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"


@pytest.mark.parametrize(
    ("largest", "gone"),
    [
        # the file that is one byte too large, and what is not there yet when it is written
        (".work/checkpoint-*/model.safetensors", [".work", "tiny"]),
        (".work/quantized-*/edgekit_reference.npz", [".work/quantized-*", "tiny"]),
        (".work/quantized-*/model.safetensors", [".work/quantized-*", "tiny"]),
        ("tiny/cpu/*/backend/model.data", ["tiny"]),
    ],
)
def test_a_file_that_cannot_grow_ends_a_build_in_one_sentence(
    run: Run, gguf_file: Path, store: Path, undisturbed: Undisturbed, largest: str, gone: list[str]
) -> None:
    [file] = store.glob(largest)
    limit = file.stat().st_size - 1
    for path in [path for pattern in gone for path in store.glob(pattern)]:
        shutil.rmtree(path)
    before = {".work", ".work/lock", *tree(store)}
    done = run(*arguments(gguf_file, store), setup=_FILE_LIMIT.format(limit=limit))
    assert_storage_error(done, "file size limit reached for: ")
    assert set(tree(store)) == before
    assert run(*arguments(gguf_file, store)).code == 0
    assert tree(store) == undisturbed.tree


def assert_storage_error(done: Done, message: str) -> None:
    assert (done.code, done.out) == (StorageError.exit_code, ""), done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.err


# mounts that only the child sees; exit code 77 where they are not permitted
_MOUNT = """
import ctypes, os
libc = ctypes.CDLL(None)
NEWNS, NEWUSER, REC, PRIVATE, BIND, REMOUNT, READ_ONLY = (
    0x20000, 0x10000000, 0x4000, 1 << 18, 0x1000, 0x20, 1)
uid, gid = os.getuid(), os.getgid()
if libc.unshare(NEWNS):
    if libc.unshare(NEWNS | NEWUSER):
        os._exit(77)
    for name, text in (("setgroups", "deny"), ("uid_map", "0 %d 1" % uid),
                       ("gid_map", "0 %d 1" % gid)):
        try:
            with open("/proc/self/" + name, "w") as file:
                file.write(text)
        except OSError:
            os._exit(77)
def mount(*arguments):
    if libc.mount(*arguments):
        os._exit(77)
mount(b"none", b"/", None, REC | PRIVATE, None)
"""

# the mount goes with the child, so what is on it is listed as the child exits
_SMALL_DISK = """
import pathlib
mount(b"tmpfs", b"{store}", b"tmpfs", 0, b"size={kib}k")
leave = os._exit
def list_and_leave(code):
    names = [path.relative_to("{store}").as_posix() for path in pathlib.Path("{store}").rglob("*")]
    pathlib.Path("{listing}").write_text("\\n".join(names))
    leave(code)
os._exit = list_and_leave
"""

_READ_ONLY = """
mount(b"{store}", b"{store}", None, BIND, None)
mount(None, b"{store}", None, REMOUNT | BIND | READ_ONLY, None)
"""


@pytest.mark.parametrize(
    "kib",
    # of 5.7 MiB: the first directory, the reference answers, ModelOpt's weights, the engine's
    # weights, and what comes after them
    [4, 700, 2000, 3500, 5000],
)
def test_a_full_disk_ends_a_build_in_one_sentence(
    run: Run, model: Path, tmp_path: Path, kib: int
) -> None:
    store, listing = tmp_path / "store", tmp_path / "listing"
    store.mkdir()
    setup = _MOUNT + _SMALL_DISK.format(store=store, kib=kib, listing=listing)
    done = run(*arguments(model, store), setup=setup)
    if done.code == 77:
        pytest.skip("mounting is not permitted here")
    assert_storage_error(done, "no space left on the disk of: ")
    for name in listing.read_text().splitlines():
        assert name.startswith(".work")
        assert ".building-" not in name


def test_a_read_only_store_refuses_a_build_and_serves_the_rest(
    run: Run, model: Path, store: Path
) -> None:
    setup = _MOUNT + _READ_ONLY.format(store=store)
    done = run(*arguments(model, store, "--force"), setup=setup)
    if done.code == 77:
        pytest.skip("mounting is not permitted here")
    assert_storage_error(done, "read-only file system: ")
    for command in (["verify"], ["engines"], ["plan", "--model", model]):
        done = run(*command, "--store", store, setup=setup)
        assert done.code == 0, done.err


def test_a_store_that_may_not_be_written_refuses_a_build(run: Run, model: Path) -> None:
    # not below pytest's directory, which is closed to the user that root becomes here
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        shutil.copytree(model, Path(directory) / "tiny")
        store = Path(directory) / "store"
        store.mkdir(mode=0o555)
        setup = "import os; os.getuid() or os.setuid(65534)"
        done = run(*arguments(Path(directory) / "tiny", store), setup=setup)
    assert_storage_error(done, "permission denied: ")


@pytest.mark.parametrize("place", [".", ".work", "tiny", "tiny/cpu", "tiny/cpu/int8-onnxruntime"])
def test_a_file_where_the_store_needs_a_directory_is_one_sentence(
    run: Run, model: Path, tmp_path: Path, place: str
) -> None:
    store = tmp_path / "store"
    file = store / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("of the user")
    done = run(*arguments(model, store))
    if place == ".":  # the option itself is checked
        assert (done.code, done.out) == (2, "")
        assert "is a file" in done.err
    else:
        assert_storage_error(done, "a file is where a directory must be: ")
    assert file.read_text() == "of the user"
    assert not list(tmp_path.rglob(".building-*"))


_SECOND_BUILD = """
import subprocess, sys
from edgekit.cli.progress import ProgressLine
seconds = []
def begin(self, step, done, total):
    if step == "verify" and not seconds:
        code = "import sys; from edgekit.cli import main; main(sys.argv[1:], prog_name='edgekit')"
        seconds.append(subprocess.run([sys.executable, "-c", code, *{arguments!r}]).returncode)
        print("the second ended with", *seconds, file=sys.stderr)
ProgressLine.__call__ = begin
"""


def test_a_second_build_is_refused_and_does_the_first_no_harm(
    run: Run, gguf_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = arguments(gguf_file, store)
    done = run(*command, setup=_SECOND_BUILD.format(arguments=[str(a) for a in command]))
    assert done.code == 0, done.err
    assert f"error: another build is running in this store: {store}" in done.err
    assert "the second ended with 2" in done.err
    assert tree(store) == undisturbed.tree
    open_manifest(list_engines(store)[0], full=True)
