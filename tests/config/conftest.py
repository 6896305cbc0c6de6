"""One loader for all tests of the config: scanning Hydra's plugins takes longer than composing."""

import pytest

from sft.config.compose import Composed, compose_job, config_loader


@pytest.fixture(scope="session")
def loader():
    return config_loader()


@pytest.fixture
def compose(loader):
    def composed(*overrides: str) -> Composed:
        return compose_job(loader, "train", list(overrides), "train")

    return composed


@pytest.fixture
def faults(compose):
    """Overrides -> {key: message} of what is wrong with them."""

    def found(*overrides: str) -> dict[str, str]:
        return {error.where: f"{error.what} -> {error.remedy}" for error in compose(*overrides).errors}

    return found
