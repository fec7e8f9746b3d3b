"""Numbers for Prometheus: what passes through the server, and the state of queue, workers and disk when asked."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wan_s2v.server.jobs import Queue
from wan_s2v.server.storage import Housekeeper
from wan_s2v.server.supervisor import Supervisor


class Metrics:
    """The metrics of one server."""

    def __init__(self, queue: Queue, supervisor: Supervisor, housekeeper: Housekeeper) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(queue, supervisor, housekeeper))
        self.accepted = Counter("wan_s2v_jobs_accepted", "Jobs that were accepted.", registry=self._registry)
        self.refused = Counter(
            "wan_s2v_requests_refused", "Requests that were refused, by type.", ["type"], registry=self._registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, queue: Queue, supervisor: Supervisor, housekeeper: Housekeeper) -> None:
        self._queue, self._supervisor, self._housekeeper = queue, supervisor, housekeeper

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("wan_s2v_jobs", "Jobs by status.", labels=["status"])
        counts = self._queue.counts()
        for status in ("queued", "running", "done", "failed", "cancelled"):
            jobs.add_metric([status], counts.get(status, 0))
        workers = self._supervisor.workers
        yield jobs
        for name, text, value in (
            ("wan_s2v_workers", "Worker processes that there should be.", len(workers)),
            ("wan_s2v_workers_ready", "Worker processes with a loaded model.", sum(w.is_ready for w in workers)),
            ("wan_s2v_worker_restarts", "Worker processes started again.", sum(w.restarts for w in workers)),
            ("wan_s2v_disk_bytes", "Bytes of all jobs.", self._queue.num_bytes()),
            ("wan_s2v_evicted", "Finished jobs removed to make room or for age.", self._housekeeper.evicted),
        ):
            yield GaugeMetricFamily(name, text, value)
