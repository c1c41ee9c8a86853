"""What is in the Debian package. That it works is shown where it is installed: tests/boot."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from build_deb import FILES, build, version


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    return build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def members(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tarfile.TarInfo]:
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    file = tmp_path_factory.mktemp("tar") / "tar"
    file.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    with tarfile.open(file) as opened:
        return {member.name.removeprefix("./").rstrip("/"): member for member in opened}


def field(package: Path, name: str) -> str:
    command = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_its_name_says_what_it_is(package: Path) -> None:
    assert package.name == f"adaptive-kv_{version()}_all.deb"
    assert field(package, "Version") == version()
    assert "python3-venv" in field(package, "Depends")


def test_everything_is_root_s_and_nobody_else_may_write_it(
    members: dict[str, tarfile.TarInfo],
) -> None:
    assert {(member.uname, member.gname) for member in members.values()} == {("root", "root")}
    modes = {member.mode for member in members.values() if not member.issym()}
    assert modes == {0o644, 0o755}


def test_it_holds_the_wheel_the_lock_and_the_units_but_no_torch(
    members: dict[str, tarfile.TarInfo], package: Path
) -> None:
    assert set(FILES.values()) <= members.keys()
    wheels = [name for name in members if name.endswith(".whl")]
    assert wheels == [f"usr/lib/adaptive-kv/adaptive_kv-{version()}-py3-none-any.whl"]
    assert package.stat().st_size < 16 * 2**20


def test_a_changed_configuration_is_kept_through_an_upgrade(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--control", str(package), str(tmp_path)], check=True)
    assert (tmp_path / "conffiles").read_text() == "/etc/adaptive-kv/adaptive-kv.toml\n"
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", str(tmp_path / script)], check=True)


def test_the_same_sources_give_the_same_package(package: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == package.read_bytes()
