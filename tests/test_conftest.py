"""In CI nothing is skipped for being absent."""

from pathlib import Path

import pytest

SUITE = """
import pytest

def test_needs_something():
    pytest.skip("mosquitto is absent")

@pytest.mark.skipif(True, reason="not on Tuesdays")
def test_marked(): ...

@pytest.mark.gpu
def test_gpu():
    pytest.skip("only this one may")

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise ValueError

def test_good():
    assert True
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text("utf-8"))
    pytester.makeini("[pytest]\nmarkers = gpu")
    return pytester


def test_skips_fail_in_ci_except_for_a_gpu(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    suite.makepyfile(SUITE)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio")
    result.assert_outcomes(failed=1, errors=1, skipped=1, xfailed=1, passed=1)
    result.stdout.fnmatch_lines(["*CI does not allow: *mosquitto is absent*"])


def test_a_file_that_skips_itself_fails_in_ci(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    suite.makepyfile("import pytest\npytest.importorskip('no_such_module_anywhere')")
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*CI does not allow: *no_such_module_anywhere*"])


def test_skips_are_skips_elsewhere(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    suite.makepyfile(SUITE)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio")
    result.assert_outcomes(skipped=3, xfailed=1, passed=1)
