"""The engine: what it admits, shares, drops and refuses, and what it says when something breaks."""

import threading
import time

import numpy as np
import pytest
from painting_threads import PROMPTS
from serving_run import running, wait

from flux_trt.runtime.errors import BackendError, GpuMemoryError, PaintError
from flux_trt.runtime.tasks.request import Request
from flux_trt.serving.errors import ApiError, told
from flux_trt.serving.limits import Limits
from flux_trt.serving.pace import Pace
from flux_trt.serving.rows import worth
from flux_trt.serving.work import Done, Failed, Moved, Work


class Slow:
    """A denoiser that waits before each call, and notes how many rows it has."""

    def __init__(self, pipeline):
        self.graph = pipeline._graphs["denoiser"]
        self._run, self.rows, self.before = self.graph.run, [], lambda: None
        self.graph.run = self.run

    def run(self, inputs, into=None):
        self.before()
        self.rows.append(inputs["latents"].shape[0])
        return self._run(inputs, into)


@pytest.fixture
def server(tiny):
    with running({"tiny": tiny}) as found:
        found.slow = Slow(found.pipelines["tiny"])
        yield found


def work(server, events=None, **asked):
    (model,) = server.engine.models
    request = Request.of(model.pipeline.bundle.manifest, PROMPTS[0], **{"steps": 4, **asked})
    events = [] if events is None else events
    made = Work("test", model, request, events.append)
    made.events = events
    return made


def done(made):
    return any(isinstance(each, (Done, Failed)) for each in made.events)


def gate(server):
    """Hold the engine before its next call of the denoiser, until the event is set."""
    here, go = threading.Event(), threading.Event()

    def before():
        here.set()
        assert go.wait(30)

    server.slow.before = before
    return here, go


def test_newcomers_join_between_steps(server):
    here, go = gate(server)
    first = work(server, steps=20)
    server.engine.submit(first)
    here.wait(10)
    others = [work(server, steps=steps, seed=steps) for steps in (3, 7, 12)]
    for each in others:
        server.engine.submit(each)
    go.set()
    wait(lambda: all(map(done, [first, *others])))
    assert server.slow.rows[0] == 1
    assert server.slow.rows[1] == 4
    assert len(server.slow.rows) <= 21
    ends = [each.events[-1] for each in (first, *others)]
    assert all(isinstance(each, Done) for each in ends)
    for made, end in zip([first, *others], ends, strict=True):
        (alone,) = server.pipelines["tiny"].paint(made.request)
        np.testing.assert_array_equal(np.asarray(end.painted.image), np.asarray(alone.image))


def test_rows_are_capped_by_size(tiny):
    with running({"tiny": tiny}, limits=Limits(table={48 * 32: 3, 10**9: 1})) as server:
        slow = Slow(server.pipelines["tiny"])
        made = [work(server, seed=seed, count=2) for seed in range(4)] + [
            work(server, size=(64, 64), count=2)
        ]
        here, go = threading.Event(), threading.Event()
        slow.before = lambda: here.set() or go.wait(30)
        for each in made:
            server.engine.submit(each)
        go.set()
        wait(lambda: all(len([e for e in each.events if isinstance(e, Done)]) == 2 for each in made))
        assert max(slow.rows) == 3


def test_true_guidance_counts_as_two_rows(bundle):
    with running({"nano": bundle("flux-nano")}, limits=Limits(table={10**9: 4})) as server:
        slow = Slow(server.pipelines["nano"])
        made = work(server, count=5, steps=2, size=(32, 32), negative="green", true_cfg=2.0)
        server.engine.submit(made)
        wait(lambda: len([each for each in made.events if isinstance(each, Done)]) == 5)
        assert max(slow.rows) == 4


def test_what_is_cancelled_costs_nothing_after_the_step(server):
    here, go = gate(server)
    gone, stays, waits = work(server, steps=50), work(server, steps=6, seed=1), work(server, steps=9)
    for each in (gone, stays):
        server.engine.submit(each)
    here.wait(10)
    server.engine.submit(waits)
    server.engine.cancel(gone)
    server.engine.cancel(waits)
    go.set()
    wait(lambda: done(stays))
    assert isinstance(gone.events[-1], Failed)
    assert len([each for each in gone.events if isinstance(each, Moved)]) <= 1
    assert [type(each) for each in waits.events] == [Failed]
    assert isinstance(stays.events[-1], Done)
    server.engine.cancel(gone)  # again, and when it is over
    server.engine.cancel(stays)
    after = work(server)
    server.engine.submit(after)
    wait(lambda: done(after))
    assert isinstance(after.events[-1], Done)


@pytest.mark.parametrize("when", ["encode", "step", "decode", "told"])
def test_cancelling_in_every_state(server, when):
    pipeline = server.pipelines["tiny"]
    victim, other = work(server, steps=3), work(server, steps=5, seed=1)

    def cut(call):
        def inner(*given, **more):
            server.engine.cancel(victim)
            return call(*given, **more)

        return inner

    if when == "encode":
        pipeline.encode_apart = cut(pipeline.encode_apart)
    if when == "step":
        server.slow.before = lambda: server.engine.cancel(victim)
    if when == "decode":
        pipeline.decode = cut(pipeline.decode)
    if when == "told":
        victim.tell = lambda event: server.engine.cancel(victim) or victim.events.append(event)
    for each in (victim, other):
        server.engine.submit(each)
    wait(lambda: done(other) and done(victim))
    assert isinstance(other.events[-1], Done)
    assert server.engine.state[0] == "ready"


def test_a_listener_that_raises_harms_nobody(server):
    victim, other = work(server), work(server, seed=1)
    victim.tell = lambda event: 1 / 0
    for each in (victim, other):
        server.engine.submit(each)
    wait(lambda: done(other))
    assert isinstance(other.events[-1], Done)


def test_small_ones_are_not_kept_waiting_by_large_ones(server):
    """Two keys take turns, whoever came first and however much there is of it."""
    server.slow.before = lambda: time.sleep(0.003)
    large = [work(server, size=(64, 64), steps=40, seed=seed) for seed in range(6)]
    for each in large:
        server.engine.submit(each)
    small = work(server, size=(32, 32), steps=4)
    server.engine.submit(small)
    wait(lambda: done(small))
    assert not any(map(done, large))
    wait(lambda: all(map(done, large)))


def test_too_much_is_refused_with_the_time_to_come_again(tiny):
    with running({"tiny": tiny}, limits=Limits(queue_seconds=0.2)) as server:
        slow = Slow(server.pipelines["tiny"])
        slow.before = lambda: time.sleep(0.02)
        first = work(server, steps=60)
        server.engine.submit(first)
        wait(lambda: server.engine.seconds_ahead() > 0.4)
        with pytest.raises(ApiError) as fault:
            server.engine.submit(work(server))
        assert (fault.value.status, fault.value.code) == (429, "queue_full")
        assert 1 <= fault.value.retry_after <= 120
        assert fault.value.headers["x-should-retry"] == "true"
        server.engine.cancel(first)
        wait(lambda: done(first))
        late = work(server, steps=50)
        late.until = time.monotonic() - 1
        with pytest.raises(ApiError):
            server.engine.submit(late)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (GpuMemoryError("too little; use less"), 413),
        (PaintError("latents are not finite; build it in fp32"), 422),
        (BackendError("the stage failed; look at it"), 500),
    ],
)
def test_a_fault_is_answered_once_and_the_engine_goes_on(server, fault, status):
    def fail():
        raise fault

    server.slow.before = fail
    made = work(server)
    server.engine.submit(made)
    wait(lambda: done(made))
    (event,) = (each for each in made.events if isinstance(each, Failed))
    answer = told(event.fault)
    assert (answer.status, answer.headers["x-should-retry"]) == (status, "false")
    server.slow.before = lambda: None
    after = work(server)
    server.engine.submit(after)
    wait(lambda: done(after))
    assert isinstance(after.events[-1], Done)


def test_a_bug_ends_the_engine_and_every_wait(server, caplog):
    server.slow.before = lambda: {}["bug"]
    made = [work(server), work(server, size=(64, 64))]
    for each in made:
        server.engine.submit(each)
    wait(lambda: all(map(done, made)))
    wait(lambda: server.engine.state[0] == "broken")
    assert server.get("/healthz").status_code == 503
    assert "KeyError" in server.get("/readyz").json()["reason"]
    with pytest.raises(ApiError) as fault:
        server.engine.submit(work(server))
    assert fault.value.status == 503


def test_draining_paints_what_was_accepted(server):
    server.slow.before = lambda: time.sleep(0.005)
    made = [work(server, steps=20, seed=seed) for seed in range(3)]
    for each in made:
        server.engine.submit(each)
    drained = threading.Thread(target=server.engine.drain)
    drained.start()
    wait(lambda: server.engine.state[0] == "draining")
    assert server.get("/readyz").status_code == 503
    assert server.get("/healthz").status_code == 200
    with pytest.raises(ApiError) as fault:
        server.engine.submit(work(server))
    assert fault.value.status == 503
    drained.join(30)
    assert all(isinstance(each.events[-1], Done) for each in made)


def test_draining_ends_when_its_time_is_over(server):
    server.slow.before = lambda: time.sleep(0.01)
    made = work(server, steps=5000)
    server.engine.submit(made)
    assert not server.engine.drain(0.1)
    assert isinstance(made.events[-1], Failed)


def test_what_is_known_of_one_size_is_scaled_to_another():
    pace = Pace()
    assert pace.of("m", 16) == 0
    pace.learn("m", 16, 4, 0.4)
    assert pace.of("m", 16) == pytest.approx(0.1)
    assert pace.of("m", 32) == pytest.approx(0.2)
    assert pace.of("other", 16) == 0


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({1: 1.0, 2: 1.1, 4: 1.5, 8: 2.9, 16: 5.9}, 8),
        ({1: 1.0, 2: 1.98, 4: 3.9}, 1),
        ({1: 1.0}, 1),
    ],
)
def test_rows_that_pay(seconds, rows):
    assert worth(seconds) == rows
