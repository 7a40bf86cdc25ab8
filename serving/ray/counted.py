"""What replicas have counted, on one page: each line says whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Pages(Collector):
    def __init__(self, pages: Sequence[tuple[str, bytes]], own: Sequence[Metric]) -> None:
        self._pages, self._own = pages, own

    def collect(self) -> Iterable[Metric]:
        """All of them, those of one name together, as the format wants it."""
        found: dict[str, Metric] = {}
        for replica, page in self._pages:
            for family in text_string_to_metric_families(page.decode()):
                into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for each in family.samples:
                    if not each.name.endswith("_created"):
                        into.samples.append(each._replace(labels={**each.labels, "replica": replica}))
        return [*self._own, *found.values()]


def merged(pages: Sequence[tuple[str, bytes]], replicas: int, lost: int) -> bytes:
    """The page of a fleet.

    Args:
        pages: of each replica that has answered, with its name.
        replicas: that can be called.
        lost: requests whose replica was lost.
    """
    own = [
        GaugeMetricFamily("flux_replicas", "Replicas that can be called", replicas),
        CounterMetricFamily("flux_lost", "Requests whose replica was lost", lost),
    ]
    registry = CollectorRegistry()
    registry.register(_Pages(pages, own))
    return generate_latest(registry)
