"""The recipe "an endpoint" of docs/extending.md, followed for `GET /invented/<name>`: a type, a handler, a line of
`ROUTES`. All else follows from the line."""

import os
from collections.abc import Iterator

import pytest

from frontend import launcher
from frontend.launcher import Child
from tests.frontend.support import Setup, running_setup


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    def start(name: str, module: str, arguments: list[str], fds: list[int], env: dict[str, str]) -> Child:
        return Child(name, "tests.extending.toy_frontend", arguments, fds, env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "Child", start)
        patch.setenv("PYTHONPATH", os.getcwd())
        with running_setup(tmp_path_factory.mktemp("run")) as running:
            yield running


def test_the_endpoint_answers(setup: Setup) -> None:
    answer = setup.http.get("/invented/Ada")
    assert (answer.status_code, answer.json()) == (200, {"text": "Hello Ada"})


def test_methods_follow_from_the_route(setup: Setup) -> None:
    assert setup.http.head("/invented/Ada").status_code == 200
    assert setup.http.options("/invented/Ada").headers["allow"] == "GET, HEAD, OPTIONS"
    refused = setup.http.post("/invented/Ada")
    assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")


def test_the_endpoint_is_described(setup: Setup) -> None:
    document = setup.http.get("/openapi.json").json()
    described = document["paths"]["/invented/{name}"]["get"]
    assert described["summary"] == "A greeting"
    content = described["responses"]["200"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/Greeting"}
    assert document["components"]["schemas"]["Greeting"]["properties"] == {"text": {"type": "string"}}
