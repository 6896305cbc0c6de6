"""Errors of loading a model, as one line with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from sft.config.errors import UserError
from sft.hub.reach import cached_files_if_unreachable

OFFLINE_REMEDY = (
    "check the network and unset HF_HUB_OFFLINE, give model.name=DIR, or use model=smollm2_offline, which needs no hub"
)
_UNREACHABLE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
}
# Exceptions of the libraries for an invalid config.json or tokenizer.json.
_OF_BROKEN_FILES = (TypeError, IndexError, AttributeError, AssertionError, RecursionError, UnpicklingError)


@contextmanager
def loading(name: str, where: str = "model.name") -> Iterator[None]:
    """Turn errors of transformers and the hub about missing, gated and broken repositories into a UserError.

    Args:
        name: hub id or directory that is loaded.
        where: the config key it came from.
    """
    try:
        with cached_files_if_unreachable(name):
            yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError, *_OF_BROKEN_FILES) as error:
        raise explain(error, name, where) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException" or type(error) is Exception:  # raised by tokenizers, from Rust
            raise explain(error, name, where) from error
        # a truncated file, a value of the wrong type, another model's weights
        if type(error).__name__.startswith(("SafetensorError", "StrictDataclass")) or "mismatch" in str(error):
            raise explain(error, name, where) from error
        raise


def explain(error: BaseException, name: str, where: str = "model.name") -> UserError:
    """The UserError for an error of loading `name`."""
    chain = _chain(error)
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    codes = {getattr(getattr(link, "response", None), "status_code", None) for link in chain}
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RecursionError):
        text = "one of its JSON files is nested too deeply"
    if "GatedRepoError" in kinds or "gated repo" in text or 403 in codes:
        return UserError(
            f"{name} is gated: its terms have to be accepted first",
            where=where,
            remedy=f"accept them at https://huggingface.co/{name}, then log in (hf auth login) or set HF_TOKEN",
        )
    if "RevisionNotFoundError" in kinds:
        return UserError(f"{name} has no such revision", where="model.revision", remedy="a branch, tag or commit of it")
    if "RepositoryNotFoundError" in kinds or 401 in codes:
        return UserError(
            f"{name} is neither a directory here nor a repository that can be read on the hub",
            where=where,
            remedy="check the spelling; for a private one log in (hf auth login) or set HF_TOKEN",
        )
    if kinds & _UNREACHABLE or "couldn't connect" in text or "offline mode" in text.lower():
        return UserError(
            f"{name} is not on this machine, and the hub cannot be reached", where=where, remedy=OFFLINE_REMEDY
        )
    if "trust_remote_code" in text:
        return UserError(
            f"{name} brings its own code, which is not run by default",
            where=where,
            remedy="read that code, then model.trust_remote_code=true",
        )
    if "safetensors" in text and "no file named" in text:
        return UserError(
            f"{name} has no safetensors weights, and pickled ones are not read",
            where=where,
            remedy="convert it: load it once with transformers and save_pretrained(DIR)",
        )
    return UserError(f"{name} cannot be loaded: {text}", where=where, remedy=_remedy(error, name))


def _remedy(error: BaseException, name: str) -> str:
    if isinstance(error, ImportError):
        return "install the package that it names"
    if Path(name).is_dir():
        return "check that the directory is complete: config.json, *.safetensors and the tokenizer's files"
    return "check model.name and model.revision"


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found
