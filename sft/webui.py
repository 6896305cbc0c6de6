"""`python -m sft.webui run=DIR`: the chat in a browser."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("webui")
def main(config: DictConfig) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Nothing is written except saved conversations."""
    from hydra.core.hydra_config import HydraConfig

    from sft.config.compose import plain
    from sft.inference.web.access import Access
    from sft.inference.web.gradio_setup import prepare_gradio
    from sft.run.log import RunLog

    settings = plain(config)
    access = Access.of(settings)  # checked before anything is loaded
    access.check_free()
    prepare_gradio()
    overrides = further(list(HydraConfig.get().overrides.task)) if settings["run"] else []
    stdout = sys.stdout
    with logs_to_stderr():
        from sft.inference.web.server import exit_on_signal, running_server, wait

        with exit_on_signal(), RunLog(None), running_server(settings, overrides, access) as addresses:
            wait(lambda address: print(address, file=stdout, flush=True), addresses)


def further(overrides: list[str]) -> list[str]:
    """The overrides that apply to every run selected on the page: those of how models are loaded."""
    return [each for each in overrides if each.lstrip("+~").partition("=")[0].partition(".")[0] in ("model", "quant")]


if __name__ == "__main__":
    main()
