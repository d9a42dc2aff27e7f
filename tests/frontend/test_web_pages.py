"""What a web page of somebody else can make its reader's browser send, and what it then gets."""

import socket
from collections.abc import Iterator

import pytest

from engine_core.ipc.messages import AddRequest
from frontend.api_keys import digest_of
from frontend.routes import ROUTES
from frontend.web_pages import served_hosts
from tests.frontend.support import Setup, running_setup
from tests.frontend.test_http_errors import error_of

EVIL = "http://evil.example"
ALLOWED = "https://chat.example"
POSTS = [route.path.replace("<response_id>", "resp_1") for route in ROUTES if "POST" in route.methods]
SIMPLE_TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
"""What a browser sends without asking the server first."""
BODY = b'{"prompt": "a", "messages": [{"role": "user", "content": "a"}], "input": "a", "tokens": [1], "max_tokens": 1}'


@pytest.fixture(scope="module")
def open_to_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """A server for one web page and one more name."""
    with running_setup(
        tmp_path_factory.mktemp("run"), allowed_origins=(ALLOWED,), allowed_hosts=("chat.example",)
    ) as setup:
        setup.say("x")
        yield setup


def send(setup: Setup, path: str, **headers: str | None) -> tuple[int, str | None]:
    """Status and error code of a POST with exactly these headers."""
    given = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    response = setup.http.post(path, content=BODY, headers=given)
    if response.status_code == 200:
        return 200, None
    error = response.json()["error"]
    return response.status_code, error.get("code", error["type"])


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", SIMPLE_TYPES)
def test_a_page_of_another_site_cannot_make_the_server_work(setup, path, kind):
    for headers in (
        {"origin": EVIL},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        status, code = send(setup, path, content_type=kind, **headers)
        assert (status, code) == (403, "permission_error" if "messages" in path else "origin_not_allowed")
    assert setup.core.received(AddRequest) == []


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", SIMPLE_TYPES)
def test_a_page_that_may_use_the_server_sends_json(open_to_one, path, kind):
    open_to_one.forget()
    own = open_to_one.url
    for origin in (ALLOWED, own):
        status, code = send(open_to_one, path, content_type=kind, origin=origin)
        assert (status, code) == (415, "invalid_request_error" if "messages" in path else "unsupported_media_type")
    assert open_to_one.core.received(AddRequest) == []


def test_json_is_served_whoever_sends_it(open_to_one):
    """A browser asks before it sends JSON for a page of another origin; what comes without that is a program's."""
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        for origin in (None, ALLOWED, open_to_one.url, EVIL):
            assert send(open_to_one, "/v1/completions", content_type=kind, origin=origin) == (200, None)


def test_programs_may_leave_out_the_type(setup):
    setup.say("x")
    for kind in (None, "application/x-www-form-urlencoded"):
        assert send(setup, "/v1/completions", content_type=kind) == (200, None)
    for kind in ("text/plain", "text/plain; application/json", "multipart/form-data", "application/xml"):
        assert send(setup, "/v1/completions", content_type=kind) == (415, "unsupported_media_type")


def test_an_allowed_page_may_cancel_without_a_body(open_to_one):
    path = "/v1/responses/resp_1/cancel"
    assert error_of(open_to_one.http.post(path, headers={"Origin": ALLOWED}), 404)["code"] == "response_not_found"
    assert error_of(open_to_one.http.post(path, headers={"Origin": EVIL}), 403)["code"] == "origin_not_allowed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "x@localhost", ""]
)
@pytest.mark.parametrize("keys", [(), ("sk-one",)])
def test_a_name_that_is_made_to_point_here_is_not_served(tmp_path, host, keys):
    digests = tuple(digest_of(key) for key in keys)
    with running_setup(tmp_path, api_key_digests=digests) as own:
        headers = {"Host": host, "Origin": f"http://{host}"} | ({"Authorization": "Bearer sk-one"} if keys else {})
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/health"),
            ("POST", "/v1/completions"),
            ("OPTIONS", "/docs"),
        ):
            response = own.http.request(method, path, headers=headers)
            if host == "x@localhost":
                assert response.status_code == 400
                own.http.close()
                own.http = type(own.http)(base_url=own.url)
            else:
                assert error_of(response, 403)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9", "127.8.9.1", "[::1]", "[::1]:8000", "chat.example:1"],
)
def test_the_names_of_this_machine_and_allowed_ones_are_served(open_to_one, host):
    assert open_to_one.http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_old_programs_have_no_host(setup):
    port = int(setup.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_which_hosts_a_server_answers_to():
    assert served_hosts("0.0.0.0", "0.0.0.0", ()) is None
    assert served_hosts("192.168.1.7", "box.lan", ("*",)) is None
    assert served_hosts("127.0.0.1", "localhost", ("*",)) is None
    assert "chat.example" in (served_hosts("0.0.0.0", "0.0.0.0", ("chat.example",)) or ())
    assert "ip6-loopback" in (served_hosts("::1", "ip6-loopback", ()) or ())
