"""Puts the user's own conf/ before the one that comes with sft, for sft's commands only."""

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SftSearchPath(SearchPathPlugin):
    """Prepends `--config-dir` and the working directory's conf/ if the main configs are sft's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from sft.config.paths import conf_dir, user_conf_dirs

        main = [str(item.path).removeprefix("file://") for item in search_path.get_path() if item.provider == "main"]
        if main != [str(conf_dir())]:
            return
        _drop_published_schemas()
        for directory in reversed(user_conf_dirs()):
            search_path.prepend("user", f"file://{directory}", anchor=SearchPathQuery(provider="main"))


def _drop_published_schemas() -> None:
    """Published plugins (such as hydra-joblib-launcher) register options with the same names as ours.

    Hydra would merge each of our YAML files into the schema of that name.
    """
    hydra_node = ConfigStore.instance().repo.get("hydra", {})
    for group, name in (
        ("launcher", "joblib"),
        ("launcher", "submitit_local"),
        ("launcher", "submitit_slurm"),
        ("sweeper", "optuna"),
    ):
        hydra_node.get(group, {}).pop(f"{name}.yaml", None)
