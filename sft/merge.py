"""`python -m sft.merge run=DIR`: the run's adapter into its base weights, after comparing the logits of the two."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr
from sft.config.paths import expanded


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
    from sft.hub.push import Push
    from sft.inference.subject import find_subject

    subject = find_subject(config)
    push = Push.of(config)
    if subject.adapter is None:
        if subject.run is None:
            raise UserError(
                "no adapter is named", where="run", remedy="run=DIR of a run, or model=... model.adapter=DIR output=DIR"
            )
        if push and push.what != "adapter":
            return push.send(subject.run.model)
        raise UserError(
            "a full fine-tune has no adapter to merge; its model/ is whole already",
            where=f"run={config['run']}",
            remedy=f"use it as it is: model.name={subject.run.model}",
        )
    if push and push.what == "adapter":
        return push.send(subject.adapter)
    if not config.get("output") and subject.run is None:
        raise UserError("an adapter without its run does not say where to", where="output", remedy="output=DIR")
    output = expanded(config["output"]).absolute() if config.get("output") else subject.run.merged  # type: ignore[union-attr]
    _merge(config, subject, output)
    return push.send(output) if push else str(output)


def _merge(config: Mapping[str, Any], subject: Any, output: Path) -> None:
    from sft.export.merged import Provenance, refuse_to_overwrite, write_merged
    from sft.inference.subject import described
    from sft.inference.talk import bind_subject
    from sft.run.lock import RunLock
    from sft.run.log import adopt
    from sft.run.metrics import Metrics

    adopt()
    refuse_to_overwrite(output, subject.spec.locate(), bool(config.get("overwrite")))
    subject.check_base()
    tokenizer, bound = bind_subject(config, subject)
    run, info = subject.run, subject.info or described(subject, tokenizer, bound)
    metrics = (Metrics.read(run) if run else None) or Metrics(status="finished")
    config = {**config, "name": config.get("name") or subject.name}
    with RunLock(run.path) if run else contextlib.nullcontext():
        provenance = Provenance(info, tokenizer, bound, config, metrics)
        write_merged(subject.adapter, subject.spec, provenance, output, run)


if __name__ == "__main__":
    main()
