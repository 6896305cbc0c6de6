"""Fingerprints of a run's inputs, stored in run.json: resuming with different inputs is refused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft.config.build import build
from sft.config.run_config import RunConfig
from sft.data.cache import Cache
from sft.data.cache.keys import key_of
from sft.data.content import content_of
from sft.data.spec import Dataset
from sft.training.resume.fingerprints import changed_inputs, changed_versions, refuse

if TYPE_CHECKING:
    from sft.training.inputs import Inputs

log = logging.getLogger(__name__)

_OTHERWISE = "restore the original inputs, or use another hydra.run.dir for a new run"


def input_facts(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """Digests of the rows (all of them in order, and by source), of the tokenizer and of the chat template.

    Returns:
        What run.json stores: `data`, `tokenizer`, `template`, and `template_date`, the date with which a chat template
        that prints one was rendered.
    """
    report = inputs.data.report
    parts = {kind: {name: part["fingerprint"] for name, part in report[kind].items()} for kind in _KINDS}
    return {
        "data": {"rows": inputs.data.fingerprint, **parts, "files": file_digests(config)},
        "tokenizer": _tokenizer_digest(inputs.tokenizer),
        "template": key_of({"text": inputs.template.text, "system": inputs.template.system})[:32],
        "template_date": inputs.template.date,
    }


def file_digests(config: RunConfig) -> dict[str, str]:
    """Digests of the local sources' files, by "<kind>.<source>": they need reading but no tokenizer.

    Raises:
        UserError: a path that does not exist.
    """
    dataset: Dataset = build(config.dataset, where="dataset", allowed=config.allow_targets, _recursive_=False)
    cache, found = Cache(enabled=dataset.cache), {}
    for kind in _KINDS:
        for name, source in getattr(dataset, kind).items():
            if source.path and (content := content_of(source, cache, f"dataset.{kind}.{name}")) is not None:
                found[f"{kind}:{name}"] = key_of({"files": content})[:32]
    return found


def with_recorded_day(config: RunConfig, record: Mapping[str, Any]) -> RunConfig:
    """The config with the date that the run's chat template printed when it was started, unless the config sets one."""
    day, template = record.get("template_date"), config.template
    if not day or template is None or template.get("date"):
        return config
    return config.with_(template=template.with_(date=day))


def refuse_other_versions(config: RunConfig, record: Mapping[str, Any]) -> None:
    """Refuse to resume with different library versions than run.json records.

    Raises:
        UserError: naming each one that `allow_changes` does not name.
    """
    _refuse(changed_versions(record, config), config)


def refuse_other_inputs(config: RunConfig, record: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse to resume with different rows, tokenizer or chat template than run.json records.

    Raises:
        UserError: naming each one that `allow_changes` does not name; a different tokenizer is never allowed.
    """
    _refuse(changed_inputs(record, facts), config)


def refuse_other_files(config: RunConfig, record: Mapping[str, Any]) -> None:
    """The quick check for a finished run: rows are prepared and compared only if local files have changed.

    Raises:
        UserError: naming each source whose rows differ and that `allow_changes` does not name.
    """
    kept = (record.get("data") or {}).get("files")
    if kept and kept != file_digests(config):
        from sft.training.inputs import prepare_inputs  # heavy, and only needed here

        config = with_recorded_day(config, record)
        refuse_other_inputs(config, record, input_facts(config, prepare_inputs(config)))


def _refuse(changed: Mapping[str, tuple[Any, Any]], config: RunConfig) -> None:
    """Allowing a key of dataset or template to change also allows the resulting rows to differ."""
    allowed = [str(name) for name in config.allow_changes]
    groups = {name.partition(".")[0] for name in allowed}
    allowed += ["data"] * bool(groups & {"dataset", "template"}) + ["template"] * ("template" in groups)
    for line in refuse(changed, allowed, "allow_changes", _OTHERWISE, fixed=["tokenizer"]):
        log.warning("%s (allowed)", line)


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps([str(token) for token in tokenizer.all_special_tokens])
    return hashlib.sha256(f"{vocabulary}\0{special}".encode()).hexdigest()[:32]


_KINDS = ("sources", "eval_sources")
