"""Whose share of the engine a request is part of, and whose prompts it finds in the prefix cache."""

from types import SimpleNamespace
from typing import Any

import pytest

from engine_core.ipc.messages import AddRequest
from frontend.api_keys import digest_of
from frontend.shares import Shares
from tests.frontend.support import Setup, running_setup

KEYS = ("sk-one", "sk-two")
INVENTED = [{}, {"Authorization": "Bearer sk-made-up"}, {"x-api-key": "sk-two"}, {"Authorization": "Basic YTpi"}]
REQUESTS = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "n": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "model": "alias"},
    "/v1/responses": {"input": "Hi"},
}


def sent_for(setup: Setup, path: str, headers: dict[str, str], **fields: Any) -> AddRequest:
    """What a request looks like to the engine; all its choices alike."""
    setup.forget()
    setup.say("x")
    assert setup.post(path, {**REQUESTS[path], **fields}, headers=headers).status_code == 200
    adds = setup.core.received(AddRequest)
    assert len({(add.share_key, add.cache_salt) for add in adds}) == 1
    return adds[0]


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory):
    digests = tuple(digest_of(key) for key in KEYS)
    with running_setup(
        tmp_path_factory.mktemp("run"), api_key_digests=digests, tells_apart="keys", separates_prefixes=True
    ) as setup:
        yield setup


@pytest.mark.parametrize("path", REQUESTS)
def test_each_key_has_its_share_and_its_prefixes(with_keys, path):
    first, again, other = (
        sent_for(with_keys, path, {"Authorization": f"Bearer {key}"}) for key in ("sk-one", "sk-one", "sk-two")
    )
    assert first.share_key == again.share_key != other.share_key
    assert first.cache_salt == again.cache_salt != other.cache_salt
    assert len(first.share_key) == len(other.share_key) == 32
    assert "sk-" not in first.share_key + first.cache_salt


def test_salts_divide_what_belongs_to_a_key_further(with_keys):
    salts = {
        sent_for(with_keys, "/v1/completions", {"x-api-key": key}, **fields).cache_salt
        for key in KEYS
        for fields in ({}, {"cache_salt": "a"}, {"cache_salt": "b" * 256})
    }
    assert len(salts) == 6
    assert all(salt is not None and len(salt) <= 256 for salt in salts)


@pytest.mark.parametrize("headers", INVENTED)
def test_without_keys_what_a_client_invents_changes_nothing(setup, headers):
    for path in REQUESTS:
        add = sent_for(setup, path, headers)
        assert (add.share_key, add.cache_salt) == (None, None)


def test_addresses_make_shares_whatever_a_client_invents(tmp_path):
    with running_setup(tmp_path, tells_apart="addresses") as own:
        adds = [sent_for(own, path, headers) for path in REQUESTS for headers in INVENTED]
        assert len({add.share_key for add in adds}) == 1
        assert adds[0].share_key is not None
        assert {add.cache_salt for add in adds} == {None}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("", "", True),
    ],
)
def test_which_addresses_are_one_client(one, other, same):
    config: Any = SimpleNamespace(tells_apart="addresses", separates_prefixes=False)
    first, second = (Shares(config).key_of(SimpleNamespace(ip=ip, headers={})) for ip in (one, other))
    assert (first == second) is same
