"""Who may use the server: API keys, and the origins of web pages (CONFORMANCE 41: 401 in OpenAI's shape)."""

from collections.abc import Iterator

import openai
import pytest

from engine_core.ipc.messages import AddRequest
from frontend.api_keys import digest_of
from tests.frontend.support import MODEL, Setup, events_of, running_setup
from tests.frontend.test_http_errors import CHAT, USER, error_of

KEYS = ("sk-first", "sk-schlüssel")
ORIGIN = "https://chat.example"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    digests = tuple(digest_of(key) for key in KEYS)
    with running_setup(
        tmp_path_factory.mktemp("run"), api_key_digests=digests, allowed_origins=(ORIGIN, "http://localhost:3000")
    ) as setup:
        setup.say("one two")
        yield setup


def bearer(key: str) -> dict[str, bytes]:
    return {"Authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_everything(guarded, key):
    assert guarded.http.get("/v1/models", headers=bearer(key)).status_code == 200
    assert guarded.http.get("/v1/models", headers={"x-api-key": key.encode()}).status_code == 200
    answer = guarded.post(CHAT, {"messages": USER}, headers=bearer(key))
    assert answer.json()["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-other"),
        bearer("sk-firs"),
        {"Authorization": "Bearer"},
        {"Authorization": "Basic sk-first"},
        {"x-api-key": ""},
    ],
)
def test_without_a_key_nothing_is_told(guarded, headers):
    guarded.forget()
    for method, path in (
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("DELETE", "/health/x"),
        ("OPTIONS", "/v1/models"),
    ):
        response = guarded.http.request(method, path, headers=headers, content=b"{")
        error = error_of(response, 401)
        assert (error["code"], error["type"], error["param"]) == ("invalid_api_key", "invalid_request_error", None)
        assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.core.received(AddRequest) == []


def test_health_and_readiness_need_no_key(guarded):
    assert guarded.http.get("/health").status_code == 200
    assert guarded.http.head("/ready").status_code == 200


def test_the_openai_package_reports_a_wrong_key(guarded):
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="API key"),
    ):
        client.models.list()
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEYS[0], max_retries=0) as client:
        assert client.models.list().data[0].id == MODEL


def test_a_preflight_needs_no_key(guarded):
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    answer = guarded.http.options(CHAT, headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert answer.headers["vary"] == "Origin"
    refused = guarded.http.options(CHAT, headers={**asked, "Origin": "https://evil.example"})
    assert not [name for name in refused.headers if name.startswith("access-control")]


def test_answers_errors_and_streams_name_the_origin(guarded):
    headers = {**bearer(KEYS[0]), "Origin": ORIGIN}
    stream = guarded.post(CHAT, {"messages": USER, "stream": True}, headers=headers)
    assert events_of(stream)[-1] == "[DONE]"
    for response in (
        stream,
        guarded.http.get("/v1/models", headers=headers),
        guarded.http.get("/nothing", headers=headers),
        guarded.http.get("/v1/models", headers={"Origin": ORIGIN}),
        guarded.post(CHAT, {"messages": []}, headers=headers),
    ):
        assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in guarded.http.get("/health").headers


def test_without_origins_there_is_nothing_about_them(setup):
    answer = setup.http.options(CHAT, headers={"Origin": ORIGIN, "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 204
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


def test_every_origin(tmp_path):
    with running_setup(tmp_path, allowed_origins=("*",)) as own:
        assert own.http.get("/health").headers["access-control-allow-origin"] == "*"
