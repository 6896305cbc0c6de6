"""`python -m sft.merge run=DIR`: the run's adapter into its base weights, after comparing the logits of the two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("merge")
def main(config: DictConfig) -> None:
    """Write the merged model and print its directory; with hub.push push it, or the adapter as it is."""
    from sft.config.compose import plain
    from sft.run.log import RunLog

    with logs_to_stderr(), RunLog(None):
        result = merge(plain(config))
    print(result)


def merge(config: Mapping[str, Any]) -> str:
    """Merge what a resolved config's `run` made.

    Returns:
        The directory, or the address of the repository it was pushed to.

    Raises:
        UserError: nothing to merge, another base, a merge that changes the logits, or a push that cannot be.
    """
    from sft.config.errors import UserError
    from sft.inference.subject import find_subject
    from sft.run.hub import Push

    subject = find_subject(config)
    assert subject.run is not None
    push = Push.of(config)
    if subject.adapter is None:
        if push and push.what != "adapter":
            return push.send(subject.run.model)
        raise UserError(
            "a full fine-tune has no adapter to merge; its model/ is whole already",
            where=f"run={config['run']}",
            remedy=f"use it as it is: model.name={subject.run.model}",
        )
    if push and push.what == "adapter":
        return push.send(subject.adapter)
    output = Path(config["output"]).expanduser().absolute() if config.get("output") else subject.run.merged
    _merge(config, subject, output)
    return push.send(output) if push else str(output)


def _merge(config: Mapping[str, Any], subject: Any, output: Path) -> None:
    from sft.inference.talk import bind_subject
    from sft.run.lock import RunLock
    from sft.run.log import adopt
    from sft.run.metrics import Metrics
    from sft.training.merged import refuse_to_overwrite, write_merged

    adopt()
    refuse_to_overwrite(output, subject.spec.locate(), bool(config.get("overwrite")))
    subject.check_base()
    tokenizer, bound = bind_subject(config, subject)
    metrics = Metrics.read(subject.run) or Metrics()
    with RunLock(subject.run.path):
        write_merged(subject.run, subject.spec, subject.info, tokenizer, bound, output, config, metrics)


if __name__ == "__main__":
    main()
