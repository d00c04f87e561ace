"""The tables of the page about parity are those of the reports that it names."""

import re
from pathlib import Path

from anyengine_conformance.parity_table.page import written

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")


def test_the_tables_follow_from_the_reports():
    assert re.findall(r"<!-- parity table: (\S+) -->", PAGE) != []
    assert written(PAGE, ROOT) == PAGE, "run: anyengine conformance parity page docs/parity.md"
