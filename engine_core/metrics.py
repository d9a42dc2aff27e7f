"""The engine's figures under the names that dashboards for such servers know, in Prometheus' text format.

Histograms are numpy counts, so that a step of hundreds of tokens costs one `searchsorted` each; prometheus_client only
writes them out.
"""

from collections.abc import Iterator

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from engine_core.host_tier import HostTier
from engine_core.ipc.messages import FINISH_LENGTH, FINISH_STOP
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from engine_core.step_records import StepOutputs

_INTERVAL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0)
_REQUEST_BUCKETS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 480.0)


class _Histogram:
    """Counts per bucket; the last one is +Inf."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self._bounds = np.array(buckets)
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0.0

    def observe(self, values: np.ndarray) -> None:
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def family(self, name: str, text: str, labels: dict[str, str]) -> HistogramMetricFamily:
        cumulative = np.cumsum(self._counts).tolist()
        names = [*(str(bound) for bound in self._bounds.tolist()), "+Inf"]
        family = HistogramMetricFamily(name, text, labels=list(labels))
        family.add_metric(list(labels.values()), list(zip(names, cumulative, strict=True)), self._sum)
        return family


class Metrics(Collector):
    """Counts events as they come; the gauges are read from the scheduler when somebody asks."""

    def __init__(self, scheduler: Scheduler, model_name: str, replica: int) -> None:
        self._scheduler = scheduler
        self._labels = {"model_name": model_name, "engine": str(replica)}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._finished: dict[str, int] = {}
        self._first_token = _Histogram(_FIRST_TOKEN_BUCKETS)
        self._interval = _Histogram(_INTERVAL_BUCKETS)
        self._latency = _Histogram(_REQUEST_BUCKETS)

    def step(self, num_prompt_tokens: int, outputs: StepOutputs, now: float) -> None:
        """Takes in one collected step, which computed so many tokens of prompts."""
        self._prompt_tokens += num_prompt_tokens
        self._generation_tokens += len(outputs.token_ids)
        self._first_token.observe(outputs.intervals[outputs.is_first])
        # Tokens that come together have equal parts of the time since the one before.
        later = ~outputs.is_first
        counts = outputs.counts[later]
        self._interval.observe(np.repeat(outputs.intervals[later] / counts, counts))
        for finished in outputs.finished:
            self.finished(finished.reason, finished.request, now)

    def finished(self, reason: str, request: Request, now: float) -> None:
        """Takes in the end of one request that was admitted to the queue."""
        self._finished[reason] = self._finished.get(reason, 0) + 1
        if reason in (FINISH_STOP, FINISH_LENGTH) and request.first_token_time is not None:
            self._latency.observe(np.array([now - request.arrival_time]))

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        scheduler, kv = self._scheduler, self._scheduler.kv
        pool = kv.pool
        yield self._gauge("num_requests_running", "Requests that own a row.", scheduler.num_running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", scheduler.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks owned, 0 to 1.", pool.num_owned / pool.num_blocks)
        yield self._gauge("num_kv_blocks_owned", "KV blocks that requests own.", pool.num_owned)
        yield self._gauge("num_kv_blocks_total", "KV blocks in all.", pool.num_blocks)
        yield self._counter("num_preemptions", "Preemptions.", scheduler.num_preemptions)
        yield self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", kv.num_query_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found there.", kv.num_hit_tokens)
        if kv.host is not None:
            yield from self._host_tier(kv.host)
        yield self._counter(
            "prompt_tokens", "Prompt tokens computed; the prefix cache had the others.", self._prompt_tokens
        )
        yield self._counter("generation_tokens", "Tokens generated.", self._generation_tokens)
        success = CounterMetricFamily(
            "vllm:request_success", "Ended requests by reason.", labels=[*self._labels, "finished_reason"]
        )
        for reason in sorted({"stop", "length", "abort", *self._finished}):
            success.add_metric([*self._labels.values(), reason], self._finished.get(reason, 0))
        yield success
        for histogram, name, text in (
            (self._first_token, "time_to_first_token_seconds", "Arrival at the engine core to the first token."),
            (self._interval, "inter_token_latency_seconds", "Between two tokens of a request."),
            (self._latency, "e2e_request_latency_seconds", "Arrival at the engine core to the end of an answer."),
        ):
            yield histogram.family(f"vllm:{name}", text, self._labels)

    def _host_tier(self, host: HostTier) -> Iterator[Metric]:
        hits = host.num_loaded * self._scheduler.kv.block_size // self._scheduler.kv.num_groups
        yield self._counter("external_prefix_cache_hits", "Of the tokens found, those loaded from host memory.", hits)
        yield self._counter("kv_offload_blocks_stored", "KV blocks copied to host memory.", host.num_stored)
        yield self._counter("kv_offload_blocks_loaded", "KV blocks copied back from there.", host.num_loaded)
        yield self._gauge("num_kv_offload_blocks", "KV blocks that lie in host memory.", len(host))
        yield self._gauge("num_kv_offload_blocks_ready", "KV blocks that host memory has room for.", host.num_ready)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
