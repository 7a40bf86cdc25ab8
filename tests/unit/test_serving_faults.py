"""Memory that is short, and an engine that dies: all that was accepted is answered, and once."""

import gc
import re
import shutil
import threading

import httpx
import numpy as np
import openai
import pytest
import simulator_bundle
from painting_threads import PROMPTS
from serving_run import pixels, process, running, wait
from simulator_cuda import CudaSimulator

from flux_trt.serving.limits import Limits

PROFILE = {
    **simulator_bundle.WIDE,
    "batch": (1, 1, 8),
    "text": (1, 64, 512),
    "sequence": (1, 80, 576),
}
SIZE = {"prompt": PROMPTS[0], "size": "64x64"}
DYING = """
import sys, time
from pathlib import Path
from flux_trt.runtime.sampling.together import Together
run, flag = Together.run, Path(sys.argv.pop(1))
def fails(self, loops, places):
    if flag.exists():
        raise KeyError("a bug")
    time.sleep(0.01)
    return run(self, loops, places)
Together.run = fails
from flux_trt.serving.cli import main
main()
"""
"""flux-serve with a bug that shows once a file is there."""


@pytest.fixture
def gpu(tiny, tmp_path):
    """A server on a simulated GPU, whose allocations really fail where its memory is used up."""
    copy, cuda = shutil.copytree(tiny, tmp_path / "tiny"), CudaSimulator()
    simulator_bundle.add_engines(copy, profiles=[PROFILE])
    with running(
        {"tiny": copy},
        limits=Limits(queue_seconds=1e9),
        load=lambda path, backend, device: simulator_bundle.pipeline(path, cuda),
    ) as server:
        server.cuda = cuda
        yield server


def test_too_little_memory_is_answered_once_and_the_server_stays_ready(gpu):
    """One that does not fit even alone: 413, not to be sent again, and the next one is painted."""
    before = gpu.client().images.generate(**SIZE, extra_body={"seed": 1, "steps": 3})
    whole = gpu.cuda.memory
    gpu.cuda.memory = gpu.cuda.used
    with pytest.raises(openai.APIStatusError) as fault:
        gpu.client(max_retries=2).images.generate(
            prompt=PROMPTS[0], size="128x128", extra_body={"seed": 1, "steps": 28}
        )
    assert (fault.value.status_code, fault.value.code) == (413, "out_of_memory")
    assert fault.value.response.headers["x-should-retry"] == "false"
    assert gpu.get("/readyz").status_code == 200
    gpu.cuda.memory = whole
    after = gpu.client().images.generate(**SIZE, extra_body={"seed": 1, "steps": 3})
    np.testing.assert_array_equal(pixels(after.data[0].b64_json), pixels(before.data[0].b64_json))
    assert not gpu.cuda.faults


def test_what_fits_alone_waits_for_the_others(gpu):
    """Many at once with memory for few: none fails, and each is the same picture as alone."""
    alone = {}
    for seed in range(8):
        asked = {"seed": seed, "steps": 20 + seed % 3}
        alone[seed] = pixels(gpu.client().images.generate(**SIZE, extra_body=asked).data[0].b64_json)
    steps = gpu.engine.models.find(None)[0].steps
    steps.spare()
    gc.collect()
    free, peak, step, begun = gpu.cuda.used, [], steps.step, []

    def seen(courses):
        found = step(courses)
        peak.append(gpu.cuda.used)
        begun.append(len(courses))
        return found

    steps.step = seen
    gpu.client().images.generate(**SIZE, extra_body={"seed": 0, "steps": 20})
    steps.spare()
    gc.collect()
    gpu.cuda.memory = free + 3 * (max(peak) - free)
    begun.clear()
    found, wrong = {}, []

    def ask(seed):
        try:
            asked = {"seed": seed, "steps": 20 + seed % 3}
            answer = gpu.client().images.generate(**SIZE, extra_body=asked)
            found[seed] = pixels(answer.data[0].b64_json)
        except openai.OpenAIError as fault:
            wrong.append(fault)

    crew = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert wrong == []
    assert 1 < max(begun) < 8, "there was memory for some and not for all"
    for seed, picture in found.items():
        np.testing.assert_array_equal(picture, alone[seed])
    assert len(found) == 8
    assert not gpu.cuda.faults


def test_want_of_the_hosts_memory_is_no_bug(tiny):
    with running({"tiny": tiny}) as server:
        pipeline = server.pipelines["tiny"]
        decode = pipeline.decode

        def full(*given, **more):
            return np.empty(2**50, np.float32) and decode(*given, **more)

        pipeline.decode = full
        with pytest.raises(openai.APIStatusError) as fault:
            server.client().images.generate(prompt="a")
        assert (fault.value.status_code, fault.value.code) == (413, "out_of_memory")
        pipeline.decode = decode
        assert server.client().images.generate(prompt="a").data


@pytest.fixture
def dying(tiny, tmp_path):
    flag = tmp_path / "flag"
    with process(DYING, [str(flag), str(tiny), "--max-rows", "1"], tmp_path / "log") as made:
        made.log, made.flag = tmp_path / "log", flag
        yield made


def test_a_process_whose_engine_dies_answers_all_and_ends(dying):
    """The picture that it died of is not to be sent again, what waited is, and a supervisor sees code 1."""
    client = openai.OpenAI(base_url=f"{dying.url}/v1", api_key="none", max_retries=0)
    faults = []

    def ask(seed):
        try:
            client.images.generate(prompt="a", extra_body={"seed": seed, "steps": 200})
        except openai.APIStatusError as fault:
            faults.append(fault)

    def there():
        found = re.findall(r"flux_(?:waiting|active)_pictures (\d+)", httpx.get(f"{dying.url}/metrics").text)
        return sum(map(int, found)) == 3

    crew = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for each in crew:
        each.start()
    wait(there)
    dying.flag.touch()
    for each in crew:
        each.join(60)
    client.close()
    assert len(faults) == 3
    told = [(each.status_code, each.response.headers["x-should-retry"]) for each in faults]
    assert told.count((500, "false")) == 1
    assert told.count((503, "true")) == 2
    for each in faults:
        assert each.response.json()["error"]["message"]
        assert each.response.headers["content-type"] == "application/json"
    assert dying.wait(30) == 1
    text = dying.log.read_text()
    assert "the engine has died" in text
    assert text.splitlines()[-1].startswith("Error: the engine has died of KeyError")


def test_an_engine_that_has_died_says_so_and_takes_no_more(tiny):
    with running({"tiny": tiny}, limits=Limits(rows=1)) as server:
        (model,) = server.engine.models
        step = model.steps.step
        model.steps.step = lambda courses: {}["bug"] if courses[0].walk.done else step(courses)
        with pytest.raises(openai.InternalServerError) as fault:
            server.client(max_retries=2).images.generate(prompt="a", extra_body={"steps": 4})
        assert (fault.value.status_code, fault.value.code) == (500, "internal_error")
        wait(lambda: server.engine.state[0] == "broken")
        for path in ("/healthz", "/readyz"):
            answer = server.get(path)
            assert answer.status_code == 503
            assert "KeyError" in answer.json()["reason"]
        answer = server.post("/v1/images/generations", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broken")
        assert answer.headers["retry-after"]


def test_a_job_that_the_engine_died_of_is_not_begun_again(tiny, tmp_path):
    """Else it would kill every process that comes after; one that waited is begun again."""
    with running({"tiny": tiny}, limits=Limits(rows=1), keep=tmp_path) as server:
        (model,) = server.engine.models
        model.steps.step = lambda courses: {}["bug"]
        hold = threading.Event()
        begin = model.steps.begin
        model.steps.begin = lambda *given: hold.wait(30) and begin(*given)
        names = [
            server.post("/v1/images/jobs", json={"prompt": "a", "seed": seed, "steps": 3}).json()["id"]
            for seed in range(2)
        ]
        hold.set()
        wait(lambda: server.engine.state[0] == "broken")
        wait(lambda: server.get(f"/v1/images/jobs/{names[0]}").json()["status"] == "failed")
        assert server.get(f"/v1/images/jobs/{names[1]}").json()["status"] in ("queued", "in_progress")
    with running({"tiny": tiny}, keep=tmp_path) as server:
        wait(lambda: server.get(f"/v1/images/jobs/{names[1]}").json()["status"] == "completed")
        assert server.get(f"/v1/images/jobs/{names[0]}").json()["status"] == "failed"
