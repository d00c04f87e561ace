"""The Jinja environment of chat templates: the features that `transformers` gives them, sandboxed and bounded.

Jinja's sandbox keeps a template from Python's internals. On top of it everything that can repeat or grow draws on the
:class:`~anyengine.text.budget.Budget` of the rendering: loops and macros through a step compiled into their bodies,
operators, calls, filters, tests and outputs through the environment's own hooks. What could take long inside one C
call is refused before the call, by the size of its result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, NoReturn, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from anyengine.text.budget import BudgetExceededError, active
from anyengine.text.growth import FILTER_GUARDS, STR_METHOD_GUARDS, check_format, check_operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2.parser import Parser
    from jinja2.runtime import Context, Undefined

__all__ = ["ChatEnvironment", "RaisedByTemplateError"]

DROPPED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters with no use in a prompt, and superlinear or not deterministic."""

GROWING_STR_METHODS = frozenset(STR_METHOD_GUARDS)
PLAIN_STR_METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
})  # fmt: skip
METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, PLAIN_STR_METHODS | GROWING_STR_METHODS),
    ((int, float), frozenset({"is_integer"})),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    ((list, tuple), frozenset({"copy", "count", "index"})),
    ((bytes, bytearray), frozenset()),
)
"""The attributes of Python's own types that templates may use; Jinja's own objects are guarded by its sandbox."""

STRFTIME_LIMIT = 100
STRFTIME_WIDTH = re.compile(r"%[^A-Za-z%]*\d{3}")


class RaisedByTemplateError(Exception):
    """The template called ``raise_exception``; its words are the message."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders chat templates; only while a :class:`Budget` is active."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constant expressions would be worked out where no budget counts them
            finalize=_output,
            extensions=[LoopControlExtension, _GenerationTag],
        )
        filters = {name: function for name, function in self.filters.items() if name not in DROPPED_FILTERS}
        filters["tojson"] = _to_json
        self.filters = {name: _guarded_filter(name, function) for name, function in filters.items()}
        self.filters |= {"anyengine.charged": _charged, "anyengine.joined": _joined}
        self.tests = {name: _guarded_test(function) for name, function in self.tests.items()}
        self.globals = {
            "cycler": Cycler,
            "dict": _make_dict,
            "joiner": Joiner,
            "namespace": _make_namespace,
            "raise_exception": _raise_exception,
            "range": safe_range,
            "strftime_now": _strftime_now,
        }

    def anyengine_step(self, size: int) -> bool:
        """What every loop and macro body begins with: one step, and the size of the constant text in the body."""
        budget = active()
        budget.step()
        budget.spend(size)
        return True

    def takes_parts(self, source: str) -> bool:
        """Whether the template loops over content, and so takes a list of parts and not only text."""
        return any(map(_mentions_content, self.parse(source).find_all(nodes.For)))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = _Instrument().visit(super()._parse(source, name, filename))
        return template.set_environment(self)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read this attribute."""
        for types, allowed in METHODS:
            if isinstance(obj, types):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuses internals outright; any other attribute is undefined, as in Jinja."""
        if attribute.startswith("_"):
            raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object")
        return super().unsafe_undefined(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` that stays in the sandbox (Jinja's) and in the budget (ours)."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            check_format(active(), value.__self__, (args, kwargs))
            return wrapped(*args, **kwargs)

        return formatted

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result can be larger than its operands."""
        budget = active()
        budget.step()
        check_operator(budget, operator, left, right)
        return _charged(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Any call in a template."""
        budget = active()
        budget.step()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and (guard := STR_METHOD_GUARDS.get(obj.__name__)):
            args = guard(budget, owner, *args, **kwargs)
            kwargs = {}
        return _charged(super().call(context, obj, *args, **kwargs))


class _Instrument(NodeTransformer):
    """Compiles the budget into a template."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_step(node, node.body), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_step(node, []), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_step(node, node.body), lineno=node.lineno))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815 (Jinja's name)
    visit_Block = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "anyengine.joined")

    def visit_List(self, node: nodes.List) -> nodes.Expr:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        return _filter(node, "anyengine.charged")

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        return _filter(node, "anyengine.charged") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        return _filter(node, "anyengine.charged") if isinstance(node.arg, nodes.Slice) else node


class _GenerationTag(Extension):
    """``{% generation %}``: marks what the assistant said, for training. Here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Namespace(Namespace):
    """Jinja's namespace, without names that reach into Python, and without printing what it holds."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _step(owner: nodes.Node, body: list[nodes.Node]) -> nodes.Expr:
    constant = sum(len(data.data) for node in body for data in _constant_text(node))
    function = nodes.EnvironmentAttribute("anyengine_step", lineno=owner.lineno)
    return nodes.Call(function, [nodes.Const(constant)], [], None, None, lineno=owner.lineno)


def _constant_text(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    """The text in `node` that is not in a body with a step of its own."""
    if isinstance(node, nodes.TemplateData):
        yield node
    elif not isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
        for child in node.iter_child_nodes():
            yield from _constant_text(child)


def _mentions_content(loop: nodes.For) -> bool:
    for node in [loop.iter, *loop.iter.find_all((nodes.Getattr, nodes.Const, nodes.Name))]:
        match node:
            case nodes.Getattr(attr="content") | nodes.Const(value="content") | nodes.Name(name="content"):
                return True
            case _:
                pass
    return False


def _filter(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    guard = FILTER_GUARDS.get(name)
    # Jinja passes the context or the environment before the value to filters that ask for it.
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = active()
        budget.step()
        if guard is not None:
            args = (*args[:skip], guard(budget, *args[skip:], **kwargs), *args[skip + 1 :])
        return _charged(function(*args, **kwargs))

    return update_wrapper(guarded, function)


def _guarded_test(function: Callable[..., bool]) -> Callable[..., bool]:
    def guarded(*args: Any, **kwargs: Any) -> bool:
        active().step()
        return function(*args, **kwargs)

    return update_wrapper(guarded, function)


def _charged(value: Any) -> Any:
    budget = active()
    if isinstance(value, Iterator):  # of a lazy filter: nothing is made yet
        return budget.counted(cast("Iterator[Any]", value))
    budget.charge(value)
    return value


def _joined(items: list[Any]) -> str:
    """The operator ``~``."""
    budget = active()
    budget.step()
    budget.require(sum(map(budget.size, items)))
    return _charged("".join(map(str, items)))


def _output(value: Any) -> Any:
    budget = active()
    budget.step()
    budget.charge(value)
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 (signature of transformers' filter)
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _make_namespace(*args: Any, **kwargs: Any) -> _Namespace:
    namespace = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        namespace[str(name)] = value
    return namespace


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplateError(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002 (transformers' name)
    if len(format) > STRFTIME_LIMIT or STRFTIME_WIDTH.search(format):
        raise BudgetExceededError("its format of the date is too long")
    return datetime.now().strftime(format)  # noqa: DTZ005 (the user's own time zone, as in transformers)
