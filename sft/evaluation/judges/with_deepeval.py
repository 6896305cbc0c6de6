"""DeepEval's metrics through sft's judge, with its retries, limits and cache.

DeepEval is prevented from reading .env files, sending telemetry and writing folders into the working directory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from sft.config.errors import UserError
from sft.evaluation.judges.base import CallFailed
from sft.evaluation.judges.cases import Case
from sft.evaluation.judges.client import JudgeClient, JudgingStopped
from sft.evaluation.judges.rubrics import RUBRICS
from sft.evaluation.judges.verdict import InvalidVerdict, Verdict, read_object

_QUIET = {
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES",
    "DEEPEVAL_DISABLE_DOTENV": "1",
    "DEEPEVAL_DISABLE_LEGACY_KEYFILE": "1",
    "DEEPEVAL_DISABLE_TIMEOUTS": "1",  # the judge has its own
    "DEEPEVAL_UPDATE_WARNING_OPT_IN": "0",
    "DEEPEVAL_FILE_SYSTEM": "READ_ONLY",
    "ERROR_REPORTING": "NO",
}


def require_deepeval() -> Any:
    """Import DeepEval, quiet.

    Raises:
        UserError: it is not installed.
    """
    os.environ.update(_QUIET)
    # where it would keep state even so
    os.environ.setdefault("DEEPEVAL_CACHE_FOLDER", os.path.join(tempfile.gettempdir(), f"sft-deepeval-{os.getuid()}"))
    try:
        import deepeval
    except ImportError as error:
        raise UserError(
            f"DeepEval cannot be imported ({error})",
            where="judge.scorer=deepeval",
            remedy="pip install 'sft[judge]', or judge.scorer=sft, which needs no extra",
        ) from None
    return deepeval


class DeepEvalScorer:
    """Scores a case with a DeepEval metric.

    Correctness and coherence are GEval with sft's own question; relevancy is AnswerRelevancyMetric, context consistency
    FaithfulnessMetric, hallucination HallucinationMetric (0 is none, as with sft's own).

    Args:
        client: the judge.
    """

    def __init__(self, client: JudgeClient) -> None:
        require_deepeval()
        self.model = _bridge(client)

    def __call__(self, name: str, case: Case) -> Verdict:
        """The verdict.

        Raises:
            CallFailed, InvalidVerdict, JudgingStopped: as `JudgeClient.ask`.
        """
        from deepeval.test_case import LLMTestCase

        facts = case.context or [_conversation(case), *([case.reference] if case.reference else [])]
        test = LLMTestCase(
            input=_conversation(case),
            actual_output=case.answer,
            expected_output=case.reference,
            context=facts,
            retrieval_context=facts,
        )
        try:
            metric = _METRICS[name](self.model)
            metric.measure(test, _show_indicator=False)
        except (CallFailed, InvalidVerdict, JudgingStopped):
            raise
        except Exception as error:  # DeepEval may raise anything for an answer that it cannot use
            raise InvalidVerdict(f"DeepEval: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        return Verdict(min(1.0, max(0.0, float(metric.score))), str(metric.reason or ""))


def _geval(name: str, *parts: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        from deepeval.metrics import GEval
        from deepeval.test_case import SingleTurnParams

        rubric = RUBRICS[name]
        steps = [rubric.asks, f"The lowest score: {rubric.low}. The highest score: {rubric.high}."]
        params = [getattr(SingleTurnParams, part) for part in ("INPUT", "ACTUAL_OUTPUT", *parts)]
        return GEval(name=name, evaluation_params=params, evaluation_steps=steps, model=model, async_mode=False)

    return make


def _metric(class_name: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        import deepeval.metrics

        return getattr(deepeval.metrics, class_name)(model=model, include_reason=True, async_mode=False)

    return make


_METRICS = {
    "correctness": _geval("correctness", "EXPECTED_OUTPUT"),
    "coherence": _geval("coherence"),
    "relevancy": _metric("AnswerRelevancyMetric"),
    "context_consistency": _metric("FaithfulnessMetric"),
    "hallucination": _metric("HallucinationMetric"),
}


def _conversation(case: Case) -> str:
    if len(case.messages) == 1:
        return str(case.messages[0].get("content") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in case.messages)


def _bridge(client: JudgeClient) -> Any:
    """sft's judge as DeepEval's model."""
    from deepeval.models import DeepEvalBaseLLM

    class Bridge(DeepEvalBaseLLM):
        def load_model(self) -> Any:
            return client.judge

        def get_model_name(self) -> str:
            return client.judge.name

        def generate(self, prompt: str, schema: Any = None) -> Any:
            """The judge's answer: text, or an object of the schema."""
            if schema is None:
                return client.ask(prompt, None, str)

            def read(text: str) -> Any:
                try:
                    return schema.model_validate(read_object(text))
                except ValueError as error:
                    raise InvalidVerdict(
                        f"the judge's answer does not have the requested form: {_first(error)}"
                    ) from None

            return client.ask(prompt, schema.model_json_schema(), read)

        async def a_generate(self, prompt: str, schema: Any = None) -> Any:
            return self.generate(prompt, schema)

    return Bridge(client.judge.name)


def _first(error: ValueError) -> str:
    errors = error.errors() if hasattr(error, "errors") else []
    return json.dumps([str(errors[0].get("loc")), errors[0].get("msg")]) if errors else str(error)[:100]
