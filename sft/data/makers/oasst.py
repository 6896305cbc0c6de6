"""OpenAssistant's message trees to conversations: one per tree, along the best-ranked replies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sft.data.makers.made import MakerResult
from sft.data.readers.rows import Broken, Rows

_ROLES = {"prompter": "user", "assistant": "assistant"}
_WORST = 1 << 30  # the rank of an unranked message


@dataclass
class _Node:
    """One message of a tree, with its replies in the order of the file."""

    id: str
    parent: str | None
    tree: str
    role: str
    text: str
    rank: int
    replies: list[_Node] = field(default_factory=list)


def oasst1(rows: Rows, *, lang: str = "en") -> Iterator[MakerResult]:
    """Conversations of oasst1's messages (message_id, parent_id, message_tree_id, text, role, lang, rank, ...).

    A tree gives one conversation: from its first prompt along the best-ranked answers; of several follow-up prompts
    the best-ranked one that was answered. Deleted messages, those that failed review and those in other languages are
    left out with their subtrees.

    Args:
        rows: the messages in any order; the accepted ones are held in memory.
        lang: the language, as in the column `lang`.
    """
    nodes: dict[str, _Node] = {}
    for where, row in rows:
        reason = row.kind if isinstance(row, Broken) else _refused(row, nodes, lang)
        if reason or isinstance(row, Broken):
            yield MakerResult(None, reason=reason, where=where)
        else:
            node = _node(row)
            nodes[node.id] = node
    yield from _conversations(nodes)


def _refused(row: dict[str, Any], nodes: dict[str, _Node], lang: str) -> str:
    """Why a message is left out, or nothing."""
    if not isinstance(row.get("message_id"), str) or row.get("role") not in _ROLES:
        return "no message of oasst1 (message_id, role prompter or assistant)"
    if row["message_id"] in nodes:
        return "message_id repeated"
    if row.get("deleted"):
        return "deleted"
    if row.get("review_result") is False:
        return "failed review"
    if row.get("lang") != lang:
        return f"not in the language {lang}"
    if row.get("tree_state", "ready_for_export") != "ready_for_export":
        return "tree not ready for export"
    text = row.get("text")
    return "" if isinstance(text, str) and text.strip() else "empty text"


def _node(row: dict[str, Any]) -> _Node:
    rank = row.get("rank")
    ranked = isinstance(rank, (int, float)) and math.isfinite(rank)
    return _Node(
        row["message_id"],
        row.get("parent_id") or None,
        str(row.get("message_tree_id") or row["message_id"]),
        _ROLES[row["role"]],
        row["text"],
        int(rank) if ranked else _WORST,  # type: ignore[arg-type]
    )


def _conversations(nodes: dict[str, _Node]) -> Iterator[MakerResult]:
    roots = []
    for node in nodes.values():
        parent = nodes.get(node.parent) if node.parent else None
        if parent is not None and parent.role != node.role:
            parent.replies.append(node)
        elif node.parent is None and node.role == "user":
            roots.append(node)
    used: set[str] = set()
    unanswered: set[str] = set()
    for root in roots:
        path = _best_path(root)
        if len(path) < 2:
            unanswered.update(node.id for node in _below(root))
            continue
        used.update(node.id for node in path)
        messages = [{"role": node.role, "content": node.text} for node in path]
        yield MakerResult({"messages": messages, "source": "oasst1", "message_tree_id": root.tree}, rows=len(path))
    reached = {node.id for root in roots for node in _below(root)}
    reasons = Counter(_why_unused(node, unanswered, reached) for node in nodes.values() if node.id not in used)
    for reason, count in reasons.items():
        yield MakerResult(None, rows=count, reason=reason)


def _best_path(root: _Node) -> list[_Node]:
    """Prompt, best answer, the best of its follow-ups that was answered, its best answer, ...; it ends with an answer."""
    path: list[_Node] = []
    prompt = root
    while True:
        answer = min(prompt.replies, key=lambda node: node.rank, default=None)
        if answer is None:
            return path
        path += [prompt, answer]
        answered = [follow_up for follow_up in answer.replies if follow_up.replies]
        if not answered:
            return path
        prompt = min(answered, key=lambda node: node.rank)


def _below(root: _Node) -> Iterator[_Node]:
    """A message and its whole subtree; not recursive, because threads may be long."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.replies


def _why_unused(node: _Node, unanswered: set[str], reached: set[str]) -> str:
    if node.id in unanswered:
        return "prompt without an answer"
    return "beside the best-ranked path" if node.id in reached else "below a message that was left out"
