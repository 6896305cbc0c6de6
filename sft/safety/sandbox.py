"""Jinja's sandbox with limits: a template can neither reach Python's internals nor run forever."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from sft.safety.limits import (
    WIDEST,
    Counted,
    check_format,
    check_join,
    check_method,
    check_operation,
    check_replace,
    checked_nesting,
    checked_size,
    concat,
    count_size,
    count_step,
    listed,
)

# Useless for a chat template, and exploitable for slow or large results.
_WITHOUT_FILTERS = ("pprint", "urlize", "wordwrap", "xmlattr")
_SMALL = 1 << 16  # characters that need not be counted, because the time limit bounds their number
_SIZED = {"batch", "center", "indent", "slice", "truncate", "tojson"}


class _CodeGenerator(CodeGenerator):
    """Compiles templates so that everything that can repeat or grow is counted."""

    _loops_over: nodes.Node | None = None

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Any node; the iterable of a loop is wrapped."""
        if node is not self._loops_over:
            return super().visit(node, *args, **kwargs)
        self._loops_over = None
        return self._within("counted", super().visit, node, *args, **kwargs)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """A loop; its condition, if any, is compiled before its iterable."""
        self._loops_over = node.iter
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`."""
        self._within("checked_size", super().visit_Concat, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """`[a, b]`."""
        self._within("checked_nesting", super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """`(a, b)`, where it is a value and not an assignment target."""
        if node.ctx == "load":
            self._within("checked_nesting", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """`{a: b}`."""
        self._within("checked_nesting", super().visit_Dict, node, frame)

    def _within(self, name: str, visit: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.write(f"environment.{name}(")
        visit(*args, **kwargs)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment for untrusted chat templates; see sft.safety.limits for what it counts."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"+", "*", "%", "**"})
    counted = Counted
    concat = staticmethod(concat)  # used by blocks, macros and the template itself
    checked_size = staticmethod(checked_size)
    checked_nesting = staticmethod(checked_nesting)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.pop("lipsum", None)
        for name in _WITHOUT_FILTERS:
            self.filters.pop(name, None)

    def limit_filters(self) -> None:
        """Make every current filter count its steps and the size of its results."""
        for name, filter in list(self.filters.items()):
            self.filters[name] = _counted_filter(name, filter)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result may be large."""
        if operator == "+" and type(left) is str and type(right) is str and len(left) + len(right) < _SMALL:
            return left + right  # the common case
        check_operation(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        return checked_size(result) if operator == "%" else result

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a macro, a method or a global."""
        count_step()
        if isinstance(getattr(__obj, "__self__", None), str | bytes | int):
            if getattr(__obj, "__name__", "") == "join" and args:
                args = (listed(args[0]), *args[1:])
            check_method(__obj, (*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str | list | tuple | bytes):
            return checked_size(result)
        if isinstance(result, dict) or hasattr(result, "_Namespace__attrs"):
            checked_nesting([result])
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, when it is looked up."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__)
        return wrapped


def _counted_filter(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """A counting filter, which keeps the attributes that Jinja sets on a filter's function."""

    checked = name in _SIZED or name in ("format", "replace", "join", "sum")

    @functools.wraps(filter)
    def counted(*args: Any, **kwargs: Any) -> Any:
        """The filter, with its call and the size of its result counted."""
        count_step()
        if checked:
            if name == "join":
                args, kwargs = _joined(*args, **kwargs), {}
            _check_filter(name, args, kwargs)
        result = filter(*args, **kwargs)
        if type(result) is str and len(result) < _SMALL:
            return result
        return checked_nesting(checked_size(result)) if isinstance(result, list | tuple) else checked_size(result)

    return counted


def _joined(
    context: Any, value: Any, d: str = "", attribute: str | int | None = None
) -> tuple[Any, list[Any] | str, str]:
    """The arguments of `join`, with its items listed beforehand."""
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return context, listed(value), d


def _check_filter(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    values = [a for a in args if not isinstance(a, jinja2.Environment | jinja2.runtime.Context | nodes.EvalContext)]
    further = [*values[1:], *kwargs.values()]
    if name in _SIZED:
        for value in further:
            _check_size(value)
        if name == "indent" and isinstance(values[0], str):
            width = next((len(w) if isinstance(w, str) else w for w in further if isinstance(w, str | int)), 4)
            count_size(len(values[0]) + (values[0].count("\n") + 1) * width)
    elif name == "format" and isinstance(values[0], str):
        check_format(values[0])
    elif name == "replace" and len(further) >= 2:
        check_replace(str(values[0]), str(further[0]), str(further[1]))
    elif name == "join":
        check_join(str(further[0]), values[0])
    elif name == "sum" and isinstance(values[0], list | tuple):
        count_size(sum(len(item) for item in values[0] if isinstance(item, str | list | tuple)))


def _check_size(value: Any) -> None:
    """Refuse a large argument of a filter: a width, a count or a separator."""
    if (isinstance(value, int) and value > WIDEST) or (isinstance(value, str) and len(value) > WIDEST):
        raise SecurityError("a chat template may not ask for such a size")
    if isinstance(value, tuple | list):
        for part in value:
            _check_size(part)
