"""The tutorial for policy authors does what it shows: its files are written, its commands run."""

import os
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import httpx
import pytest
from cli.command import COMMAND, clean_environment
from cli.test_serve import serving

from adaptive_kv.config import load_settings
from adaptive_kv.loader import list_policies, load_policy

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "policies.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for named, text in BLOCKS if named == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would have saved every file that the page shows, and the traces."""
    folder = tmp_path_factory.mktemp("tutorial")
    for text in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", text)
        assert name is not None, text
        (folder / name[1]).write_text(text)
    for trace in (ROOT / "docs" / "traces").glob("*.jsonl.gz"):
        shutil.copy(trace, folder)
    return folder


def run(command: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(COMMAND).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder,
        env=clean_environment(folder, {"PATH": path}),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def same(shown: str, said: str) -> bool:
    """Whether what is said is what is shown, where `...` stands for anything."""
    pattern = re.sub(r"[\[\]*?]", "?", shown.strip()).replace("...", "*")
    return fnmatchcase(re.sub(r" +", " ", said.strip()), re.sub(r" +", " ", pattern))


def test_every_console_shows_what_is_said(folder: Path) -> None:
    """In the order of the page, in one folder."""
    num_run = 0
    for text in blocks("console"):
        for part in text.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.partition("\n")
            said = run(command, folder)
            assert same(shown, said), f"{command}\n{said}"
            num_run += 1
    assert num_run >= 8


def test_it_runs_after_its_first_eleven_lines(folder: Path) -> None:
    first = blocks("python")[0]
    assert len(first.splitlines()) <= 11
    serve, ask = blocks("sh")
    policy = re.search(r"serve --policy (\S+)", serve)
    shown = re.search(r'"policy": \{"name": "([^"]+)", "status": "([^"]+)"', ask)
    assert policy is not None
    assert shown is not None
    config = folder / "patient.toml"  # however busy the machine is
    config.write_text("[policy]\ndeadline_s = 60\n")
    with serving(folder, "--config", str(config), "--policy", policy[1]) as served:
        answer = httpx.post(f"{served.url}/v1/completions", json={"prompt": "a", "max_tokens": 8})
        assert answer.status_code == 200
        status = httpx.get(f"{served.url}/status").json()["policy"]
    assert (status["name"], status["status"]) == (shown[1], shown[2])


def test_its_configuration_is_accepted(tmp_path: Path) -> None:
    text = next(text for text in blocks("toml") if "[policy]" in text)
    file = tmp_path / "adaptive-kv.toml"
    file.write_text(text)
    assert load_settings(file).policy.options == {"tight": 0.8, "roomy": 0.5}


def test_every_shipped_policy_is_named_with_all_its_options() -> None:
    rows = dict(re.findall(r"^\| \[`(\w+)`\].*\| ([^|]*) \|$", PAGE, re.MULTILINE))
    shipped = [found for found in list_policies() if "adaptive_kv_policies" in found.origin]
    assert rows.keys() == {found.name for found in shipped}
    for name, told in rows.items():
        policy, _ = load_policy(name, {})
        options = type(policy).__init__.__annotations__.keys() - {"return"}
        assert set(re.findall(r"`(\w+)`", told)) == options


def test_its_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE)
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
