"""An unreachable hub is detected by one short request, and only for the duration of a load."""

import socket

import pytest
from huggingface_hub import constants

from sft.hub import reach


@pytest.fixture(autouse=True)
def nothing_asked_yet(monkeypatch):
    monkeypatch.setattr(reach, "_asked", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed():
    """An address that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_any_response_means_the_hub_is_reachable(service):
    assert reach.unreachable(service.url + "/no-such-page") is None


def test_a_refused_connection_is_reported_after_one_request(closed, caplog):
    assert "refused" in reach.unreachable(closed)
    assert "refused" in reach.unreachable(closed)
    assert caplog.text.count("only locally cached files are used") == 1


def test_a_server_without_an_answer_is_waited_for_no_longer_than_the_timeout(silent, monkeypatch):
    monkeypatch.setattr(reach, "TIMEOUT", 0.2)
    assert reach.unreachable(silent) in ("no answer within 0.2 s", "The read operation timed out", "timed out")


def test_only_the_block_is_offline(closed, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    with pytest.raises(RuntimeError), reach.cached_files_if_unreachable("org/model"):
        assert constants.is_offline_mode()
        raise RuntimeError
    assert not constants.is_offline_mode()


def test_a_directory_is_loaded_without_a_request(closed, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    with reach.cached_files_if_unreachable(str(tmp_path)):
        assert not constants.is_offline_mode() and not reach._asked


def test_a_model_of_an_unreachable_hub_fails_after_one_request(closed, monkeypatch, caplog):
    from sft.config.errors import UserError
    from sft.model.load import load_config
    from sft.model.spec import Model

    monkeypatch.setattr(constants, "ENDPOINT", closed)
    with pytest.raises(UserError, match="org/model is not on this machine, and the hub cannot be reached"):
        load_config(Model(name="org/model"))
    assert "Retrying" not in caplog.text
