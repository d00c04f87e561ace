"""One program of a proof, and the record of what became of it."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

CUT_OFF = "cut off"


@dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
        name: ``kind/what``.
        command: arguments.
        report: that it writes; in the results folder.
        limit: seconds.
        alone: on its GPU, because it measures speed or memory.
        gpus: that it spreads over, all of which it has alone.
        needs: beginnings of the names of steps that must have ended before.
        prints: its report is what it writes to stdout.
        makes: folder that it makes; a step whose folder is gone has not run.
    """

    name: str
    command: tuple[str, ...]
    report: Path
    limit: float
    alone: bool = False
    gpus: int = 1
    needs: tuple[str, ...] = ()
    prints: bool = False
    makes: Path | None = None

    @property
    def record(self) -> Path:
        """What became of it."""
        return self.report.with_suffix(".step.json")

    def outcome(self) -> str | None:
        """How it ended; None if it has not, or was another command."""
        if not self.record.exists() or (self.makes is not None and not self.makes.exists()):
            return None
        found = json.loads(self.record.read_text(encoding="utf-8"))
        return found["outcome"] if found["command"] == self._shown() else None

    def clear(self, *, again: bool) -> None:
        """Delete the folder that it makes, which cannot be gone on from; with `again` also its report."""
        if again:
            self.report.unlink(missing_ok=True)
        if self.makes is not None and self.makes.exists():
            shutil.rmtree(self.makes)

    def write(self, outcome: str, seconds: float, *gpus: int) -> None:
        """Write down how it ended, and on which GPUs."""
        content = {
            "step": self.name,
            "outcome": outcome,
            "command": self._shown(),
            "seconds": round(seconds, 1),
            "gpu": gpus[0] if len(gpus) == 1 else gpus,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        self.record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _shown(self) -> list[str]:
        """The command as it is written down: without the places of this machine."""
        return [Path(part).name if Path(part).is_absolute() else part for part in self.command]
