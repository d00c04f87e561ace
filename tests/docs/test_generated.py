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


def test_the_tables_of_quantised_checkpoints_are_up_to_date():
    tool = runpy.run_path(str(ROOT / "tools" / "make_quantization_docs.py"))
    text = tool["TARGET"].read_text(encoding="utf-8")
    assert text == tool["page"](text), "run: python tools/make_quantization_docs.py"


def test_what_was_measured_is_declared():
    """A row of the results that no cell of the matrix shows would be a figure that nobody finds."""
    tool = runpy.run_path(str(ROOT / "tools" / "make_quantization_docs.py"))
    for row in tool["results"]():
        columns = [name for name, (engine, *_) in tool["COLUMNS"].items() if engine == row["engine"]]
        forms = (row["format"], None)
        cells = [tool["cell"](name, row["method"], form, row["scheme"]) for name in columns for form in forms]
        assert any("**measured**" in cell for cell in cells), row
