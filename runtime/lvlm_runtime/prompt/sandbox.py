"""The sandbox that chat templates run in: jinja2's immutable one, with a limit on what they do.

The limits hold in the process itself, because every step of a template passes through here: loops and
bodies by a filter that is put into the parsed template, calls, filters, operators and output by the
hooks that jinja2 has. jinja2's own sandbox keeps templates off Python's insides, not off its memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
import jinja2.runtime
from jinja2 import nodes
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from lvlm_runtime.prompt import work as limits
from lvlm_runtime.prompt.work import TooMuchWorkError, WorkCount

_WORK: ContextVar[WorkCount] = ContextVar("work of a chat template")
# Filters that the parsed template is given; no name of a template's own can be like that.
STEP, MADE, JOINED = " step", " made", " joined"
BODIES = ("body", "else_")
BODIED = (nodes.Macro, nodes.CallBlock, nodes.Block, nodes.FilterBlock, nodes.AssignBlock)
LITERALS = (nodes.List, nodes.Tuple, nodes.Dict)
# What jinja2 gives a filter before its value.
PASSED = {"eval_ctx", "environment", "context"}
MAX_WORDS = 1000


@contextmanager
def counting() -> Iterator[WorkCount]:
    """What is compiled or rendered inside is counted from zero."""
    token = _WORK.set(WorkCount())
    try:
        yield _WORK.get()
    finally:
        _WORK.reset(token)


class LimitedTemplate(jinja2.Template):
    """A template whose rendering is counted."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """The whole text, made piece by piece.

        Raises:
            TooMuchWorkError: The template does more than any real one.
        """
        pieces, length = [], 0
        with counting() as work:
            for piece in self.generate(*args, **kwargs):
                length += len(piece)
                if length > limits.MAX_VALUE:
                    raise TooMuchWorkError(
                        f"it makes a chat of more than {limits.MAX_VALUE} characters"
                    )
                work.spend(1)
                pieces.append(piece)
        return "".join(pieces)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox, where everything that takes time or memory is counted."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    template_class = LimitedTemplate

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_output, **options)
        self.filters = {name: _guarded(name, each) for name, each in self.filters.items()}
        self.filters |= {STEP: _step, MADE: _made, JOINED: _joined}
        self.globals["lipsum"] = _lipsum

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Replace a filter by another one, counted as the others are."""
        self.filters[name] = _guarded(name, function)

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> jinja2.Template:
        """Compile a template; what it computes of constants is counted as well.

        Raises:
            TooMuchWorkError: It is longer than any real one, or computes more.
        """
        if len(source) > limits.MAX_SOURCE:
            raise TooMuchWorkError(f"it has more than {limits.MAX_SOURCE} characters")
        with counting():
            return super().from_string(source, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator of two values."""
        limits.operate(_WORK.get(), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Everything that a template calls: methods, macros, globals, recursive loops."""
        work = _WORK.get()
        work.spend(1)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes | int) and name in limits.METHODS:
            if kwargs and name in limits.NAMED:
                raise TooMuchWorkError(f"{name} is given arguments by name, which is not counted")
            args = limits.METHODS[name](work, owner, args)
        return work.checked(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format``, with every field counted."""
        if super().wrap_str_format(value) is None:
            return None
        text, by_map = value.__self__, value.__name__ == "format_map"
        if isinstance(text, Markup):
            formatter: SandboxedFormatter = _EscapeFormatter(self, escape=text.escape)
        else:
            formatter = _Formatter(self)

        def format_text(*args: Any, **kwargs: Any) -> Any:
            if by_map:
                args, kwargs = (), *args
            return type(text)(formatter.vformat(text, args, kwargs))

        return format_text


class _CountedFields(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        limits.check_format(format_spec)
        work = _WORK.get()
        work.size(value)
        text = super().format_field(value, format_spec)
        work.make(len(text))
        return text


class _Formatter(_CountedFields):
    """Of a text."""


class _EscapeFormatter(_CountedFields, SandboxedEscapeFormatter):
    """Of a text that is marked as HTML."""


class _Counted(NodeTransformer):
    """Puts a step into every body, and weighs texts and lists where they are put together."""

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        for name in BODIES:
            body = getattr(node, name, None)
            if isinstance(body, list) and (body or name == "body"):
                written = sum(len(each.data) for part in body for each in _texts(part))
                body.insert(0, nodes.ExprStmt(_filter(nodes.Const(1 + written), STEP)))
        return node

    def _loop(self, node: Any) -> Any:
        self._body(node)
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(1), STEP), node.test)
        return node

    def _concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), JOINED)

    def _literal(self, node: Any) -> Any:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"
        return node if stored or not _varies(node) else _filter(node, MADE)

    def get_visitor(self, node: nodes.Node) -> Any:
        """What changes a node, None where nothing does."""
        if isinstance(node, nodes.For):
            return self._loop
        if isinstance(node, nodes.Concat):
            return self._concat
        if isinstance(node, BODIED):
            return self._body
        return self._literal if isinstance(node, LITERALS) else None


def _texts(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


def _varies(node: nodes.Node) -> bool:
    """Whether a literal holds anything but constants."""
    known = (nodes.Const, nodes.Pair, nodes.List, nodes.Tuple, nodes.Dict)
    return any(not isinstance(each, known) for each in node.find_all(nodes.Node))


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


@jinja2.pass_context  # so that jinja2 does not compute it once, when it compiles
def _step(_: Any, amount: int) -> int:
    _WORK.get().spend(amount)
    return amount


@jinja2.pass_context
def _made(_: Any, value: Any) -> Any:
    return _WORK.get().checked(value)


@jinja2.pass_context
def _joined(_: Any, values: list[Any]) -> str:
    """The operator ``~``."""
    work = _WORK.get()
    work.make(sum(work.size(value) for value in values))
    return "".join(map(str, values))


def _output(value: Any) -> Any:
    """What ``{{ }}`` writes, on the way into the chat or into a variable."""
    _WORK.get().checked(value)
    return value


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is counted, and weighed before it runs where it amplifies."""
    guard = limits.FILTERS.get(name)
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    named = list(inspect.signature(function).parameters.values())
    if named and named[0].name in PASSED:
        named = named[1:]
    signature = inspect.Signature(named)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        work = _WORK.get()
        passed, given = args[:first], args[first:]
        if given:
            work.size(given[0])
        if name == "join" and given:
            items = limits.listed(work, given[0])
            between = [work.size(each) for each in (*given[1:], *kwargs.values())]
            work.make(work.size(items) + len(items) * max(between, default=0))
            given = (items, *given[1:])
        if guard is not None:
            bound = signature.bind(*given, **kwargs)
            bound.apply_defaults()
            guard(work, bound.arguments)
        return work.checked(function(*passed, *given, **kwargs))

    return run


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    """jinja2's filler text, of a length that it can have."""
    if limits.number(n) * limits.number(max) > MAX_WORDS:
        raise TooMuchWorkError(f"it asks for more than {MAX_WORDS} words of filler text")
    return jinja2.utils.generate_lorem_ipsum(n, html, min, max)
