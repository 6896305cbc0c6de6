"""Gemini as a judge, over its REST interface (generateContent)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.evaluation.judges.base import CallFailed, JudgeSpec
from sft.evaluation.judges.http import Service
from sft.evaluation.judges.reach import ask_service, missing_key, text_at

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")


@dataclass
class GeminiJudge(JudgeSpec):
    """Gemini; the key is the environment variable GEMINI_API_KEY, or GOOGLE_API_KEY.

    Args:
        base_url: the service's address.
    """

    model: str | None = "gemini-2.5-flash"
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"

    def open(self) -> Gemini:
        """The judge."""
        return Gemini(self)


class Gemini:
    """See `sft.evaluation.judges.base.Judge`; https://ai.google.dev/api/generate-content.

    Args:
        spec: the config node.
    """

    parallel = True

    def __init__(self, spec: GeminiJudge) -> None:
        self.spec = spec
        self.name = str(spec.model).removeprefix("models/")
        self.key_name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
        key = os.environ[self.key_name].strip() if self.key_name else None
        self.service = Service(spec.base_url, {"x-goog-api-key": key} if key else {}, spec.timeout, key)
        self.settings: Mapping[str, Any] = {
            "service": self.service.without_key(self.service.base_url),
            "temperature": spec.temperature,
            "max_tokens": spec.max_tokens,
        }

    def check(self) -> None:
        """Look the model up, which needs a valid key and costs nothing. Raises UserError."""
        if self.key_name is None:
            raise missing_key(" or ".join(KEYS), "judge=gemini", "; https://aistudio.google.com/apikey gives one")
        ask_service(self.service, lambda: self.service.get(f"models/{self.name}"), self.key_name, self.spec.model)

    def reply(self, prompt: str, schema: Mapping[str, Any] | None = None) -> str:
        """Answer a prompt. Raises CallFailed."""
        config: dict[str, Any] = {"maxOutputTokens": self.spec.max_tokens}
        if self.spec.temperature is not None:
            config["temperature"] = self.spec.temperature
        if schema is not None:
            config |= {"responseMimeType": "application/json", "responseJsonSchema": dict(schema)}
        body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": config}
        answer = self.service.post(f"models/{self.name}:generateContent", body)
        blocked = text_at(answer, "promptFeedback", "blockReason")
        if blocked:
            raise CallFailed(f"the service blocked the question ({blocked})", again=False)
        parts = text_at(answer, "candidates", 0, "content", "parts")
        said = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        text = "".join(str(part.get("text") or "") for part in said if not part.get("thought"))
        reason = text_at(answer, "candidates", 0, "finishReason")
        if reason == "MAX_TOKENS":
            raise CallFailed(f"the answer was cut off at judge.max_tokens={self.spec.max_tokens}", again=True)
        if not text:
            again = reason in (None, "STOP", "OTHER")
            raise CallFailed(f"the service gave an empty answer ({reason or 'without a reason'})", again=again)
        return text
