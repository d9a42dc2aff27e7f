"""Bodies with random wrong fields: never a 5xx, and every answer is of the type that the description names."""

import json
import random
from typing import Any

import httpx
import msgspec
import pytest

from frontend.routes import ROUTES, Route
from tests.e2e.server import Server

NUM_BODIES = 150
USER = [{"role": "user", "content": "Hi"}]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": USER, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": USER},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1]},
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, 1.5, -0.0, 1e300, "", "x", "a" * 300, "\ud800", "\x00", "🦊",
    [], [1], ["x"], [[]], [[1]], [None], {}, {"type": "text"}, {"type": "x"}, {"format": {"type": "text"}}, "none",
    USER, [{"role": "assistant", "content": "Hi"}],
    [{"role": "user", "content": None}], [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "text", "text": "\x00"}]}], [{"role": "tool", "content": "x"}],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("route", [route for route in ROUTES if route.body], ids=lambda route: route.path)
def test_random_bodies(server: Server, route: Route) -> None:
    assert route.body is not None
    names = route.body.__struct_encode_fields__  # type: ignore[attr-defined]
    choose = random.Random(route.path)
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(NUM_BODIES):
            changes = {choose.choice(names): choose.choice(VALUES) for _ in range(choose.choice((1, 1, 2)))}
            answer = client.post(route.path, content=json.dumps({**VALID[route.path], **changes}))
            assert answer.status_code < 500, changes
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                msgspec.json.decode(answer.content, type=route.error)
            elif answer.headers["content-type"] == "application/json":
                msgspec.json.decode(answer.content, type=route.answer)
            else:
                assert '"error":{' not in answer.text, changes
    assert {200, 400} <= statuses
