"""What a wheel holds, and that edgekit finds it there."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgekit import __version__

pytestmark = pytest.mark.slow  # builds a wheel

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests lie beside no source tree")
    out: Path = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out)]
    if find_spec("hatchling") is not None:
        command.append("--no-build-isolation")
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode and find_spec("hatchling") is None and "hatchling" in done.stderr:
        pytest.skip("hatchling is not installed and cannot be downloaded")
    assert done.returncode == 0, done.stderr
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer does."""
    path: Path = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(path)
    return path


def test_the_wheel_is_named_after_package_and_version(wheel: Path) -> None:
    assert wheel.name == f"edgekit-{__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_package_and_nothing_beside_it(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()}
    assert names == {"edgekit", f"edgekit-{__version__}.dist-info"}
    assert not list(installed.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("source", "inside"),
    [
        ("profiles", "edgekit/profiles"),
        ("edgekit/models", "edgekit/models"),
        ("edgekit/quantize/data", "edgekit/quantize/data"),
        ("edgekit/eval/data", "edgekit/eval/data"),
        ("edgekit/serve/page", "edgekit/serve/page"),
    ],
)
def test_data_is_in_the_wheel(installed: Path, source: str, inside: str) -> None:
    data = [path for path in (ROOT / source).iterdir() if path.is_file() and path.suffix != ".py"]
    assert data
    for path in data:
        assert (installed / inside / path.name).read_bytes() == path.read_bytes()


def test_every_module_is_in_the_wheel(installed: Path) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgekit").rglob("*.py")}
    assert modules == {path.relative_to(installed).as_posix() for path in installed.rglob("*.py")}


_READ = """
import json, sys
import edgekit
from edgekit.models import list_models
from edgekit.profile import find_profile, list_profiles
from edgekit.quantize.calibration import data_digest
json.dump({
    "package": edgekit.__file__,
    "profiles": {name: str(path) for name, path in list_profiles().items()},
    "cpu": find_profile("cpu").summary,
    "models": sorted(list_models()),
    "data": data_digest(),
}, sys.stdout)
"""


def test_an_installed_edgekit_finds_its_profiles_models_and_texts(
    installed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _READ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["package"] == str(installed / "edgekit" / "__init__.py")
    assert found["profiles"] == {
        path.stem: str(installed / "edgekit" / "profiles" / path.name)
        for path in sorted((ROOT / "profiles").glob("*.toml"))
    }
    assert found["cpu"]
    assert found["models"] == sorted(p.stem for p in (ROOT / "edgekit" / "models").glob("*.toml"))


def test_an_installed_edgekit_plans(installed: Path, tmp_path: Path) -> None:
    code = "from edgekit.cli import main; main()"
    command = ["plan", "--model", "SmolLM2-135M-Instruct", "--context", "512", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "SmolLM2-135M-Instruct"
