"""Regular expressions, held against what TGI's automata are made of: ``interegular`` 0.3.3, under ``outlines``.

TGI hands one on as it is; one that cannot be made an automaton fails in its server, with all that is in the batch.
"""

from __future__ import annotations

import re

from anyengine.errors import InvalidRequest, UnsupportedParameter

__all__ = ["check_regex"]

_FIELD = "structured.regex"
#: What is no part of a regular language, or says where in a text it is.
_NEVER = re.compile(r"\\[1-9bBAZ]|\(\?(?:<?[=!]|P=|\()")
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|[0-7]{3}|0[0-7]{1,2}|[adDfnrsStvwW_]|[^\w])"
_IN_A_SET = rf"{_ESCAPE}|\\(?:[0-7]{{1,3}}|b)|[^\]\\]"
#: One thing after the other: an escape, a set, the beginning of a group, a quantifier, or a character.
_ITEM = re.compile(
    rf"{_ESCAPE}"
    rf"|\[(?:\^(?!\])|(?!\^))(?:{_IN_A_SET})+\]"
    r"|\((?:(?!\?)|\?(?:P<[A-Za-z0-9_]+>|:|[is]+\)|[is]*(?:-[is]+)?:))"
    r"|(?:[*+?]|\{(?:\d+(?:,\d*)?|,\d+)\})\??(?!\+)"
    r"|[^\\\[(*+?{^$]",
    re.DOTALL,
)


def check_regex(pattern: str) -> None:
    """Refuse an expression that TGI cannot read, or reads otherwise.

    Raises:
        InvalidRequest: it is wrong, or none of a regular language.
        UnsupportedParameter: TGI does not have what it uses.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{_FIELD}: cannot be read: {error}", field=_FIELD) from error
    place = 0
    while place < len(pattern):
        found = _ITEM.match(pattern, place)
        if found is None:
            break
        place = found.end()
    else:
        return
    if found := _NEVER.match(pattern, place):
        raise InvalidRequest(
            f"{_FIELD}: {found[0]!r} is no part of a regular language: no look-around, no references, no anchors",
            field=_FIELD,
        )
    raise UnsupportedParameter(
        f"{_FIELD}: TGI cannot read {pattern[place : place + 10]!r} (from character {place} on): the whole text has to "
        "match, so it has no ^ and $; nor has it possessive quantifiers, atomic groups, comments, flags but i and s, "
        r"or escapes such as \u0041, and a { that is none of a quantifier is written \{",
        field=_FIELD,
    )
