"""What is seen of a service from outside: how a backfill goes on, and Prometheus's metrics."""

import collections
import threading
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from iamcl2r_jax.gallery import Gallery, Upgrade, state, transitions

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SAMPLES = 256  # kept; then every second one goes
_RECENT = 30.0  # seconds that the rate is of


def snapshot(gallery: Gallery) -> tuple[int, Upgrade | None, int]:
    """How many items there are, the latest upgrade, and where its watermark will be at the end."""
    with gallery.database.reading() as connection:
        upgrade = state.latest_upgrade(connection)
        (items,) = connection.execute("SELECT count(*) FROM items").fetchone()
        (end,) = connection.execute("SELECT coalesce(max(rank) + 1, 0) FROM ranks").fetchone()
    return items, upgrade, end


class History:
    """Samples of the backfill of the latest upgrade, since this process began to look."""

    def __init__(self):
        self._samples: list[tuple[float, int]] = []
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self._upgrade: int | None = None
        self._end = 0
        self._lock = threading.Lock()

    def note(self, upgrade: Upgrade | None, end: int, at: float) -> None:
        """Takes a sample of what `snapshot` gives, at a time in seconds since 1970."""
        with self._lock:
            number = None if upgrade is None else upgrade.id
            if number != self._upgrade:
                self._upgrade, self._samples = number, []
                self._recent.clear()
            self._end = end
            if upgrade is None or upgrade.state not in transitions.MIXED:
                self._recent.clear()
                return
            last = self._samples[-1][1] if self._samples else None
            if upgrade.state == transitions.BACKFILLING or upgrade.watermark != last:
                self._samples.append((at, upgrade.watermark))
                self._recent.append((at, upgrade.watermark))
            while self._recent and self._recent[0][0] < at - _RECENT:
                self._recent.popleft()
            if len(self._samples) > _SAMPLES:
                self._samples = self._samples[::2]

    def described(self) -> dict[str, Any]:
        """As JSON values.

        Returns:
          samples [[seconds since 1970, watermark], ...], end, rate (items a second over the last
          half minute; None if it is not known) and seconds_left (None if it is not known).
        """
        with self._lock:
            rate = None
            if len(self._recent) > 1:
                (first, before), (last, now) = self._recent[0], self._recent[-1]
                rate = (now - before) / (last - first) if last > first else None
            left = self._end - (self._samples[-1][1] if self._samples else 0)
            return {
                "samples": [list(sample) for sample in self._samples],
                "end": self._end,
                "rate": rate,
                "seconds_left": left / rate if rate else None,
            }


class Metrics:
    """Counters of one service, in a registry of its own; the gallery is read once a scrape.

    Attributes:
      batches: sizes of the batches of queries.
      queries: answered, by model.
    """

    def __init__(self, gallery: Gallery):
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
        self.batches = Histogram(
            "iamcl2r_batch_queries",
            "Queries embedded at once",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.queries = Counter(
            "iamcl2r_queries", "Queries answered", ["model"], registry=self._registry
        )
        self._registry.register(_GalleryCollector(gallery))
        ProcessCollector(registry=self._registry)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def exposition(self) -> bytes:
        """All of it as text."""
        return generate_latest(self._registry)


class _GalleryCollector:
    def __init__(self, gallery: Gallery):
        self._gallery = gallery

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not read the gallery."""
        return []

    def collect(self) -> Iterable[Metric]:
        items, upgrade, end = snapshot(self._gallery)
        yield GaugeMetricFamily("iamcl2r_items", "Items of the gallery", value=items)
        states = GaugeMetricFamily(
            "iamcl2r_upgrade_state", "1 for the state of the upgrade", labels=["state"]
        )
        for name in transitions.STATES:
            states.add_metric([name], float(upgrade is not None and name == upgrade.state))
        yield states
        passed = 0 if upgrade is None else upgrade.watermark
        yield GaugeMetricFamily(
            "iamcl2r_backfill_position", "Items passed by the backfill", value=passed
        )
        yield GaugeMetricFamily(
            "iamcl2r_backfill_items", "Items that the backfill has to pass", value=end
        )
