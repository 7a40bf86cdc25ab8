"""Whose pictures make the next step: users share the device, short ones go first, and nobody starves."""

import threading
import time

import numpy as np
import pytest
from painting_threads import PROMPTS
from serving_run import pixels, running, wait

from flux_trt.runtime.tasks.request import Request
from flux_trt.serving.limits import Limits
from flux_trt.serving.shares import Shares
from flux_trt.serving.work import Done, Failed, Work


def test_time_is_shared_evenly_among_those_who_are_here():
    shares, had = Shares(), dict.fromkeys("abc", 0.0)

    def spend(names, turns, cost):
        for _ in range(turns):
            name = shares.least(names)[0]
            shares.charge(name, cost[name])
            had[name] += cost[name]

    spend("ab", 300, {"a": 0.5, "b": 1.5})
    assert had["a"] == pytest.approx(had["b"], abs=1.5)
    had.update(dict.fromkeys("abc", 0.0))
    spend("abc", 300, {"a": 0.5, "b": 1.5, "c": 1.0})  # c is owed nothing of the time before it came
    assert max(had.values()) - min(had.values()) <= 3


def test_who_comes_back_has_saved_nothing():
    shares = Shares()
    shares.charge("a", 1.0)
    shares.least(["a", "b"])
    shares.charge("b", 9.0)
    shares.least(["b"])  # a is gone
    assert shares.least(["a", "b"])[0] == "a"
    shares.charge("a", 0.1)
    assert shares.least(["a", "b"])[0] == "b", "a began where b was, not 8 seconds before"


def test_credit_is_time_that_somebody_had_less():
    shares = Shares()
    shares.least("ab")
    shares.charge("a", 1.0)
    assert shares.least("ab") == ["b", "a"]
    assert shares.least("ab", {"a": 2.0}) == ["a", "b"]


def crowd(server, owner, many, tell=None, **asked):
    """Works of one picture each, handed in."""
    (model,), found = server.engine.models, []
    for seed in range(many):
        request = Request.of(
            model.pipeline.bundle.manifest, PROMPTS[seed % 2], **{"seed": seed, "size": (32, 32), **asked}
        )
        made = Work(f"{owner}-{seed}", model, request, lambda event: None, owner=owner)
        made.events = []
        made.tell = made.events.append if tell is None else lambda event, made=made: tell(made, event)
        found.append(made)
    for each in found:
        server.engine.submit(each)
    return found


def over(made):
    return any(isinstance(each, (Done, Failed)) for each in made.events)


@pytest.fixture
def held(tiny):
    """A server whose denoiser waits for `go`, and notes the rows of its calls."""
    with running({"tiny": tiny}, limits=Limits(rows=4, queue_seconds=1e9)) as server:
        graph = server.pipelines["tiny"]._graphs["denoiser"]
        run, server.rows, server.go = graph.run, [], threading.Event()

        def wait_and_run(inputs, into=None):
            assert server.go.wait(30)
            server.rows.append(inputs["latents"].shape[0])
            return run(inputs, into)

        graph.run = wait_and_run
        yield server


def alone(server, made):
    (pipeline,) = server.pipelines.values()
    (found,) = pipeline.paint(made.request)
    return np.asarray(found.image)


def test_a_hundred_pictures_of_one_user_do_not_hold_another_ones(held):
    """The very same size and steps, so that they stand in one row: the other's is in the next run."""
    ended = []

    def tell(made, event):
        made.events.append(event)
        if isinstance(event, Done):
            ended.append(made.owner)

    many = crowd(held, "many", 100, tell, steps=20)
    wait(lambda: any(each.courses for each in many))
    (one,) = crowd(held, "one", 1, tell, steps=20)
    held.go.set()
    wait(lambda: over(one))
    assert ended.index("one") <= 4, "only what was begun before may end before"
    wait(lambda: all(map(over, many)))
    assert max(held.rows) == 4
    np.testing.assert_array_equal(np.asarray(one.events[-1].painted.image), alone(held, one))
    np.testing.assert_array_equal(np.asarray(many[-1].events[-1].painted.image), alone(held, many[-1]))


def test_many_sizes_of_one_user_have_one_users_share(held):
    """Five keys of one user and one of another: half of the runs are of each."""
    seen = []
    graph = held.pipelines["tiny"]._graphs["denoiser"]
    run = graph.run

    def note(inputs, into=None):
        seen.append(inputs["latents"].shape[1])
        time.sleep(0.002)
        return run(inputs, into)

    graph.run = note
    sizes = [(32, 32), (48, 32), (32, 48), (48, 48), (64, 32)]
    many = [made for size in sizes for made in crowd(held, "many", 2, size=size, steps=60)]
    few = crowd(held, "few", 2, size=(64, 64), steps=30)
    held.go.set()
    wait(lambda: all(map(over, few)))
    mine = [tokens for tokens in seen if tokens == 16]
    assert len(mine) >= 0.3 * len(seen), "a sixth it would be if each size had a share"
    assert not all(map(over, many))
    wait(lambda: all(map(over, many)))


def test_short_ones_go_first_and_long_ones_are_not_forgotten(held):
    """More than fit a run: those of few steps end first, and all others are finished bit by bit the same."""
    ended = []

    def tell(made, event):
        made.events.append(event)
        if isinstance(event, Done):
            ended.append(made.request.steps)

    long = crowd(held, "", 6, tell, steps=30)
    wait(lambda: any(each.courses for each in long))
    short = crowd(held, "", 6, tell, steps=2)
    held.go.set()
    wait(lambda: all(map(over, [*long, *short])))
    assert ended[:6] == [2] * 6
    for made in (*long, short[-1]):
        np.testing.assert_array_equal(np.asarray(made.events[-1].painted.image), alone(held, made))


def test_who_waits_long_is_not_overtaken_any_more(held):
    """Against an endless stream of short ones a long one ends all the same."""
    held.go.set()
    (long,) = crowd(held, "", 1, steps=40)
    long.asked_at -= 1000
    waiting = []
    while not over(long):
        waiting = [each for each in waiting if not over(each)]
        if len(waiting) < 12:
            waiting += crowd(held, "", 4, steps=2)
        time.sleep(0.001)
    assert isinstance(long.events[-1], Done)
    wait(lambda: all(map(over, waiting)))


def test_nobody_takes_the_last_places(tiny):
    """Pictures that are begun have buffers: one user gets half of them, and the next one begins at once."""
    with running({"tiny": tiny}, limits=Limits(active=8, table={10**9: 64}, queue_seconds=1e9)) as server:
        most, here, go = [], threading.Event(), threading.Event()
        graph = server.pipelines["tiny"]._graphs["denoiser"]
        run = graph.run

        def slow(inputs, into=None):
            most.append(inputs["latents"].shape[0])
            if len(most) == 4:
                here.set()
                assert go.wait(30)
            return run(inputs, into)

        graph.run = slow
        many = crowd(server, "many", 20, steps=30)
        assert here.wait(30)
        (one,) = crowd(server, "one", 1, steps=2)
        go.set()
        wait(lambda: over(one))
        assert max(most) == 5, "four of one user, and the other's"
        assert not any(map(over, many))
        wait(lambda: all(map(over, many)))


def test_flux3_is_painted_one_after_the_other(flux3_bundle):
    """Its modulation has no rows, so no two pictures share a run: what is soonest done goes first."""
    ended = []

    def tell(made, event):
        made.events.append(event)
        if isinstance(event, Done):
            ended.append(made.request.steps)

    with running({"klein": flux3_bundle("distilled")}, limits=Limits(queue_seconds=1e9)) as server:
        graph = server.pipelines["klein"]._graphs["denoiser"]
        run, rows, go = graph.run, [], threading.Event()
        graph.run = lambda inputs, into=None: (
            (go.wait(30) and rows.append(inputs["latents"].shape[0])) or run(inputs, into)
        )
        made = crowd(server, "", 2, tell, size=(64, 64), steps=5)
        wait(lambda: any(each.courses for each in made))
        made += crowd(server, "", 2, tell, size=(64, 64), steps=2)
        go.set()
        wait(lambda: all(map(over, made)))
        assert set(rows) == {1}
        assert ended[:2] == [2, 2]
        assert max(len(each.courses) for each in made) == 0
        answer = server.client().images.generate(
            prompt=PROMPTS[0], size="64x64", extra_body={"seed": 0, "steps": 5}
        )
        for each in made:
            np.testing.assert_array_equal(np.asarray(each.events[-1].painted.image), alone(server, each))
        np.testing.assert_array_equal(pixels(answer.data[0].b64_json), alone(server, made[0]))
