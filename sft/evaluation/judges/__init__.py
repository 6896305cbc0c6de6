"""Language models that judge answers: the judges, what they are asked, and the cache of their replies.

from sft.evaluation.judges import GeminiJudge, MultiTurnEvaluator, Case, open_judging, sample_data

judging = open_judging(GeminiJudge(metrics=["correctness"]))
verdicts = judging.judge([Case(messages=[{"role": "user", "content": "2 + 2?"}], answer="4", reference="4")])
"""

from sft.evaluation.judges.base import CallFailed, Judge
from sft.evaluation.judges.cases import Case, read_tests, sample_data
from sft.evaluation.judges.judging import Judging, open_judging
from sft.evaluation.judges.multiturn import MultiTurnEvaluator
from sft.evaluation.judges.spec import GeminiJudge, JudgeSpec, LocalJudge, OpenAIJudge
from sft.evaluation.judges.verdict import Verdict

__all__ = [
    "CallFailed",
    "Case",
    "GeminiJudge",
    "Judge",
    "JudgeSpec",
    "Judging",
    "LocalJudge",
    "MultiTurnEvaluator",
    "OpenAIJudge",
    "Verdict",
    "open_judging",
    "read_tests",
    "sample_data",
]
