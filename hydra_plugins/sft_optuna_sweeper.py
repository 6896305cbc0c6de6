"""`hydra/sweeper=optuna`: a search over a space in Hydra's own grammar. The work is done in sft.sweep.search.search."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Takes the keys of `conf/hydra/sweeper/optuna.yaml`, documented in sft.sweep.search.study.SearchOptions."""

    requires = ("optuna", "optuna")  # the module, and the extra that brings it
    has_study = True  # to which its jobs report

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search; returns what is written to optimization_results.json."""
        from sft.config.errors import PastHydra, UserError
        from sft.sweep.search.hydra import search

        assert self.config is not None

        try:
            return search(self.config, self.context.config_loader, self.launcher, arguments)
        except UserError as error:  # Hydra would wrap it
            raise PastHydra(error) from error
