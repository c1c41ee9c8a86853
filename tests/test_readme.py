"""What the README shows is what happens."""

import re
import subprocess
import tomllib
from pathlib import Path

import httpx
from cli.command import COMMAND, clean_environment
from cli.test_serve import serving

from adaptive_kv.config import load_settings
from adaptive_kv.engine.families import FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DEFAULT_URL = "http://127.0.0.1:8787"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_requests_are_answered(tmp_path: Path) -> None:
    """The curl line and the OpenAI client, as they stand, but for the port."""
    curl = next(block for block in blocks("sh") if block.startswith("curl"))
    program = next(block for block in blocks("python") if "OpenAI(" in block)
    body = re.search(r"-d '(.*?)'", curl, re.DOTALL)
    path = re.search(rf"{DEFAULT_URL}(\S+)", curl)
    assert body is not None
    assert path is not None
    with serving(tmp_path) as served:
        answer = httpx.post(
            served.url + path[1],
            content=body[1],
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        assert answer.status_code == 200
        ran = subprocess.run(
            [
                str(Path(COMMAND).with_name("python")),
                "-c",
                program.replace(DEFAULT_URL, served.url),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(tmp_path),
        )
    assert ran.returncode == 0, ran.stderr
    assert "tokens_by_mode" in ran.stdout


def test_its_policy_passes_the_check(tmp_path: Path) -> None:
    """`adaptive-kv policy check` likes the policy that a newcomer copies."""
    policy = next(block for block in blocks("python") if "class Thrifty" in block)
    (tmp_path / "my_policy.py").write_text(policy)
    command = next(block for block in blocks("sh") if "policy check" in block).split()
    ran = subprocess.run(
        [COMMAND, *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=clean_environment(tmp_path),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_its_configuration_is_accepted(tmp_path: Path) -> None:
    """Every key of the example exists."""
    (example,) = blocks("toml")
    assert tomllib.loads(example)
    file = tmp_path / "adaptive-kv.toml"
    file.write_text(example)
    assert load_settings(file).memory.floor == 512 * 2**20


def test_it_names_the_families_that_are_served() -> None:
    """No more and no fewer."""
    section = README.split("## What is served")[1].split(", from safetensors")[0]
    listed = " ".join(re.sub(r"\(.*?\)", "", section, flags=re.DOTALL).split())
    named = {name.strip() for name in re.split(r", | and ", listed)}
    assert named == {family.removesuffix("_text") for family in FAMILIES}


def test_its_links_lead_somewhere() -> None:
    """Every relative link and picture is in the repository."""
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
