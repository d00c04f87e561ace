"""Our packages come from where the caller's copies came from, or from where the caller says; never by a bare name."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from anyengine.environments.sources import install_arguments, own_source
from anyengine.errors import EnvironmentFailed, InvalidConfig

ROOT = Path(__file__).parents[3]
VERSION = importlib.metadata.version("anyengine")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """``installed(origin)``: a package ``some-package`` 1.0 with that ``direct_url.json``."""

    def install(origin):
        info = tmp_path / "some_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
        if origin is not None:
            (info / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_what_is_editable_here_is_editable_there():
    assert install_arguments("reference") == ("-e", str(ROOT / "sdk"), "-e", str(ROOT / "plugins" / "reference"))


def test_packages_of_ours_that_a_plugin_needs_come_along():
    parts = ("sdk", "plugins/server", "plugins/vllm")
    assert install_arguments("vllm") == tuple(word for part in parts for word in ("-e", str(ROOT / part)))
    assert install_arguments("vllm", str(ROOT)) == tuple(str(ROOT / part) for part in parts)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"url": "file:///usr", "dir_info": {}}, ("/usr",)),
        ({"url": "file:///usr", "dir_info": {"editable": True}}, ("-e", "/usr")),
        (
            {
                "url": "https://example.org/x.git",
                "subdirectory": "sdk",
                "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "main"},
            },
            ("some-package @ git+https://example.org/x.git@abc#subdirectory=sdk",),
        ),
        (
            {"url": "https://example.org/x.whl", "archive_info": {"hashes": {"sha256": "12"}}},
            ("some-package @ https://example.org/x.whl#sha256=12",),
        ),
    ],
)
def test_the_origin_of_a_package(installed, origin, expected):
    installed(origin)
    assert tuple(own_source("some-package")) == expected


def test_a_folder_with_a_space_is_found(installed, tmp_path):
    folder = tmp_path / "a b%20c"
    folder.mkdir()
    installed({"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert own_source("some-package") == ("-e", str(folder))


def test_a_package_from_an_index_is_not_taken_from_there_unasked(installed):
    installed(None)
    with pytest.raises(InvalidConfig, match=r"some-package 1.0 was installed here from a package index.*--from index"):
        own_source("some-package")


def test_an_origin_that_is_gone(installed):
    installed({"url": "file:///no/such/folder", "dir_info": {}})
    with pytest.raises(EnvironmentFailed, match="from /no/such/folder, which is gone; say --from"):
        own_source("some-package")


def test_the_index_has_to_be_asked_for_and_gives_the_versions_that_are_here():
    expected = (f"anyengine=={VERSION}", f"anyengine-reference=={importlib.metadata.version('anyengine-reference')}")
    assert install_arguments("reference", "index") == expected
    assert install_arguments("no-such-engine", "index") == (f"anyengine=={VERSION}", "anyengine-no-such-engine")


def test_a_checkout():
    assert install_arguments("reference", str(ROOT)) == (str(ROOT / "sdk"), str(ROOT / "plugins" / "reference"))


def test_the_newest_wheels_of_a_folder(tmp_path):
    for name in ("anyengine-0.9.0", "anyengine-0.10.0", "anyengine_reference-1.0", "other-9.0"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    (tmp_path / "nonsense.whl").touch()
    assert install_arguments("reference", str(tmp_path)) == (
        str(tmp_path / "anyengine-0.10.0-py3-none-any.whl"),
        str(tmp_path / "anyengine_reference-1.0-py3-none-any.whl"),
    )


def test_what_a_folder_does_not_have_comes_from_where_ours_did(tmp_path):
    """A plugin's own repository has no SDK."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "anyengine-own"\n')
    assert install_arguments("own", str(tmp_path)) == ("-e", str(ROOT / "sdk"), str(tmp_path))


@pytest.mark.parametrize("engine", ["-r", "a b", "A", "", "../x", "x;y", "x @ file"])
def test_an_engine_whose_name_is_none_is_never_given_to_pip(engine):
    with pytest.raises(InvalidConfig, match="is no engine's name"):
        install_arguments(engine, "index")
