"""`python -m sft.doctor`: what this machine has, and what is missing for which feature."""

from __future__ import annotations

import json

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("doctor")
def main(config: DictConfig) -> None:
    """Print versions, devices, kernels, disk space, API keys and extras; always exits with 0."""
    from sft.model.doctor import inspect_machine

    with logs_to_stderr():
        found = inspect_machine()
    print(json.dumps(found.to_json(), indent=2) if config.json else found)


if __name__ == "__main__":
    main()
