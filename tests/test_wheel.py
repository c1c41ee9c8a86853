"""What is installed is complete: both packages, their types, the embedded model."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from cli.command import clean_environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel_file).namelist())


@pytest.mark.parametrize(
    "file",
    [
        "adaptive_kv/py.typed",
        "adaptive_kv/cli/main.py",
        "adaptive_kv/demo/model/config.json",
        "adaptive_kv/demo/model/model.safetensors",
        "adaptive_kv/demo/model/tokenizer.json",
        "adaptive_kv_policies/ladder.py",
        "adaptive_kv_policies/py.typed",
    ],
)
def test_the_wheel_has(wheel: set[str], file: str) -> None:
    assert file in wheel


def test_every_file_of_the_package_is_in_the_wheel(wheel: set[str]) -> None:
    files = [file for file in (ROOT / "adaptive_kv").rglob("*") if file.is_file()]
    names = {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    assert names <= wheel


def test_the_wheel_has_nothing_else(wheel: set[str]) -> None:
    tops = {name.split("/", 1)[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"adaptive_kv", "adaptive_kv_policies"}


@pytest.fixture(scope="module")
def alone(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its dependencies, but for torch, and without these sources.

    Of the tests' own environment only what was installed is linked into it.
    """
    venv = tmp_path_factory.mktemp("alone") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python3.*/site-packages")
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if found.suffix != ".pth" and not found.name.startswith(("adaptive_kv", "torch")):
            (packages / found.name).symlink_to(found)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel_file)], check=True)
    return venv


def run(venv: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, environment = str(venv / "bin/adaptive-kv"), clean_environment(home)
    return subprocess.run(
        [command, *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_installed_alone_it_works(alone: Path, tmp_path: Path) -> None:
    """Once torch is there, which it asks for in a line, with the status of bad configuration."""
    listed = run(alone, tmp_path, "policy", "list")
    assert "adaptive_kv_policies.ladder:Ladder" in listed.stdout, listed.stderr
    generate = ("generate", "def main", "--raw", "--device", "cpu", "--max-tokens", "4")
    without = run(alone, tmp_path, *generate)
    assert (without.returncode, without.stdout) == (78, "")
    assert "adaptive-kv: torch is not installed; " in without.stderr.splitlines()[-1]
    assert "Traceback" not in without.stderr
    (packages,) = alone.glob("lib/python3.*/site-packages")
    for found in Path(sysconfig.get_path("purelib")).glob("torch*"):
        (packages / found.name).symlink_to(found)
    done = run(alone, tmp_path, *generate)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
