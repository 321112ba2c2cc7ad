"""Metrics of the service in Prometheus's format."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from iamcl2r_jax.gallery import transitions
from iamcl2r_jax.gallery.service.progress import Snapshot

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self, state: Callable[[], Snapshot]):
        """Args:
        state: reads what is shown of the gallery, once a scrape.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "iamcl2r_requests", "Requests", ["endpoint", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "iamcl2r_request_seconds",
            "Duration of requests",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "iamcl2r_batch_queries",
            "Queries embedded at once",
            buckets=_SIZES,
            registry=self._registry,
        )
        self._queries = Counter(
            "iamcl2r_queries", "Queries answered", ["model"], registry=self._registry
        )
        self._registry.register(_GalleryCollector(state))
        ProcessCollector(registry=self._registry)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, size: int) -> None:
        """Counts a batch of queries."""
        self._batches.observe(size)

    def query(self, model: str) -> None:
        """Counts a query that was answered by a model."""
        self._queries.labels(model).inc()

    def exposition(self) -> bytes:
        """All of it as text."""
        return generate_latest(self._registry)


class _GalleryCollector:
    def __init__(self, state: Callable[[], Snapshot]):
        self._state = state

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not read the gallery."""
        return []

    def collect(self) -> Iterable[Metric]:
        found = self._state()
        yield GaugeMetricFamily("iamcl2r_items", "Items of the gallery", value=found.items)
        upgrade = GaugeMetricFamily(
            "iamcl2r_upgrade_state", "1 for the state of the upgrade", labels=["state"]
        )
        for state in transitions.STATES:
            upgrade.add_metric([state], float(state == found.state))
        yield upgrade
        yield GaugeMetricFamily(
            "iamcl2r_backfill_position", "Items passed by the backfill", value=found.position
        )
        yield GaugeMetricFamily(
            "iamcl2r_backfill_items", "Items that the backfill has to pass", value=found.end
        )
