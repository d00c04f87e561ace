"""Discovery: one broken plugin is listed with its reason and harms no other."""

import sys

import pytest
from anyengine import Engine, find_engines
from anyengine.errors import InvalidConfig, PluginError, UnknownEngine
from anyengine.plugins import find_engine

GOOD = """
from msgspec.structs import replace
from anyengine.testing import ScriptedPlugin
plugin = ScriptedPlugin(lambda request: [], "nowhere", name="good")
other = ScriptedPlugin(lambda request: [], "nowhere", name="another-name")
broken = object()
class Raising(ScriptedPlugin):
    def describe(self):
        raise RuntimeError("no driver")
raising = Raising(lambda request: [], "nowhere")
class IllTyped(ScriptedPlugin):
    def describe(self):
        return replace(super().describe(), engine_version=3.0)
ill_typed = IllTyped(lambda request: [], "nowhere")
class ReadsPickles(ScriptedPlugin):
    def describe(self):
        return replace(super().describe(), weights=("*.safetensors", "*.pt"))
reads_pickles = ReadsPickles(lambda request: [], "nowhere")
class Undescribed(ScriptedPlugin):
    def describe(self):
        return {"name": "good"}
undescribed = Undescribed(lambda request: [], "nowhere")
extension = object()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put packages with real entry points on the path."""
    (tmp_path / "some_engines.py").write_text(GOOD)
    (tmp_path / "bad_import.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(distribution: str, **points: str) -> None:
        info = tmp_path / f"{distribution}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[anyengine.engines]", *lines]))

    yield add
    for name in ("some_engines", "bad_import"):
        sys.modules.pop(name, None)


def test_a_working_plugin_is_found_with_its_package(install):
    install("good-pkg", good="some_engines:plugin")
    found = find_engines()["good"]
    assert (found.distribution, found.broken, found.description.name) == ("good-pkg 1.2.3", None, "good")
    assert find_engine("good") is found.plugin


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("bad_import:plugin", "No module named 'a_library_that_is_not_there'"),
        ("some_engines:missing", "AttributeError"),
        ("some_engines:broken", "is a object, not an EnginePlugin instance"),
        ("some_engines:raising", "RuntimeError: no driver"),
        ("some_engines:ill_typed", "describe gave 3.0 as engine_version: expected str | null, got float"),
        ("some_engines:reads_pickles", "describe gave '*.pt' as weights: names pickled weights"),
        ("some_engines:undescribed", "describe returned a dict, not an EngineDescription"),
        ("some_engines:other", "describes itself as 'another-name'"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_harms_no_other(install, target, reason):
    install("good-pkg", good="some_engines:plugin")
    install("bad-pkg", bad=target)
    found = find_engines()
    assert (found["good"].broken, found["bad"].plugin) == (None, None)
    assert reason in found["bad"].broken
    with pytest.raises(PluginError, match="bad-pkg") as caught:
        find_engine("bad")
    assert (caught.value.engine, reason in str(caught.value)) == ("bad", True)


def test_two_plugins_of_one_name_are_both_refused(install):
    install("first", good="some_engines:plugin")
    install("second", good="some_engines:plugin")
    assert "first 1.2.3, second 1.2.3" in find_engines()["good"].broken
    with pytest.raises(PluginError, match="several packages"):
        find_engine("good")


def test_an_unknown_engine_says_what_is_installed(install):
    install("good-pkg", good="some_engines:plugin")
    with pytest.raises(UnknownEngine, match="anyengine-nothing") as caught:
        find_engine("nothing")
    assert "good" in caught.value.available
    with pytest.raises(UnknownEngine, match="did you mean 'good'") as caught:
        find_engine("goood")
    assert "anyengine-goood" not in caught.value.message


@pytest.mark.parametrize("name", ["nothing", "refernce"])
async def test_of_an_engine_that_no_plugin_is_named_after_no_environment_can_be_made_and_none_is_offered(name):
    from anyengine.environments.create import create_environment

    with pytest.raises(InvalidConfig, match=f"anyengine-{name} is not installed here"):
        create_environment(name)
    with pytest.raises(UnknownEngine) as caught:
        await Engine.load(name)
    assert "env create" not in caught.value.message


async def test_an_unknown_extension_says_what_is_installed():
    with pytest.raises(InvalidConfig, match="tracing") as caught:
        await Engine.load("reference", extensions=["nothing"])
    assert caught.value.field == "extensions"


async def test_a_misspelt_extension_is_told_which_was_meant():
    with pytest.raises(InvalidConfig, match=r"named 'tracin'; did you mean 'tracing'\? Installed are: "):
        await Engine.load("reference", extensions=["tracin"])


async def test_an_extension_without_hooks_is_refused():
    with pytest.raises(InvalidConfig, match="implements no hook"):
        await Engine.load("reference", extensions=[object()])
