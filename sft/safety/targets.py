"""What `_target_` may name.

A config is data, and data must not choose which code runs, as `_target_: os.system` would. Names are allowed one by
one, never by package (a package exposes everything it imports). A class of sft is allowed by the packaged YAML that
names it, so that a new callback is one class and one YAML; a user's own classes go into `allow_targets`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from sft.config.errors import UserError
from sft.config.paths import conf_dir
from sft.config.source_code.definitions import DEFINED_IN

# Hydra builds these itself at its start.
HYDRA = re.compile(
    r"hydra\._internal\.(core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper))"
    r"|hydra_plugins\.(hydra_joblib_launcher\.joblib_launcher\.JoblibLauncher"
    r"|hydra_submitit_launcher\.submitit_launcher\.(Local|Slurm)Launcher|sft_[a-z_]+\.[A-Za-z]+)"
)
_TARGET = re.compile(r"^[^#\n]*\b_target_:\s*([\w.]+)", re.MULTILINE)


def check_target(target: object, where: str, allowed: Iterable[str] = ()) -> UserError | None:
    """The error for a `_target_` that is not allowed, or None."""
    if isinstance(target, str) and (
        target in DEFINED_IN
        or target in set(allowed)
        or (target.startswith("sft.") and target in packaged_targets())
        or (where.startswith("hydra.") and HYDRA.fullmatch(target))
    ):
        return None
    return UserError(
        f"_target_ {target} is not on the list of what a config may build, and was not run",
        where=where,
        remedy=f"if it is your own class and you trust it: 'allow_targets=[{target}]'",
    )


@functools.cache
def packaged_targets() -> frozenset[str]:
    """Every `_target_` that the packaged conf/ names."""
    found: set[str] = set()
    for path in conf_dir().rglob("*.yaml"):
        found.update(_TARGET.findall(path.read_text(encoding="utf-8")))
    return frozenset(found)
