"""The rules of the house, checked: who imports whom, what a command costs, what is documented."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result

import edgekit
from edgekit import errors
from edgekit.cli import _COMMANDS

PACKAGE = Path(edgekit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

ROWS = (
    {"errors", "units", "interrupts", "progress", "scratch"},
    {"model", "precision", "schema", "storage", "profile", "models"},
    {"families", "checkpoint", "device", "footprint", "matching"},
    {"steps", "question", "plan", "engine", "quality", "reference", "pack"},
    {"quantize", "export", "backends"},
    {
        "target",
        "choice",
        "keys",
        "preflight",
        "verify",
        "compile",
        "pipeline",
        "dry_run",
        "planning",
        "remote",
        "doctor",
        "runtime",
    },
    {"serve", "bench", "eval", "chat"},
    {"cli"},
)
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
STRANGERS = {"quantize", "export", "backends", "serve", "bench", "eval", "chat"}
"""Rooms that know nothing of the others in their row."""
HEAVY = {"torch", "transformers", "modelopt", "onnx", "onnxruntime", "gguf", "huggingface_hub",
         "tensorrt_rtx_bindings", "cuda"}  # fmt: skip
HEAVY_ROOMS = {"quantize", "export", "backends", "eval"}
HEAVY_LEAVES = {"checkpoint/gguf.py", "checkpoint/gguf_file.py", "checkpoint/hub.py"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether that happens when the importing one is loaded."""

    name: str
    at_load: bool
    line: int


def imports(path: Path) -> Iterator[Import]:
    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_load, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = str(node.module)
            for alias in node.names:
                # `from edgekit import engine` imports a room as well
                inner = f"{module}.{alias.name}" if module == "edgekit" else module
                yield Import(inner, at_load, node.lineno)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        is_body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load and not is_typing and not is_body)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


module = pytest.mark.parametrize("path", MODULES, ids=relative)


@module
def test_a_room_imports_only_from_its_own_row_and_those_above(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not [found for found in imports(path) if found.name.startswith("edgekit.")]
        return
    assert room in ROW, f"give `{room}` a row"
    for found in imports(path):
        parts = found.name.split(".")
        if parts[0] != "edgekit" or parts[1] in (room, "__version__"):
            continue
        where = f"{relative(path)}:{found.line} imports {found.name}"
        assert parts[1] in ROW, where
        assert ROW[parts[1]] <= ROW[room], where
        if room in STRANGERS and ROW[parts[1]] == ROW[room]:
            # the types of the contract are everybody's
            assert found.name == "edgekit.backends.base", where


@module
def test_only_the_command_line_imports_click(path: Path) -> None:
    if room_of(path) != "cli":
        assert "click" not in {found.name.partition(".")[0] for found in imports(path)}


@module
def test_large_libraries_are_imported_inside_functions_of_few_rooms(path: Path) -> None:
    for found in imports(path):
        if found.name.partition(".")[0] not in HEAVY:
            continue
        where = f"{relative(path)}:{found.line} imports {found.name}"
        assert not found.at_load, where
        assert room_of(path) in HEAVY_ROOMS or relative(path) in HEAVY_LEAVES, where


@module
def test_a_module_is_of_a_size_that_can_be_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@module
def test_nothing_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_print = isinstance(node, ast.Name) and node.id == "print"
        assert not is_print, f"{relative(path)}:{getattr(node, 'lineno', 0)}"


_LOADED = """
import contextlib, io, json, sys
from edgekit.cli import main
heavy = set(json.loads(sys.argv[1]))
report = {}
for arguments in json.loads(sys.argv[2]):
    before = heavy & set(sys.modules)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(arguments, prog_name="edgekit")
        except SystemExit as exc:
            assert exc.code in (0, 3), (arguments, exc.code)
    assert output.getvalue(), arguments
    report[" ".join(arguments)] = sorted(heavy & set(sys.modules) - before)
print(json.dumps(report))
"""


def loaded_by(commands: list[list[str]], heavy: set[str], directory: Path) -> dict[str, list[str]]:
    """What each command line, one after the other in a fresh process, loads of `heavy`."""
    arguments = [json.dumps(sorted(heavy)), json.dumps(commands)]
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, list[str]] = json.loads(done.stdout)
    return report


RUNTIME = {"chat", "serve", "bench", "eval"}
"""Commands whose modules compute: they may load numpy, nothing larger."""


def test_commands_that_run_nothing_load_no_large_library_and_no_numpy(tmp_path: Path) -> None:
    commands = [["--help"], ["--version"], ["plan"], ["plan", "--json"], ["engines", "--json"],
                ["profiles"]]  # fmt: skip
    commands += [[name, "--help"] for name in _COMMANDS if name not in RUNTIME]
    commands += [["engines", "list", "--help"], ["profiles", "show", "--help"]]
    report = loaded_by(commands, HEAVY | {"numpy", "tokenizers", "jinja2"}, tmp_path)
    assert report == {" ".join(command): [] for command in commands}


def test_the_help_of_the_other_commands_loads_no_large_library(tmp_path: Path) -> None:
    commands = [[name, "--help"] for name in _COMMANDS if name in RUNTIME]
    report = loaded_by(commands, HEAVY, tmp_path)
    assert report == {" ".join(command): [] for command in commands}


def test_chat_with_an_engine_loads_neither_torch_nor_transformers(
    run_cli: Callable[..., Result], make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    model = make_tiny("llama")
    options = ["--model", model, "--store", store, "--precision", "fp16", "--context", "256"]
    built = run_cli("build", *options, "--calibration-tokens", "32")
    assert built.exit_code == 0, built.stderr
    command = ["chat", "--store", str(store), "--prompt", "hello", "--max-new-tokens", "4"]
    heavy = HEAVY - {"onnxruntime"}
    assert loaded_by([[*command, "--json"]], heavy, tmp_path) == {
        " ".join([*command, "--json"]): []
    }


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_help_of_a_command_ends_with_an_example(
    run_cli: Callable[..., Result], name: str
) -> None:
    result = run_cli(name, "--help")
    assert result.exit_code == 0
    assert f"Example: edgekit {name}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_readme_names_every_command(name: str) -> None:
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\bedgekit {name}\b", text)


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_group_lists_every_command_with_what_it_does(
    run_cli: Callable[..., Result], name: str
) -> None:
    text = run_cli("--help").stdout
    assert re.search(rf"^  {name} +{re.escape(_COMMANDS[name][:30])}", text, re.MULTILINE)


def all_errors() -> list[type[errors.EdgekitError]]:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in classes if issubclass(kind, errors.EdgekitError)]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: str(kind.__name__))
def test_an_error_stands_in_the_tree_with_its_exit_code(kind: type[errors.EdgekitError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__doc__
    [line] = re.findall(rf"^.*\b{kind.__name__}\b.*$", errors.__doc__, re.MULTILINE)
    said = re.search(r" (\d+)  ", line)
    base = kind.__base__
    assert base is not None
    # a row without a number has that of the row it hangs from
    assert kind.exit_code == (int(said[1]) if said else getattr(base, "exit_code", None))


def test_exit_codes_are_those_that_scripts_rely_on() -> None:
    codes = {kind.__name__: kind.exit_code for kind in all_errors()}
    assert codes["InputError"] == 2
    assert codes["BudgetError"] == 3
    assert codes["BackendError"] == 4
    assert codes["EngineError"] == 5
    assert set(codes.values()) == {1, 2, 3, 4, 5}
