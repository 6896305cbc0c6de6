"""Judging the answers of an evaluation: the judge is checked first and used last."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace

from sft.config.build import build
from sft.config.errors import UserError
from sft.config.run_config import RunConfig
from sft.evaluation.judges.answers import judge_answers
from sft.evaluation.judges.judging import Judging, open_judging
from sft.evaluation.spec import Evaluation
from sft.inference.evaluated import Evaluated

log = logging.getLogger(__name__)


def open_judge(config: RunConfig) -> Judging | None:
    """The judge of a config, after checking its key, address and model. None with `judge=none`.

    Raises:
        UserError: it is not usable.
    """
    spec = build(config.get("judge"), where="judge", allowed=config.allow_targets)
    if spec is None:
        return None
    judging = open_judging(spec)
    judging.check()
    return judging


def with_answers(spec: Evaluation) -> Evaluation:
    """The evaluation with generation switched on, which a judge needs."""
    return spec if spec.generates else replace(spec, generate=True)


def judge(found: Evaluated, judging: Judging) -> None:
    """Have the answers judged, also the base's, and add the verdicts to them.

    Raises:
        UserError: the judge refuses every call.
        Interrupted: by a signal; the verdicts so far are kept for the next start.
    """
    gc.collect()  # free the judged model to make room for a local judge
    for figures in (found.after, found.before):
        if figures is None or figures.answers is None:
            continue
        if not figures.answers.rows:
            raise UserError(
                "there are no answers to judge: the rows have no assistant turns", where="dataset", remedy="give others"
            )
        figures.answers = judge_answers(judging, figures.answers)
    client = judging.client
    found.facts = {
        "judge": judging.judge_model.name,
        "judge_calls": client.calls,
        "judge_remembered": client.cached,
    }
    log.info(
        "judge %s: %d calls, %d cached answers (%s)",
        judging.judge_model.name,
        client.calls,
        client.cached,
        client.cache.path,
    )
