"""The pages that the project makes, in Chromium: they need nothing else, fit a telephone, and can be read."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from anyengine_conformance.html import render
from anyengine_conformance.report import read_report
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
LOOK = (Path(__file__).parent / "pages.js").read_text(encoding="utf-8")
#: It may ask nobody anything, and runs as root in containers that have no GPU.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("there is no chromium on the path: on Debian, apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that the suite writes, with every kind of outcome."""
    report = read_report(ROOT / "results" / "h200" / "conformance-reference.json")
    wrong = [
        replace(
            result, outcome=outcome, reason="because", asked="a call", expected="this", seen="that" * 80, advice="do"
        )
        for result, outcome in zip(report.results, ("failed", "error", "xpassed", "xfailed", "not-run"), strict=False)
    ]
    file = tmp_path_factory.mktemp("pages") / "report.html"
    file.write_text(render(replace(report, results=[*wrong, *report.results[len(wrong) :]])), encoding="utf-8")
    return file


@pytest.fixture(params=["scoreboard", "conformance report"])
def page_file(request: pytest.FixtureRequest, report_file: Path) -> Path:
    """The page itself, or one that the suite writes."""
    return ROOT / "docs" / "scoreboard.html" if request.param == "scoreboard" else report_file


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def seen(browser: Any, page_file: Path, scheme: str, width: int) -> Iterator[dict[str, Any]]:
    """What there is to say of the page at that width; with what it asked for, and what it complained of."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda made: asked.append(made.url))
    page.goto(page_file.as_uri())
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    yield page.evaluate(LOOK) | {"said": said, "asked": asked}
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_can_be_read_at_any_width_and_in_both_schemes(seen: dict[str, Any]):
    assert seen["texts"] > 100
    assert seen["pale"] == []
    assert seen["overflow"] <= 0


@pytest.mark.parametrize("width", [1280])
def test_a_page_asks_for_nothing_and_complains_of_nothing(seen: dict[str, Any], page_file: Path):
    assert seen["said"] == []
    assert [url for url in seen["asked"] if not url.startswith("data:")] == [page_file.as_uri()]


@pytest.mark.parametrize("width", [1280])
def test_a_page_can_be_found_ones_way_in(seen: dict[str, Any]):
    assert (seen["language"], seen["topHeadings"], bool(seen["title"])) == ("en", 1, True)
    wrong = (
        "skippedHeadings",
        "headersWithoutScope",
        "tablesWithoutHeaders",
        "nameless",
        "emptyLinks",
        "repeatedIds",
        "deadAnchors",
    )
    assert {name: seen[name] for name in wrong if seen[name]} == {}


@pytest.mark.parametrize("width", [1280])
def test_links_to_files_lead_to_one(seen: dict[str, Any]):
    files = [Path(unquote(urlsplit(link).path)) for link in seen["links"] if link.startswith("file:")]
    assert [file for file in files if not file.exists()] == []


#: What a report shows of its checks: outcomes that can be seen, and how many families are there, and open.
SHOWN = """() => {
  const families = [...document.querySelectorAll(".family")].filter(each => each.checkVisibility());
  const seen = [...document.querySelectorAll("[data-outcome]")].filter(each => each.checkVisibility());
  return [seen.map(each => each.dataset.outcome), families.length, families.filter(each => each.open).length];
}"""


def test_a_report_is_sifted_by_outcome_and_opened_and_closed_at_once(browser: Any, report_file: Path):
    page = browser.new_page()
    page.goto(report_file.as_uri())
    every = page.locator("[data-outcome]").count()
    waiting = page.locator("[data-outcome=not-run]").count()
    page.select_option("select", "not-run")
    outcomes, families, opened = page.evaluate(SHOWN)
    assert (set(outcomes), len(outcomes), families) == ({"not-run"}, waiting, opened)
    page.select_option("select", "")
    page.click("text=Expand all")
    outcomes, families, opened = page.evaluate(SHOWN)
    assert (len(outcomes), opened) == (every, families)
    page.click("text=Collapse all")
    assert page.evaluate(SHOWN) == [[], families, 0]
    page.close()


def test_a_report_can_be_read_without_javascript(browser: Any, report_file: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_file.as_uri())
    assert not page.locator("button").first.is_visible()
    family = page.locator(".family").last
    family.locator("summary").click()
    assert family.locator("[data-outcome]").first.is_visible()
    context.close()


def test_a_report_shows_why_checks_did_not_run_without_a_click(browser: Any, tmp_path: Path):
    report = read_report(ROOT / "results" / "cpu" / "conformance-tgi.json")
    file = tmp_path / "report.html"
    file.write_text(render(report), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    shown = [line.inner_text() for line in page.locator(".reasons li summary").all() if line.is_visible()]
    counts = Counter(result.reason for result in report.results if result.outcome == "not-run")
    assert {f"{number} {why.replace('`', '')}" for why, number in counts.items()} <= set(shown)
    refused = page.locator(".reasons summary", has_text="118 unsupported and refused")
    refused.click()
    assert page.locator(".reasons li summary", has_text="not declared: structured.json_schema").first.is_visible()
    context.close()


def test_ids_of_checks_break_on_a_telephone_only_where_they_must(browser: Any, report_file: Path):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(report_file.as_uri())
    page.click("text=Expand all")
    broken = page.evaluate("""() => [...document.querySelectorAll(".id span")]
      .filter(each => each.checkVisibility() && each.getClientRects().length && each.offsetHeight > 30)
      .filter(each => each.textContent.length < 36).map(each => each.textContent)""")
    assert broken == []
    page.close()
