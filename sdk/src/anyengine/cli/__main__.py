"""``python -m anyengine.cli``: the command line where the ``anyengine`` script is not on the path."""

from __future__ import annotations

from anyengine.cli import main

if __name__ == "__main__":
    main(prog_name="anyengine")
