"""What an engine refuses before a request is in its queue."""

import msgspec
import pytest

from benchmarks.bench_engine_core import engine_config
from engine_core.admission import Admission, Refused
from engine_core.config.engine_config import PolicyName
from engine_core.ipc.sampling_params import SamplingParams
from engine_core.open_requests import OpenRequests
from engine_core.policies.registry import POLICIES, make_policy
from engine_core.request import Request
from tests.engine_core.core_harness import add


@pytest.mark.parametrize(
    ("num_blocks", "refusal"),
    [
        (100, "The prompt's 40 tokens and the 25 asked for do not fit into the context, which holds 64."),
        (3, "The prompt's 40 tokens and the 25 asked for do not fit into the KV cache, which holds 48."),
    ],
)
def test_what_can_never_fit_is_refused_with_the_figures(num_blocks: int, refusal: str) -> None:
    config = engine_config(1, 64)
    config = msgspec.structs.replace(config, cache=msgspec.structs.replace(config.cache, num_blocks=num_blocks))
    admission, policy = Admission(config, OpenRequests()), make_policy(config.scheduler)
    with pytest.raises(Refused) as refused:
        admission.admit(add(1, prompt=[0] * 40, sampling=SamplingParams(max_tokens=25)), b"", 0, policy, 0.0)
    assert (refused.value.code, str(refused.value)) == ("context_length_exceeded", refusal)
    fits = add(1, prompt=[0] * 40, sampling=SamplingParams(max_tokens=8))
    assert admission.admit(fits, b"", 0, policy, 0.0)[0].limit == 48
    unsaid = add(1, prompt=[0] * 40, sampling=SamplingParams())
    assert admission.admit(unsaid, b"", 0, policy, 0.0)[0].limit == min(64, num_blocks * 16)


@pytest.mark.parametrize("name", POLICIES)
def test_a_full_queue_is_full_for_each_client_by_itself(name: PolicyName) -> None:
    """Six may wait: one client's fourth is refused, another client's first is not."""
    config = engine_config(4, 64, name)
    config = msgspec.structs.replace(config, scheduler=msgspec.structs.replace(config.scheduler, max_num_waiting=6))
    admission, policy = Admission(config, OpenRequests()), make_policy(config.scheduler)
    for handle in range(3):
        policy.push(admission.admit(add(handle, share_key="a"), b"", 0, policy, 0.0)[0])
    with pytest.raises(Refused, match="Too many requests are waiting") as refused:
        admission.admit(add(3, share_key="a"), b"", 0, policy, 0.0)
    assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1.0)
    with pytest.raises(Refused, match="Too many requests are waiting"):
        admission.admit(add(3, share_key="b", num_samples=3), b"", 0, policy, 0.0)
    samples = admission.admit(add(3, share_key="b", num_samples=2), b"", 0, policy, 0.0)
    assert [sample.share_key for sample in samples] == ["b", "b"]


def test_a_client_may_have_so_many_requests_at_once_and_no_more() -> None:
    """Waiting and running alike; an end makes room, and requests without a share are not counted."""
    config = engine_config(4, 64)
    config = msgspec.structs.replace(
        config, scheduler=msgspec.structs.replace(config.scheduler, max_requests_per_share=2)
    )
    requests = OpenRequests()
    admission, policy = Admission(config, requests), make_policy(config.scheduler)

    def start(handle: int, share_key: str | None) -> Request:
        (request,) = admission.admit(add(handle, share_key=share_key), b"", 0, policy, 0.0)
        requests.add(request)
        return request

    first, _ = start(0, "a"), start(1, "a")
    with pytest.raises(Refused, match="would have more than 2 requests") as refused:
        start(2, "a")
    assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1.0)
    with pytest.raises(Refused, match="would have more than 2 requests"):
        admission.admit(add(3, share_key="c", num_samples=3), b"", 0, policy, 0.0)
    for handle in range(3, 7):
        start(handle, None)
    start(7, "b")
    requests.remove(first)
    start(8, "a")
