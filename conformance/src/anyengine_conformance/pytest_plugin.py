"""The suite's face under pytest: options, fixtures, and outcomes with their names.

It is loaded in every run of pytest where the package is installed, so it imports nothing heavy by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from anyengine_conformance.check import Check
    from anyengine_conformance.results import Result
    from anyengine_conformance.runner import Runner
    from anyengine_conformance.settings import Settings

_PROPERTY = "anyengine-conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options of ``anyengine conformance run`` that make sense here."""
    group = parser.getgroup("anyengine conformance")
    group.addoption("--engine", help="name of the engine under test")
    group.addoption("--engine-model", help="its model: folder, hub id, or a name that the engine brings")
    group.addoption("--conformance-config", type=Path, help="conformance.toml, instead of --engine")
    group.addoption("--conformance-xfails", type=Path, help="xfails.toml")
    group.addoption("--conformance-only", action="append", default=[], help="family or check; may be repeated")
    group.addoption("--conformance-profile", choices=("certify", "explore"), default="certify")
    group.addoption("--conformance-report", type=Path, help="write the report as JSON")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a check, grouped by the configuration that they run on."""
    if "conformance_check" not in metafunc.fixturenames:
        return
    from anyengine_conformance.runner import in_order, select  # noqa: PLC0415 see above

    checks = in_order(select(metafunc.config.getoption("--conformance-only") or ()))
    metafunc.parametrize("conformance_check", checks, ids=[made.id for made in checks])


@pytest.fixture(scope="session")
def conformance_settings(pytestconfig: pytest.Config) -> Settings:
    """The engine under test; a plugin's own tests override it."""
    from anyengine_conformance.settings import Settings, read_settings  # noqa: PLC0415 see above

    file, engine = pytestconfig.getoption("--conformance-config"), pytestconfig.getoption("--engine")
    if file is not None:
        return read_settings(file)
    if engine is None:
        pytest.fail("name the engine with --engine NAME, or give --conformance-config conformance.toml", pytrace=False)
    model = pytestconfig.getoption("--engine-model")
    return Settings(engine=engine, config={} if model is None else {"model": model})


@pytest.fixture(scope="session")
def conformance_runner(conformance_settings: Settings, pytestconfig: pytest.Config) -> Generator[Runner]:
    """Runs the checks; holds the loaded engine."""
    from anyengine_conformance.runner import Runner  # noqa: PLC0415 see above
    from anyengine_conformance.settings import read_expected_failures  # noqa: PLC0415

    xfails = pytestconfig.getoption("--conformance-xfails") or conformance_settings.xfails
    runner = Runner(
        conformance_settings,
        profile=pytestconfig.getoption("--conformance-profile") or "certify",
        expected={} if xfails is None else read_expected_failures(xfails),
    )
    try:
        runner.open()
        yield runner
    finally:
        runner.close()


@pytest.fixture(scope="session")
def conformance_results(conformance_runner: Runner, pytestconfig: pytest.Config) -> Generator[list[Result]]:
    """What was found so far; written to ``--conformance-report`` in the end."""
    from anyengine_conformance.check import all_checks  # noqa: PLC0415 see above
    from anyengine_conformance.report import write_report  # noqa: PLC0415

    results: list[Result] = []
    yield results
    file = pytestconfig.getoption("--conformance-report")
    if file is not None:
        places = {made.id: place for place, made in enumerate(all_checks())}
        results.sort(key=lambda result: places[result.id])
        write_report(conformance_runner.report(results, complete=len(results) == len(places)), file)


@pytest.fixture
def conformance_run(
    conformance_runner: Runner, conformance_results: list[Result], record_property: Callable[[str, object], None]
) -> Callable[[Check], None]:
    """Runs a check, and fails with what a backend's author needs to know."""
    from anyengine_conformance.progress import details  # noqa: PLC0415 see above

    def run(made: Check) -> None:
        result = conformance_runner.run_check(made)
        conformance_results.append(result)
        record_property(_PROPERTY, result.outcome)
        if not result.good:
            pytest.fail("\n".join(details(result)), pytrace=False)

    return run


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, Any] | None:
    """Name what is neither passed nor failed."""
    # Reports of modules that cannot be imported come here too, and have no properties.
    properties: list[tuple[str, object]] = getattr(report, "user_properties", [])
    outcome = dict(properties).get(_PROPERTY)
    if report.when != "call" or not report.passed or outcome in (None, "passed"):
        return None
    return str(outcome), str(outcome)[0], (str(outcome).upper(), {"yellow": True})
