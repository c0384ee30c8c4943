"""What holds for all tests.

``SBXPROXY_ENGINE=0 pytest`` runs them with the engine off where they don't ask for it. With ``SBX_REQUIRE`` set a skip is a failure,
unless the test takes root and this isn't.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

from sbxproxy.settings import Settings
from support.clock import make_patient
from support.programs import FOR_ROOT, takes_root

# How long an example takes is the machine's: its first one may import what the others need, or meet a moment without a processor.
settings.register_profile("sbxproxy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sbxproxy")

if os.environ.get("SBXPROXY_ENGINE") == "0":
    Settings.__init__.__kwdefaults__["engine"] = False


@pytest.fixture
def root() -> None:
    """For tests that take root."""
    takes_root()


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """A clock that jumps only when sockets and threads have been quiet for a while too."""
    return make_patient()


def _is_for_root(error: BaseException | None) -> bool:
    """Tell why a test was skipped; a skip in an asynchronous test is followed by another, which has lost the reason."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_for_root, error.exceptions))
    return isinstance(error, pytest.skip.Exception) and (error.msg == FOR_ROOT or _is_for_root(error.__context__))


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"SBX_REQUIRE is set, and this was skipped: {why}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("SBX_REQUIRE"):
        if call.excinfo is None or not _is_for_root(call.excinfo.value):
            _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and os.environ.get("SBX_REQUIRE"):
        _fail(report)
    return report
