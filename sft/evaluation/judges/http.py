"""One HTTP call to a judge's service, with its errors classified: retry, retry later, or fatal."""

from __future__ import annotations

import datetime
import email.utils
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sft.evaluation.judges.base import CallFailed
from sft.safety.secrets import HIDDEN, redact

_SHORT = 300  # characters of a service's message that are passed on
_LATER = {408, 409, 425, 429}  # temporary refusals; 5xx too


class Service:
    """An address that is called with JSON; thread-safe.

    Args:
        base_url: what every path is appended to.
        headers: of every call; the key is in one of them.
        timeout: seconds to connect, and between two pieces of an answer.
        secret: the key, which is removed from every message.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], timeout: float, secret: str | None) -> None:
        self.base_url, self.headers = base_url.rstrip("/"), dict(headers)
        self.timeout, self.secret = timeout, secret
        self._local = threading.local()

    @property
    def host(self) -> str:
        """The host for messages, without a login in the address."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2] or self.base_url

    def get(self, path: str) -> Any:
        """The JSON at a path. Raises CallFailed."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that a path answers to a body. Raises CallFailed."""
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        import requests

        try:
            response = self._session().request(
                method,
                f"{self.base_url}/{path}",
                json=body,
                headers=self.headers,
                timeout=self.timeout,
                allow_redirects=False,  # redirects are not followed, because the key is for this address alone
                auth=_unchanged,  # otherwise ~/.netrc would replace the key
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
            raise CallFailed(f"{self.host} is not the address of a service", again=False, fatal=True) from None
        except requests.exceptions.Timeout:
            raise CallFailed(f"no answer from {self.host} within {self.timeout:g} s", again=True) from None
        except (requests.exceptions.RequestException, OSError) as error:
            raise CallFailed(f"the connection to {self.host} failed ({_cause(error)})", again=True) from None
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            return response.json()
        except ValueError:
            raise CallFailed(f"{self.host} answered with something other than JSON", again=True) from None

    def _session(self) -> Any:
        import requests

        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session

    def _refusal(self, response: Any) -> CallFailed:
        status, body = response.status_code, _json(response)
        said = self._said(body, response)
        what = f"HTTP {status}" + (f": {said}" if said else "")
        bad_key = status in (401, 403) or "API_KEY_INVALID" in response.text[:4000]
        if bad_key or status == 404 or 300 <= status < 400:
            return CallFailed(what, again=False, fatal=True)
        if status in _LATER or status >= 500:
            return CallFailed(what, again=True, after=_retry_after(response.headers.get("Retry-After"), body))
        return CallFailed(what, again=False)

    def _said(self, body: Any, response: Any) -> str:
        error = body.get("error") if isinstance(body, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        text = " ".join(str(said if said else response.text[:_SHORT]).split())
        return self.without_key(text)[:_SHORT]

    def without_key(self, text: str) -> str:
        """A text without this service's key or any other secret of the environment."""
        return redact(text.replace(self.secret, HIDDEN) if self.secret else text)


def _unchanged(request: Any) -> Any:
    return request


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _cause(error: BaseException) -> str:
    """The type and message of the innermost cause, without object addresses."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    reason = getattr(inner, "reason", None)
    inner = reason if isinstance(reason, BaseException) else inner
    text = str(inner.args[-1]) if inner.args else type(inner).__name__
    return " ".join(text.rpartition(">: ")[2].split())[:120] or type(inner).__name__


def _retry_after(header: str | None, body: Any) -> float | None:
    """Seconds to wait, from the header (seconds or a date; RFC 9110, 10.2.3) or Gemini's RetryInfo."""
    if header:
        try:
            return max(0.0, float(header))
        except ValueError:
            pass
        try:
            when = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
        return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else []:
        delay = str(detail.get("retryDelay", "")) if isinstance(detail, dict) else ""
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None
