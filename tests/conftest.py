"""What holds for every test: no hub, few threads, and in CI no skip for something absent."""

import os
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]

# Small models are quickest on few threads, and the tests share the machine. Read by torch, its
# libraries and Numba when they are first imported, which is later than this.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

_IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run may be asked for besides its result."""
    parser.addoption("--pictures", help="folder for pictures of the dashboard")


@pytest.fixture(scope="session", autouse=True)
def _cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests and what they start, and not the user's: a model is calibrated once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache-home")))
        patch.delenv("CACHE_DIRECTORY", raising=False)
        yield


def _has_cuda() -> bool:
    import torch  # noqa: PLC0415 - only where a test asks for a GPU

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("no CUDA device")


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that keeps its reason."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> pytest.TestReport:  # type: ignore[misc]
    """In CI a skipped test has failed, a GPU aside."""
    report: pytest.TestReport = yield
    if _IN_CI and item.get_closest_marker("gpu") is None:
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> pytest.CollectReport:  # type: ignore[misc]
    """In CI a file that skips itself has failed."""
    report: pytest.CollectReport = yield
    if _IN_CI:
        _refuse(report)
    return report
