"""Requests made from the description of the API: none gets an answer of 500 or more."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

OPERATIONS = [
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/images/classifications"),
    ("GET", "/v1/models"),
    ("GET", "/readyz"),
]


@pytest.fixture(scope="module")
def description(make_client):
    return schemathesis.openapi.from_asgi("/openapi.json", make_client().app)


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_is_answered_by_a_server_error(description, method, path, mode):
    operation = description[path][method]
    if mode.is_negative and not (operation.body or operation.query):
        return

    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        case.call_and_validate(checks=[not_a_server_error])

    ask()
