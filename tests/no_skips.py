"""A plugin of pytest (``-p no_skips``): what is skipped has failed, where all that tests need is meant to be installed."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("\nwhat was skipped counts as failed here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
