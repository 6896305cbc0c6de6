"""Templates whose source proves that the text only grows with each message: they are rendered once per conversation.

Most chat templates are one loop over the messages, in which no message depends on later ones, followed by the
generation prompt. The text of the first messages is then a prefix of the whole text, and the prompt of a turn is that
prefix plus the generation prompt. With a mark at the start of each iteration, one rendering gives what otherwise takes
two for every turn. Templates without this proof are rendered turn by turn (see `turns`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import jinja2
from jinja2 import nodes

from sft.safety.limits import limited
from sft.template.rendering.render import environment

STEP = "\U0010fff2"
# what an iteration knows without later messages
_PAST = frozenset({"first", "index", "index0", "previtem", "depth", "depth0"})
_NO_LOOP, _OWN_LOOP, _OTHER_LOOP = range(3)
_FUTURE = frozenset({"messages", "loop", "add_generation_prompt"})


@dataclass(frozen=True)
class Steps:
    """A rendered conversation with its message boundaries.

    Args:
        text: the whole text.
        starts: where each message's text begins.
        end: where the last message's text ends; what follows is the template's closing text.
    """

    text: str
    starts: list[int]
    end: int

    def end_of(self, message: int) -> int:
        """The end of a message's text."""
        return self.starts[message + 1] if message + 1 < len(self.starts) else self.end


@dataclass(frozen=True)
class Stepwise:
    """A template with a mark at the start of each message's text, and one after the last.

    Args:
        template: renders as the original does, with the marks.
        without_tools: whether the proof holds only for conversations without tool results.
    """

    template: jinja2.Template
    without_tools: bool

    def covers(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the proof holds for a conversation."""
        return not self.without_tools or not any(message["role"] == "tool" for message in messages)

    def render(self, plain: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> Steps | None:
        """The text and its message boundaries; None if the marks do not match the messages.

        Args:
            plain: at least one message, as the template expects them.

        Raises:
            Exception: anything that the template raises.
        """
        with limited():
            text = self.template.render({**context, "messages": plain, "add_generation_prompt": False})
        pieces = text.split(STEP)
        starts = list(accumulate(map(len, pieces[:-1])))
        end = starts.pop() if starts else 0
        if len(starts) == len(plain) - 1 and plain[0]["role"] == "system":
            starts.insert(0, 0)  # the loop skips the first message, which is written before it
        return Steps("".join(pieces), starts, end) if len(starts) == len(plain) else None

    def generation_prompt(self, context: Mapping[str, Any]) -> str:
        """What the template writes after the last message, the same for every conversation."""
        plain = [{"role": "user", "content": "zquser"}]
        with limited():
            return self.template.render({**context, "messages": plain, "add_generation_prompt": True}).rpartition(STEP)[
                2
            ]


@lru_cache(maxsize=64)
def stepwise(text: str) -> Stepwise | None:
    """The template with marks, if its source proves that its text only grows; None otherwise.

    The proof: outside its one loop over the messages the template reads only the first message; inside, the current
    message, the first one and earlier ones; after it there is only the generation prompt, which does not depend on any
    message.
    """
    tree = environment().parse(text)
    proof = _Proof(tree)
    at = proof.loop_at()
    if at is None:
        return None
    mark = nodes.Output([nodes.TemplateData(STEP)])
    tree.body[at].body.insert(0, mark)  # type: ignore[attr-defined]
    tree.body.insert(at + 1, nodes.Output([nodes.TemplateData(STEP)]))
    code = environment().compile(tree)
    template = jinja2.Template.from_code(environment(), code, environment().make_globals(None))
    return Stepwise(template, proof.without_tools)


class _Proof:
    """Checks a template's source."""

    def __init__(self, tree: nodes.Template) -> None:
        self.tree = tree
        self.without_tools = False
        self.aliases = {
            name
            for assign in tree.find_all(nodes.Assign)
            if isinstance(assign.target, nodes.Name) and _is_messages_or_rest(assign.node)
            for name in [assign.target.name]
        }
        self.assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
        self.macros = {macro.name for macro in tree.find_all(nodes.Macro)}

    def loop_at(self) -> int | None:
        """The index of the top-level node that is the loop over the messages, if the proof succeeds."""
        body = self.tree.body
        loops = [i for i, node in enumerate(body) if isinstance(node, nodes.For) and self._is_messages(node.iter)]
        if len(loops) != 1 or self.assigned & _FUTURE:
            return None
        loop = body[loops[0]]
        assert isinstance(loop, nodes.For)
        if loop.test is not None or loop.else_ or loop.recursive or not isinstance(loop.target, nodes.Name):
            return None
        self.message = loop.target.name
        proven = (
            all(self._sees_the_past(node, _NO_LOOP) for node in body[: loops[0]])
            and all(self._sees_the_past(node, _OWN_LOOP) for node in loop.body)
            and all(self._is_generation_prompt(node) for node in body[loops[0] + 1 :])
        )
        return loops[0] if proven else None

    def _is_messages(self, node: nodes.Node) -> bool:
        return isinstance(node, nodes.Name) and (node.name == "messages" or node.name in self.aliases)

    def _sees_the_past(self, node: nodes.Node, loop: int) -> bool:
        """Whether a part of the template reads no message but the first, the current and earlier ones.

        Args:
            loop: what `loop` refers to in this part: nothing, the loop over the messages, or another loop.
        """
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name) and node.target.name in self.aliases:
            return loop == _NO_LOOP and _is_messages_or_rest(node.node)
        if isinstance(node, nodes.Getitem) and _is(node.node, "messages"):
            return _is_past_index(node.arg, loop == _OWN_LOOP)
        if isinstance(node, nodes.Getattr) and _is(node.node, "loop"):
            return loop == _OTHER_LOOP or (loop == _OWN_LOOP and node.attr in _PAST)
        if isinstance(node, nodes.Name):
            return node.name not in _FUTURE and node.name not in self.aliases
        if isinstance(node, nodes.For):
            return self._sees_the_past(node.iter, loop) and all(
                self._sees_the_past(child, _OTHER_LOOP) for child in node.iter_child_nodes() if child is not node.iter
            )
        children = list(node.iter_child_nodes())
        if isinstance(node, nodes.If | nodes.CondExpr):
            children.remove(node.test)
            if loop == _OWN_LOOP and isinstance(node, nodes.If) and self._is_for_tools(node.test):
                self.without_tools = True
                children = [*node.elif_, *node.else_]
            elif not self._tests_the_past(node.test, loop):
                return False
        return all(self._sees_the_past(child, loop) for child in children)

    def _tests_the_past(self, test: nodes.Node, loop: int) -> bool:
        """The same for a condition, which may test whether there are messages: there always are."""
        if isinstance(test, nodes.And | nodes.Or | nodes.Not):
            return all(self._tests_the_past(child, loop) for child in test.iter_child_nodes())
        return _is(test, "messages") or self._sees_the_past(test, loop)

    def _is_for_tools(self, test: nodes.Node) -> bool:
        """Whether a condition tests for a tool result."""
        if not isinstance(test, nodes.Compare) or len(test.ops) != 1 or test.ops[0].op != "eq":
            return False
        role, other = test.expr, test.ops[0].expr
        if not isinstance(other, nodes.Const) or other.value != "tool":
            return False
        if isinstance(role, nodes.Getattr):
            return _is(role.node, self.message) and role.attr == "role"
        return isinstance(role, nodes.Getitem) and _is(role.node, self.message) and _is_const(role.arg, "role")

    def _is_generation_prompt(self, node: nodes.Node) -> bool:
        """Whether a part after the loop writes only a closing text that is the same for every conversation."""
        if isinstance(node, nodes.Output):
            return all(isinstance(child, nodes.TemplateData) and not child.data for child in node.nodes)
        if not isinstance(node, nodes.If) or not _is(node.test, "add_generation_prompt") or node.elif_:
            return False
        used = {name.name for child in (*node.body, *node.else_) for name in _names(child)}
        return not used & (self.assigned | self.macros | self.aliases | _FUTURE | {"tools", "documents"})


def _is(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _is_const(node: nodes.Node, value: object) -> bool:
    return isinstance(node, nodes.Const) and node.value == value


def _names(node: nodes.Node) -> list[nodes.Name]:
    return [*([node] if isinstance(node, nodes.Name) else []), *node.find_all(nodes.Name)]


def _is_messages_or_rest(node: nodes.Node) -> bool:
    """Whether an expression is `messages` or `messages[1:]`."""
    if _is(node, "messages"):
        return True
    if not isinstance(node, nodes.Getitem) or not _is(node.node, "messages") or not isinstance(node.arg, nodes.Slice):
        return False
    cut = node.arg
    return cut.start is not None and _is_const(cut.start, 1) and cut.stop is None and cut.step is None


def _is_past_index(index: nodes.Node, inside: bool) -> bool:
    """Whether an index into the messages is 0, or counts back from the loop's current message."""
    if isinstance(index, nodes.Const):
        return index.value == 0
    if isinstance(index, nodes.Sub):
        return inside and _is_own_index(index.left) and isinstance(index.right, nodes.Const) and index.right.value == 1
    return inside and _is_own_index(index)


def _is_own_index(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Getattr) and _is(node.node, "loop") and node.attr == "index0"
