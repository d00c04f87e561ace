"""The generated pages are those that the code makes now."""

import runpy
from pathlib import Path
from types import ModuleType

import anyengine
import anyengine.backend
import anyengine.sync
import anyengine.testing
import pytest

ROOT = Path(__file__).parents[2]
MAKE_DOCS = runpy.run_path(str(ROOT / "tools" / "make_docs.py"))
PAGES = MAKE_DOCS["make"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_committed_page_is_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page], "run: python tools/make_docs.py"


def test_no_page_is_left_over() -> None:
    assert sorted((ROOT / "docs" / "api").iterdir()) == sorted(page for page in PAGES if page.parent.name == "api")


@pytest.mark.parametrize("module", [anyengine, anyengine.backend, anyengine.sync, anyengine.testing])
def test_every_public_name_is_on_a_page(module: ModuleType) -> None:
    # hookimpl is pluggy's marker; docs/hooks.md shows its use.
    assert set(module.__all__) - {"hookimpl"} - MAKE_DOCS["places"]().keys() == set()


def test_no_sphinx_markup_is_left() -> None:
    assert [page.name for page, text in PAGES.items() if ":class:" in text or ":meth:" in text or ">`_" in text] == []
