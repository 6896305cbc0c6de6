"""A judge over the answers of an evaluation: found and asked for its key first, heard last."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.evaluation.judges.answers import judge_answers
from sft.evaluation.judges.judging import Judging, open_judging
from sft.evaluation.spec import Evaluation
from sft.inference.evaluated import Evaluated

log = logging.getLogger(__name__)


def open_judge(config: Mapping[str, Any]) -> Judging | None:
    """The judge that a config names, checked: its key, its address, its model. None with `judge=none`.

    Raises:
        UserError: it cannot be asked.
    """
    spec = build(config.get("judge"), where="judge", allowed=config.get("allow_targets") or [])
    if spec is None:
        return None
    judging = open_judging(spec)
    judging.check()
    return judging


def with_answers(spec: Evaluation) -> Evaluation:
    """The evaluation with the answers that a judge needs."""
    return spec if spec.generates else replace(spec, generate=True)


def judge(found: Evaluated, judging: Judging) -> None:
    """Have the answers judged, the base's beside them; verdicts join them.

    Raises:
        UserError: the judge refuses every call.
        Interrupted: by a signal; verdicts that were had are kept for the next start.
    """
    gc.collect()  # the judged model makes room for a local judge
    for figures in (found.after, found.before):
        if figures is None or figures.answers is None:
            continue
        if not figures.answers.rows:
            raise UserError(
                "there is no answer to judge: the rows have no assistant turn", where="dataset", remedy="give others"
            )
        figures.answers = judge_answers(judging, figures.answers)
    asking = judging.asking
    found.facts = {
        "judge": judging.judge_model.name,
        "judge_calls": asking.calls,
        "judge_remembered": asking.remembered,
    }
    log.info(
        "judge %s: %d calls, %d answers from before (%s)",
        judging.judge_model.name,
        asking.calls,
        asking.remembered,
        asking.ledger.path,
    )
