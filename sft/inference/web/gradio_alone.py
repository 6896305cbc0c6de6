"""Gradio itself: asked for where it is not installed, and kept from talking to anybody but the page."""

from __future__ import annotations

import importlib.util
import os

from sft.config.errors import UserError

# These alone may still say something: where it writes, and the path that a proxy serves the page under.
_KEPT = {"GRADIO_TEMP_DIR", "GRADIO_ROOT_PATH"}


def ready_gradio() -> None:
    """To be called before gradio is imported, which reads the environment then.

    Its own variables are taken out: GRADIO_SHARE or GRADIO_ALLOWED_PATHS could open what the config keeps closed.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("gradio is not installed, which the page is made with", remedy="pip install 'sft[webui]'")
    for name in [name for name in os.environ if name.startswith("GRADIO_") and name not in _KEPT]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
