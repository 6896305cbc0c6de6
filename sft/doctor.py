"""`python -m sft.doctor`: what this machine has, and what is missing for what."""

from __future__ import annotations

import json

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("doctor")
def main(config: DictConfig) -> None:
    """Print versions, devices, kernels, space, keys and extras; always exits 0."""
    from sft.model.doctor import examine

    with logs_to_stderr():
        found = examine()
    print(json.dumps(found.to_json(), indent=2) if config.json else found)


if __name__ == "__main__":
    main()
