"""`python -m sft.merge run=DIR`: merges the run's adapter into its base weights, after comparing the logits of both."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr
from sft.config.paths import expanded

if TYPE_CHECKING:
    from sft.config.run_config import RunConfig


@command("merge")
def main(config: DictConfig) -> None:
    """Write the merged model and print its directory; with hub.push push it, or the unmerged adapter."""
    from sft.config.compose import plain
    from sft.run.log import RunLog

    with logs_to_stderr(), RunLog(None):
        result = merge(plain(config))
    print(result)


def merge(config: Mapping[str, Any]) -> str:
    """Merge the adapter of a resolved config.

    Returns:
        The directory, or the address of the repository it was pushed to.

    Raises:
        UserError: nothing to merge, another base, a merge that changes the logits, or a push that is impossible.
    """
    from sft.config.errors import UserError
    from sft.config.run_config import RunConfig
    from sft.hub.push import Push
    from sft.inference.model_source import find_model_source

    config = RunConfig.of(config)
    model_source = find_model_source(config)
    push = Push.of(config)
    if model_source.adapter is None:
        if model_source.run is None:
            raise UserError(
                "no adapter is named", where="run", remedy="run=DIR of a run, or model=... model.adapter=DIR output=DIR"
            )
        if push and push.what != "adapter":
            return push.send(model_source.run.model)
        raise UserError(
            "a full fine-tune has no adapter to merge; its model/ is already a complete model",
            where=f"run={config['run']}",
            remedy=f"use it as it is: model.name={model_source.run.model}",
        )
    if push and push.what == "adapter":
        return push.send(model_source.adapter)
    if not config.get("output") and model_source.run is None:
        raise UserError("an adapter without its run needs an output directory", where="output", remedy="output=DIR")
    output = expanded(config["output"]).absolute() if config.get("output") else model_source.run.merged  # type: ignore[union-attr]
    _merge(config, model_source, output)
    return push.send(output) if push else str(output)


def _merge(config: RunConfig, model_source: Any, output: Path) -> None:
    from sft.export.merged import Provenance, refuse_to_overwrite, write_merged
    from sft.inference.chat_session import bind_template
    from sft.inference.model_source import inferred_info
    from sft.run.lock import RunLock
    from sft.run.log import adopt
    from sft.run.metrics import Metrics

    adopt()
    refuse_to_overwrite(output, model_source.spec.locate(), bool(config.get("overwrite")))
    model_source.check_base()
    tokenizer, bound = bind_template(config, model_source)
    run, info = model_source.run, model_source.info or inferred_info(model_source, tokenizer, bound)
    metrics = (Metrics.read(run) if run else None) or Metrics(status="finished")
    config = config.with_(name=config.get("name") or model_source.name)
    with RunLock(run.path) if run else contextlib.nullcontext():
        provenance = Provenance(info, tokenizer, bound, config, metrics)
        write_merged(model_source.adapter, model_source.spec, provenance, output, run)


if __name__ == "__main__":
    main()
