"""Any endpoint with OpenAI's chat completions API as a judge."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from sft.config.errors import UserError
from sft.evaluation.judges.base import CallFailed, JudgeSpec
from sft.evaluation.judges.http import Service
from sft.evaluation.judges.reach import ask_service, missing_key, text_at

log = logging.getLogger(__name__)


OTHERS_KEYS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
)


@dataclass
class OpenAIJudge(JudgeSpec):
    """Any endpoint with OpenAI's chat completions API: OpenAI, vLLM, llama.cpp, Ollama, ...

    Args:
        base_url: the address up to /v1.
        api_key_env: the environment variable with the key; null for a service that needs none. A server on this
            machine does not need one.
        response_format: how the answer's form is requested; older servers know only json_object or text.
    """

    model: str | None = "gpt-4.1-mini"
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"

    def __post_init__(self) -> None:
        """Check the settings of all judges, and that the key is not another service's.

        Raises:
            UserError: all faults at once.
        """
        super().__post_init__()
        if self.api_key_env in OTHERS_KEYS:
            raise UserError(
                f"{self.api_key_env} belongs to another service, which must not be sent to this one",
                where="judge.api_key_env",
                remedy="OPENAI_API_KEY, or a variable of its own",
            )

    def open(self) -> OpenAI:
        """The judge."""
        return OpenAI(self)


class OpenAI:
    """See `sft.evaluation.judges.base.Judge`; https://platform.openai.com/docs/api-reference/chat.

    Args:
        spec: the config node.
    """

    parallel = True

    def __init__(self, spec: OpenAIJudge) -> None:
        self.spec, self.name = spec, str(spec.model)
        key = os.environ.get(spec.api_key_env, "").strip() if spec.api_key_env else ""
        self.key_name = spec.api_key_env if key else None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.service = Service(spec.base_url, headers, spec.timeout, key or None)
        self.settings: Mapping[str, Any] = {
            "service": self.service.without_key(self.service.base_url),
            "temperature": spec.temperature,
            "max_tokens": spec.max_tokens,
            "response_format": spec.response_format,
        }

    def check(self) -> None:
        """List the models, which needs a valid key and costs nothing. Raises UserError."""
        if self.spec.api_key_env and self.key_name is None and not _on_this_machine(self.spec.base_url):
            more = ", or judge.api_key_env=null for a service that needs none"
            raise missing_key(self.spec.api_key_env, "judge=openai", more)
        listed = ask_service(self.service, self._list, self.key_name, self.spec.model)
        rows = listed.get("data") if isinstance(listed, dict) else None
        names = [str(row.get("id")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        if names and self.name not in names:
            log.warning("judge.model=%s is not among the models that %s lists", self.name, self.service.host)

    def _list(self) -> Any:
        try:
            return self.service.get("models")
        except CallFailed as error:
            if str(error).startswith(("HTTP 404", "HTTP 405")):
                return None  # not every server lists its models
            raise

    def reply(self, prompt: str, schema: Mapping[str, Any] | None = None) -> str:
        """Answer a prompt. Raises CallFailed."""
        spec = self.spec
        # OpenAI's newer models know only the second name, most other servers the first
        longest = "max_completion_tokens" if self.service.host.endswith("openai.com") else "max_tokens"
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            longest: spec.max_tokens,
        }
        if spec.temperature is not None:
            body["temperature"] = spec.temperature
        if schema is not None and spec.response_format == "json_schema":
            named = {"name": "verdict", "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif schema is not None and spec.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        answer = self.service.post("chat/completions", body)
        text, refusal = (text_at(answer, "choices", 0, "message", part) for part in ("content", "refusal"))
        if text_at(answer, "choices", 0, "finish_reason") == "length":
            raise CallFailed(f"the answer was cut off at judge.max_tokens={spec.max_tokens}", again=True)
        if refusal:
            raise CallFailed(f"the judge declined: {self.service.without_key(str(refusal))[:200]}", again=False)
        if not isinstance(text, str) or not text:
            raise CallFailed("the service gave an empty answer", again=True)
        return text


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
