"""Choose the chat template of a run and bind it to the model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date as Date
from typing import Any

from sft.config.errors import UserError
from sft.template.bound import BoundTemplate
from sft.template.candidates import Candidate, candidates, packaged_templates
from sft.template.defaults import write_defaults
from sft.template.families import GENERIC, Family
from sft.template.probe import features, find_stop, find_style, renderer
from sft.template.rendering.messages import reasoning_of
from sft.template.rendering.render import RenderError, compiled
from sft.template.spec import Template
from sft.template.tokens import control_tokens, is_single, special_variables

__all__ = ["BoundTemplate", "bind", "packaged_templates"]


def bind(
    template: Template,
    tokenizer: Any,
    family: Family = GENERIC,
    sample: Sequence[Mapping[str, Any]] = (),
    formats: Iterable[str] = (),
) -> BoundTemplate:
    """Choose the chat template and bind it to the tokenizer.

    Args:
        template: the config node.
        tokenizer: the model's tokenizer; it is not changed.
        family: the model's family.
        sample: conversations of the run. The template must keep what they contain (tools, a system message).
        formats: names of the datasets' formats; a format may supply its usual template for a model that has none.

    Raises:
        UserError: an unknown template, invalid Jinja, or a template named by the user that would lose part of the rows.
    """
    sample = [conversation for conversation in sample if conversation.get("messages")]
    wanted = sorted(frozenset().union(*(features(conversation) for conversation in sample)))
    refused: list[str] = []
    for candidate in candidates(template, tokenizer, family, formats):
        bound, missing = _bound(candidate, template, tokenizer, wanted, sample)
        broken = None if missing else _refuses_most(bound, sample)
        if not missing and broken is None:
            bound.reason = "; ".join([*refused, f"{candidate.what} is used"])
            bound.warnings = [bound.reason, *bound.warnings] if refused else bound.warnings
            return bound
        why = "; ".join(dict.fromkeys(missing.values())) or f"it cannot render most of the rows ({broken})"
        if template.name != "auto":
            remedy = "template=auto takes one that keeps everything"
            raise UserError(f"{candidate.what} does not fit the rows: {why}", where="template", remedy=remedy)
        refused.append(f"{candidate.what} is not used: {why}")
    raise UserError("no chat template keeps all of the rows: " + "; ".join(refused), where="template")


def _refuses_most(bound: BoundTemplate, sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The template's reason, if it refuses more than half of the sampled conversations; None otherwise."""
    reasons = []
    for conversation in sample:
        try:
            bound.render(conversation)
        except RenderError as error:
            reasons.append(str(error))
    return reasons[0] if len(reasons) * 2 > len(sample) else None


def _bound(
    candidate: Candidate,
    template: Template,
    tokenizer: Any,
    wanted: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
) -> tuple[BoundTemplate, dict[str, str]]:
    """The candidate with what probing found out about it, and which of the wanted features it loses."""
    try:
        compiled(candidate.text)
    except RenderError as error:
        raise UserError(str(error), where=template.path or "template") from None
    family = candidate.family
    bound = BoundTemplate(
        name=candidate.name,
        text=candidate.text,
        reason="",
        family=family.name,
        system=template.system if template.system is not None else (family.system if candidate.ours else None),
        kwargs=dict(template.kwargs),
        variables={**special_variables(tokenizer), **template.kwargs},
        response_marker=family.response_marker,
        instruction_marker=family.instruction_marker,
        date=_date(template, candidate.text),
    )
    draw = renderer(bound.text, bound.variables, bound.date)
    bound.style, missing = find_style(draw, wanted)
    if not missing:
        _choose_thinking(bound, tokenizer, sample)
        if not _begins_anew(bound, tokenizer):
            bound.warnings.append(
                "the generation prompt ends in the middle of the token that an answer begins with, so that token is "
                "not trained: end the prompt without a space"
            )
    _set_stops(bound, tokenizer, family)
    _set_missing(bound, tokenizer, family if candidate.ours else None)
    write_defaults(bound, tokenizer)
    return bound, missing


def _date(template: Template, text: str) -> str | None:
    """The date that the template prints, if it prints one."""
    if "strftime_now" not in text:
        return None
    try:
        return Date.fromisoformat(template.date).isoformat() if template.date else Date.today().isoformat()
    except (TypeError, ValueError):
        raise UserError(f"{template.date!r} is not a date such as 2025-01-31", where="template.date") from None


def _choose_thinking(bound: BoundTemplate, tokenizer: Any, sample: Sequence[Mapping[str, Any]]) -> None:
    """Set `enable_thinking` where the rows do not follow the template's default generation prompt.

    Rows without reasoning after a prompt that opens a think block would train something that generation never sees; so
    would rows with reasoning after a prompt that closes it.
    """
    answers = [
        [message for message in conversation["messages"] if message.get("role") == "assistant"][-1:]
        for conversation in sample
        if "enable_thinking" not in conversation.get("chat_template_kwargs", {})
    ]
    kinds = {bool(reasoning_of(message)) for found in answers for message in found}
    if "enable_thinking" not in bound.text or "enable_thinking" in bound.kwargs or not kinds:
        return
    if all(_follows_prompt(bound, tokenizer, kind, {}) for kind in kinds):
        return
    for value in (True, False) if kinds == {True} else (False, True):
        if all(_follows_prompt(bound, tokenizer, kind, {"enable_thinking": value}) for kind in kinds):
            bound.kwargs["enable_thinking"] = bound.variables["enable_thinking"] = value
            have = "have reasoning" if kinds == {True} else "have no reasoning"
            bound.warnings.append(
                f"enable_thinking={str(value).lower()} is set for the chat template, for the rows {have} "
                "and would not follow its default generation prompt (template.kwargs.enable_thinking decides otherwise)"
            )
            return


def _follows_prompt(bound: BoundTemplate, tokenizer: Any, reasoning: bool, kwargs: Mapping[str, Any]) -> bool:
    """Whether an answer is rendered directly after the generation prompt, and begins with a token of its own."""
    answer = {"role": "assistant", "content": "zqanswer", **({"reasoning_content": "zqthought"} if reasoning else {})}
    draw = renderer(bound.text, {**bound.variables, **kwargs}, bound.date)
    question = [{"role": "user", "content": "zquser"}]
    try:
        prompt = draw({"messages": question}, bound.style, True)
        full = draw({"messages": [*question, answer]}, bound.style, False)
    except RenderError:
        return False
    return full.startswith(prompt) and not _straddled(tokenizer, full, len(prompt))


def _begins_anew(bound: BoundTemplate, tokenizer: Any) -> bool:
    """Whether a plain answer begins with a token of its own; True where it does not follow the prompt at all."""
    question, answer = {"role": "user", "content": "zquser"}, {"role": "assistant", "content": "It is"}
    try:
        prompt = bound.render({"messages": [question]}, True)
        full = bound.render({"messages": [question, answer]})
    except RenderError:
        return True
    at = len(prompt)
    return not (full.startswith("It is", at) and full.startswith(prompt) and _straddled(tokenizer, full, at))


def _straddled(tokenizer: Any, text: str, at: int) -> bool:
    """Whether a token begins before a position in the text and ends after it."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return any(start < at < end for start, end in offsets)


def _set_stops(bound: BoundTemplate, tokenizer: Any, family: Family) -> None:
    """Fill in how turns end."""
    added = control_tokens(tokenizer)
    eos = getattr(tokenizer, "eos_token", None)
    ends = [*family.stop_tokens, *([family.tool_stop] if family.tool_stop else [])]
    known = [token for token in ends if token in added or token in bound.text]
    likely = [token for token in (eos, *known) if token]
    draw = renderer(bound.text, bound.variables, bound.date)
    stop = find_stop(draw, bound.style, [*added, *family.control_tokens], likely)
    bound.open_turn = stop is None
    ordered = [stop, *known, eos] if stop else [*known, eos]
    bound.stop_tokens = [token for token in dict.fromkeys(ordered) if token]
    bound.tool_stop = family.tool_stop if family.tool_stop in known else None


def _set_missing(bound: BoundTemplate, tokenizer: Any, family: Family | None) -> None:
    """Record the control tokens that the tokenizer would split.

    Args:
        family: for a packaged template the family whose control tokens it writes; None for any other template, of which
            only the token that ends a turn is known.
    """
    needed = [token for token in family.control_tokens if token in bound.text] if family else []
    needed += [token for token in bound.stop_tokens[:1] if token not in needed]
    bound.missing_tokens = [token for token in needed if not is_single(tokenizer, token)]
