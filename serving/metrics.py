"""What is counted, for Prometheus; labels are the model, the task and the outcome alone."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flux_trt.serving.work import Work

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The engine's `Watch`."""

    def __init__(self) -> None:
        own = self._own = CollectorRegistry()
        labels = ("model", "task")
        self._requests = Counter(
            "flux_requests", "Requests that are over", (*labels, "outcome"), registry=own
        )
        self._pictures = Counter("flux_pictures", "Pictures that were painted", labels, registry=own)
        self._pixels = Counter("flux_pixels", "Their pixels", labels, registry=own)
        self._rows = Histogram("flux_step_rows", "Rows of a step", ("model",), buckets=ROWS, registry=own)
        self._step = Histogram("flux_step_seconds", "Of a step", ("model",), buckets=SECONDS, registry=own)
        self._stage = Histogram(
            "flux_stage_seconds", "Of a picture, by stage", ("model", "stage"), buckets=SECONDS, registry=own
        )
        self._waited = Histogram(
            "flux_wait_seconds", "From the request to its end", ("model",), buckets=SECONDS, registry=own
        )
        self._waiting = Gauge("flux_waiting_pictures", "Pictures that are not begun", registry=own)
        self._active = Gauge("flux_active_pictures", "Pictures that are under way", registry=own)
        self._ahead = Gauge("flux_queue_seconds", "Of painting that was taken and is not done", registry=own)

    def step(self, model: str, pixels: int, rows: int, seconds: float) -> None:
        """A run of so many rows."""
        self._rows.labels(model).observe(rows)
        self._step.labels(model).observe(seconds)

    def picture(self, work: Work, seconds: dict[str, float]) -> None:
        """One is done."""
        request = work.request
        self._pictures.labels(work.model.id, request.task).inc()
        self._pixels.labels(work.model.id, request.task).inc(request.width * request.height)
        for stage, taken in seconds.items():
            self._stage.labels(work.model.id, stage).observe(taken)

    def ended(self, work: Work, outcome: str) -> None:
        """Work is over."""
        self._requests.labels(work.model.id, work.request.task, outcome).inc()
        self._waited.labels(work.model.id).observe(work.age)

    def queue(self, waiting: int, active: int, seconds: float) -> None:
        """How much there is to do."""
        self._waiting.set(waiting)
        self._active.set(active)
        self._ahead.set(seconds)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._own)
