"""The config node `judge`: which model judges answers. Each class is in its service's file; configs name them here."""

from sft.evaluation.judges.base import METRICS, JudgeSpec
from sft.evaluation.judges.gemini import GeminiJudge
from sft.evaluation.judges.local import LocalJudge
from sft.evaluation.judges.openai import OpenAIJudge

__all__ = ["METRICS", "GeminiJudge", "JudgeSpec", "LocalJudge", "OpenAIJudge"]
