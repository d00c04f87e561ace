"""Write ``docs/scoreboard.html`` and tables of the README (scoreboard, abilities), from the reports under results/.

    python tools/make_scoreboard.py [--check]

Reports are found by what they say, wherever they lie below ``results/``; a conformance report that does not fit its
checksum is refused by name. A test fails while the committed files differ from what this makes, and so does --check.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from anyengine_conformance.report import BadReport
from scoreboard.page import PAGE, can_do, markdown, page
from scoreboard.reports import BadResult, find

ROOT = Path(__file__).parents[1]
#: Name of a place in the README → what stands there.
BLOCKS = {"scoreboard": markdown, "abilities": can_do}


def make(root: Path = ROOT) -> dict[Path, str]:
    """Each file with what it has to say.

    Args:
        root: of the repository.

    Raises:
        BadReport: a conformance report was edited, or is none.
        BadResult: another report is not as its benchmark writes it.
    """
    found = find(root)
    readme = root / "README.md"
    text = readme.read_text("utf-8")
    for name, write in BLOCKS.items():
        made = write(found)
        block = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- /{name} -->)", re.DOTALL)
        text, count = block.subn(lambda place, made=made: f"{place[1]}{made}{place[2]}", text)
        if count != 1:
            raise BadResult(f"README.md has {count} places between <!-- {name} --> and <!-- /{name} -->")
    return {root / PAGE: page(found), readme: text}


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    options = parser.parse_args()
    try:
        made = make()
    except (BadReport, BadResult) as error:
        raise SystemExit(str(error)) from error
    for file, text in made.items():
        name = file.relative_to(ROOT).as_posix()
        if not options.check:
            file.write_text(text, "utf-8")
            print(f"wrote {name}")
        elif not file.exists() or file.read_text("utf-8") != text:
            raise SystemExit(
                f"{name} does not follow from the reports under results/: run: python {Path(__file__).name}"
            )


if __name__ == "__main__":
    main()
