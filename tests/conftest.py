"""What holds for all tests.

``SBXPROXY_ENGINE=0 pytest`` runs them with the engine off where they don't ask for it. With ``SBX_REQUIRE`` set a skip is a failure,
unless the test takes root and this isn't.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib import import_module
from typing import TypeVar

import pytest

from sbxproxy.sandbox.doors import BEHIND
from sbxproxy.settings import Settings
from support.programs import FOR_ROOT, takes_root

if os.environ.get("SBXPROXY_ENGINE") == "0":
    Settings.__init__.__kwdefaults__["engine"] = False


for module in (*BEHIND, "sbxproxy.dns.reading"):
    import_module(module)  # which a proxy would do in a thread, and no test's clock waits for threads


@pytest.fixture
def root() -> None:
    """For tests that take root. A fixture, since of a skip in an asynchronous test no reason is left."""
    takes_root()


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _required(report: Report) -> Report:
    if os.environ.get("SBX_REQUIRE") and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if why != f"Skipped: {FOR_ROOT}":
            report.outcome = "failed"
            report.longrepr = f"SBX_REQUIRE is set, and this was skipped: {why}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _required((yield))
