"""Pushing to the Hugging Face hub: a directory with weights and their card, as a repository."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.run_config import RunConfig

log = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Push:
    """A requested push. The token comes from HF_TOKEN only, the address of the hub from HF_ENDPOINT.

    Attributes:
        repository: ORG/NAME; created if it does not exist.
        private: whether it is created as private.
        what: "adapter", "merged", or None for what the command makes.
    """

    repository: str
    private: bool = True
    what: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Push | None:
        """From the config node `hub`; None where nothing is to be pushed.

        Raises:
            UserError: the name is invalid, or there is no token; raised before anything is computed.
        """
        node = RunConfig.of(config).hub
        if not node.push:
            return None
        if not _REPOSITORY.fullmatch(str(node.push)):
            raise UserError(f"{node.push!r} is not the name of a repository", where="hub.push", remedy="ORG/NAME")
        if not os.environ.get("HF_TOKEN"):
            raise UserError(
                "pushing needs a token", where="hub.push", remedy="set HF_TOKEN in the environment, or in .env"
            )
        return cls(str(node.push), node.private is not False, node.what)

    def send(self, directory: Path) -> str:
        """Push a directory as one commit.

        Returns:
            The repository's address.

        Raises:
            UserError: the hub cannot be reached, or refuses.
        """
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"])
        try:
            made = api.create_repo(self.repository, private=self.private, exist_ok=True)
            api.upload_folder(
                repo_id=self.repository,
                folder_path=str(directory),
                commit_message=f"{directory.name}, trained with sft",
            )
        except Exception as error:
            raise _refused(error, self.repository) from error
        log.info("pushed %s to %s", directory, made)
        return str(made)


def _refused(error: Exception, repository: str) -> UserError:
    """A refusal of the hub, or a network error, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedy = {
        401: "HF_TOKEN is not valid: create one with write access",
        403: f"HF_TOKEN may not write to {repository}: give it write access, or push elsewhere",
    }.get(status or 0, "check the network, and unset HF_HUB_OFFLINE")
    text = " ".join(str(error).split())[:300]
    return UserError(f"{repository} could not be pushed: {text}", where="hub.push", remedy=remedy)
