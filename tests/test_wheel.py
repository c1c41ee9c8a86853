"""What is installed is complete: both packages, their types, the embedded model."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return set(zipfile.ZipFile(file).namelist())


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
