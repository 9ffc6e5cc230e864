"""A Hub on the loopback interface, and processes that talk to it with the real clients."""

import shutil
from pathlib import Path

import pytest
from hub_client import Client
from hub_server import Faults, Habits, HubServer


@pytest.fixture(scope="session")
def running_hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def hub(running_hub):
    """The Hub, empty and in good health."""
    running_hub.habits, running_hub.faults = Habits(), Faults()
    running_hub.repos.clear()
    running_hub.moved.clear()
    running_hub.lfs.clear()
    running_hub.requests.clear()
    return running_hub


def start(hub: HubServer, folder: Path, package: bool, **environment: str) -> Client:
    folder.mkdir()
    return Client(hub.environment(folder / "home") | environment, folder, package=package)


@pytest.fixture(scope="session")
def _client(running_hub, tmp_path_factory):
    client = start(running_hub, tmp_path_factory.mktemp("client") / "package", package=True)
    yield client
    client.close()


@pytest.fixture(scope="session")
def _plain_client(running_hub, tmp_path_factory):
    client = start(running_hub, tmp_path_factory.mktemp("client") / "plain", package=False)
    yield client
    client.close()


@pytest.fixture
def hub_client(hub):
    """Starts one more process with var_hf installed, in an environment of its own."""
    clients = []

    def start_one(folder: Path, **environment: str) -> Client:
        clients.append(start(hub, folder, package=True, **environment))
        return clients[-1]

    yield start_one
    for client in clients:
        client.close()


@pytest.fixture
def client(hub, _client):
    """A process with var_hf installed."""
    return _client


@pytest.fixture
def plain_client(hub, _plain_client):
    """A process with diffusers and transformers alone."""
    return _plain_client


@pytest.fixture
def cache(tmp_path):
    """An empty cache."""
    return tmp_path / "cache"


@pytest.fixture
def folder(pipe_folder, tmp_path):
    """A saved pipeline of one's own."""
    return Path(shutil.copytree(pipe_folder, tmp_path / "my-var"))
