"""How the SDK's command line finds commands of other packages."""

from importlib.metadata import EntryPoint

import pytest
from anyengine.cli import main, plugins
from click.testing import CliRunner


def _points(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "anyengine.commands"
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


def test_a_command_of_ours_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    _points(monkeypatch)
    result = CliRunner().invoke(main, ["conformance", "list"])
    assert result.exit_code == 2
    assert "pip install anyengine-conformance" in result.output


@pytest.mark.parametrize("value", ["no_such_module:command", "json:loads"])
def test_a_broken_command_says_so_when_it_is_called_and_harms_no_other(monkeypatch: pytest.MonkeyPatch, value: str):
    _points(monkeypatch, EntryPoint("odd", value, "anyengine.commands"))
    assert CliRunner().invoke(main, ["engines"]).exit_code == 0
    assert "Broken: " in CliRunner().invoke(main, ["--help"]).output
    result = CliRunner().invoke(main, ["odd", "--any", "thing"])
    assert result.exit_code == 1
    assert "the command 'odd' is broken" in result.output


def test_no_package_takes_a_command_of_the_sdks(monkeypatch: pytest.MonkeyPatch):
    _points(monkeypatch, EntryPoint("engines", "no_such_module:command", "anyengine.commands"))
    assert CliRunner().invoke(main, ["engines"]).exit_code == 0
