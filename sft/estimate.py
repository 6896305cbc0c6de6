"""`python -m sft.estimate model=qwen3_8b quant=nf4`: the memory that a run will need, before it starts."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("estimate")
def main(config: DictConfig) -> None:
    """Print the memory of each part, the available memory, and the overrides that would make it fit."""
    from sft.config.compose import plain

    settings = plain(config)
    with logs_to_stderr():
        found = _estimate(settings)
    print(json.dumps(found.to_json(), indent=2) if settings["json"] else found)


def _estimate(config: dict[str, Any]) -> Any:
    from sft.run.log import RunLog
    from sft.training.estimate.report import estimate_report

    with RunLog(None):
        return estimate_report(config, rows=config["rows"], measured=config["measure"])


if __name__ == "__main__":
    main()
