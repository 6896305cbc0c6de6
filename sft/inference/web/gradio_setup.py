"""Preparing Gradio: check that it is installed, and keep it from contacting other hosts."""

from __future__ import annotations

import importlib.util
import os

from sft.config.errors import UserError

# The variables that stay: where it writes, and the path under which a proxy serves the page.
_KEPT = {"GRADIO_TEMP_DIR", "GRADIO_ROOT_PATH"}


def prepare_gradio() -> None:
    """Must be called before gradio is imported, because it reads the environment at import.

    Its own variables are removed: GRADIO_SHARE or GRADIO_ALLOWED_PATHS could expose what the config does not.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("gradio is not installed", remedy="pip install 'sft[webui]'")
    for name in [name for name in os.environ if name.startswith("GRADIO_") and name not in _KEPT]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
