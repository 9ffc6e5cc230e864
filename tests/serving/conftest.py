"""The API over a model in this process, without Ray, and a client for it."""

import asyncio

import httpx
import pytest
from conftest import make_pipe

from var_hf.serving.api import build_api
from var_hf.serving.model import ServedModel
from var_hf.serving.protocol import Limits


class LocalBackend:
    """A backend without replicas."""

    def __init__(self, model: ServedModel):
        self.model = model
        self.draw = model.draw

    async def facts(self):
        return self.model.facts


class Client:
    """Sends requests to an application, one event loop per call."""

    def __init__(self, app, admission, headers=()):
        self.app, self.admission, self.headers = app, admission, dict(headers)

    def run(self, work):
        """The result of `await work(client)` with an asynchronous client."""

        async def connected():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=self.headers
            ) as client:
                return await work(client)

        return asyncio.run(connected())

    def ask(self, method, path, **options):
        return self.run(lambda client: client.request(method, path, **options))

    def generate(self, prompt=3, **options):
        return self.ask("POST", "/v1/images/generations", json={"prompt": prompt, **options})


@pytest.fixture(scope="session")
def served():
    model = ServedModel(make_pipe(), "tiny", max_pictures=4)
    yield model
    model.close()


@pytest.fixture(scope="session")
def make_client(served):
    def make(keys=(), headers=(), backend=None, **limits):
        return Client(*build_api(backend or LocalBackend(served), Limits(**limits), keys), headers)

    return make


@pytest.fixture
def client(make_client):
    return make_client()
