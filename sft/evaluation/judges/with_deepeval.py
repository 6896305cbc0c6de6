"""DeepEval's metrics, asking through sft's judge: its patience, its limits and its memory hold for them too.

DeepEval is kept from reading .env files, sending telemetry and writing folders into the working directory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from sft.config.errors import UserError
from sft.evaluation.judges.asking import Asking, Stopped
from sft.evaluation.judges.base import CallFailed
from sft.evaluation.judges.cases import Case
from sft.evaluation.judges.rubrics import RUBRICS
from sft.evaluation.judges.verdict import Nonsense, Verdict, read_object

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
    # where it would keep state nevertheless
    os.environ.setdefault("DEEPEVAL_CACHE_FOLDER", os.path.join(tempfile.gettempdir(), f"sft-deepeval-{os.getuid()}"))
    try:
        import deepeval
    except ImportError as error:
        raise UserError(
            f"DeepEval cannot be imported ({error})",
            where="judge.scorer=deepeval",
            remedy="pip install 'sft[judge]', or judge.scorer=sft, which needs nothing more",
        ) from None
    return deepeval


class DeepEvalScorer:
    """Measures a case with DeepEval's metric of a name.

    Correctness and coherence are GEval with sft's own question; relevancy is AnswerRelevancyMetric, context consistency
    FaithfulnessMetric, hallucination HallucinationMetric (0 is none, as with sft's own).

    Args:
        asking: the judge.
    """

    def __init__(self, asking: Asking) -> None:
        require_deepeval()
        self.model = _bridge(asking)

    def __call__(self, name: str, case: Case) -> Verdict:
        """The verdict.

        Raises:
            CallFailed, Nonsense, Stopped: as `Asking.ask`.
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
        except (CallFailed, Nonsense, Stopped):
            raise
        except Exception as error:  # whatever DeepEval makes of an answer that it cannot use
            raise Nonsense(f"DeepEval: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
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


def _bridge(asking: Asking) -> Any:
    """sft's judge as DeepEval's model."""
    from deepeval.models import DeepEvalBaseLLM

    class Bridge(DeepEvalBaseLLM):
        def load_model(self) -> Any:
            return asking.judge

        def get_model_name(self) -> str:
            return asking.judge.name

        def generate(self, prompt: str, schema: Any = None) -> Any:
            """The judge's answer: text, or an object of the schema."""
            if schema is None:
                return asking.ask(prompt, None, str)

            def read(text: str) -> Any:
                try:
                    return schema.model_validate(read_object(text))
                except ValueError as error:
                    raise Nonsense(f"the judge's answer is not of the form asked for: {_first(error)}") from None

            return asking.ask(prompt, schema.model_json_schema(), read)

        async def a_generate(self, prompt: str, schema: Any = None) -> Any:
            return self.generate(prompt, schema)

    return Bridge(asking.judge.name)


def _first(error: ValueError) -> str:
    errors = error.errors() if hasattr(error, "errors") else []
    return json.dumps([str(errors[0].get("loc")), errors[0].get("msg")]) if errors else str(error)[:100]
