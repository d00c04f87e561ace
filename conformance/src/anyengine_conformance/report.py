"""Reports on disk: JSON by the schema that the package ships, with a checksum, validated when they are read."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
from anyengine import InvalidConfig
from msgspec.structs import replace

from anyengine_conformance.results import Report

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BadReport", "read_report", "schema", "signed", "write_report"]


class BadReport(InvalidConfig):
    """A file is no report of this suite, or not as the suite wrote it."""


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of reports."""
    return json.loads((files("anyengine_conformance") / "schemas" / "report-1.json").read_text(encoding="utf-8"))


def _checksum(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def signed(report: Report) -> Report:
    """The report with its checksum.

    It shows that somebody edited the file; it does not show who wrote it. A scoreboard repeats the run.
    """
    return replace(report, checksum=_checksum(json.loads(msgspec.json.encode(report))))


def write_report(report: Report, file: Path) -> None:
    """Write it, for :func:`read_report`."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read_report(file: Path) -> Report:
    """Read and check a report.

    Raises:
        BadReport: it cannot be read, does not fit the schema, or was edited.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise BadReport(f"{file} cannot be read: {error.strerror or error}", field="report") from error
    except (ValueError, RecursionError) as error:
        raise BadReport(f"{file} is no JSON: {error}", field="report") from error
    try:
        validator: Any = jsonschema.Draft202012Validator(schema())
        validator.validate(content)
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the document"
        raise BadReport(f"{file} is no conformance report: {place}: {error.message}", field=place) from error
    if content["checksum"] != _checksum(content):
        raise BadReport(
            f"{file} was changed after the suite wrote it: its checksum does not fit; run the suite again",
            field="checksum",
        )
    return msgspec.convert(content, Report)
