"""flux-serve with Ray: two real replicas, and all that one server does. One cluster for all of this file."""

import http.client
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import psutil
import pytest
from ray_run import descendants, named, serving
from serving_run import pixels, wait

from flux_trt.runtime import Pipeline

pytest.importorskip("ray", reason="flux_trt[ray] is not installed")
SECRET = "a very secret prompt, longer than what is read, secret to its end"
LONG = {"prompt": SECRET, "size": "128x128", "n": 10}


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny, "--max-queue-seconds", "0.5", "--max-steps", "100000") as found:
        yield found


@pytest.fixture(scope="module")
def alone(tiny):
    with Pipeline.load(tiny, "onnxruntime", "cpu") as pipeline:
        yield pipeline


def test_pictures_of_all_replicas_are_those_of_one_process(server, alone):
    client = server.client(max_retries=10)  # the queue is short

    def ask(seed):
        asked = {"size": ("32x32", "48x32", "128x128")[seed % 3], "n": 1 + seed % 2}
        extra = {"steps": 2 + seed, "guidance": 1 + seed / 4, "seed": seed}
        answer = client.images.generate(prompt="a red circle", **asked, extra_body=extra)
        width, height = map(int, asked["size"].split("x"))
        images = alone.generate("a red circle", count=asked["n"], size=(width, height), **extra)
        for each, image in zip(answer.data, images, strict=True):
            np.testing.assert_array_equal(pixels(each.b64_json), np.asarray(image))

    with ThreadPoolExecutor(6) as crew:
        list(crew.map(ask, range(24)))
    wait(lambda: sorted(server.counted("flux_pictures_total").values())[:1] > [1.0])
    assert len(server.counted("flux_pictures_total")) == 2


def test_a_seed_is_drawn_and_told(server, alone):
    client = server.client()
    seeds = set()
    for _ in range(3):
        (picture,) = client.images.generate(prompt="a", size="32x32").data
        (image,) = alone.generate("a", size=(32, 32), seed=picture.model_extra["seed"])
        np.testing.assert_array_equal(pixels(picture.b64_json), np.asarray(image))
        seeds.add(picture.model_extra["seed"])
    assert len(seeds) == 3


def test_a_stream(server, alone):
    extra = {"steps": 8, "seed": 5}
    found = list(
        server.client().images.generate(
            prompt="a", size="32x32", stream=True, partial_images=2, extra_body=extra
        )
    )
    assert [each.type.rpartition(".")[2] for each in found] == ["partial_image"] * 2 + ["completed"]
    (image,) = alone.generate("a", size=(32, 32), **extra)
    np.testing.assert_array_equal(pixels(found[-1].b64_json), np.asarray(image))


def test_faults_have_openais_shape(server):
    client = server.client(max_retries=0)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.images.generate(prompt="a", size="33x32")
    assert (wrong.value.param, wrong.value.type) == ("size", "invalid_request_error")
    assert wrong.value.response.headers["x-request-id"].startswith("req_")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="other")
    assert [each.id for each in client.models.list()] == ["bundle"]
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert server.get("/nothing").json()["error"]["code"] == "not_found"
    assert "--keep" in server.get("/v1/images/jobs").json()["error"]["message"]
    assert declared(server, 200_000_000) == (413, "body_too_large")


def declared(server, length):
    """The answer to a body that is said to be so long."""
    place = httpx.URL(server.url)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=60)
    connection.putrequest("POST", "/v1/images/generations")
    connection.putheader("Authorization", f"Bearer {server.key}")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, json.load(answer)["error"]["code"]
    connection.close()
    return found


def test_what_a_supervisor_asks(server):
    assert server.get("/healthz").json()["status"] == "ok"
    assert server.get("/readyz").json()["status"] == "ready"
    assert "<title>" in httpx.get(server.url).text
    text = server.get("/metrics").text
    assert "flux_replicas 2.0" in text
    assert "flux_lost_total 0.0" in text


def test_a_client_that_leaves_stops_costing(server):
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=1, max_retries=0).images.generate(**LONG, extra_body={"steps": 90_000})
    stream = server.client().images.generate(**LONG, stream=True, extra_body={"steps": 90_000})
    stream.close()
    wait(lambda: set(server.counted("flux_active_pictures").values()) == {0.0})
    assert server.counted("flux_waiting_pictures")
    assert 'outcome="cancelled"' in server.get("/metrics").text


def test_too_much_is_a_429_of_openais_shape(server):
    client, found = server.client(max_retries=0), []

    def ask(seed):
        try:
            found.append(client.images.generate(**LONG, extra_body={"steps": 1000, "seed": seed}))
        except openai.RateLimitError as fault:
            found.append(fault)

    crew = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    refused = [each for each in found if isinstance(each, openai.RateLimitError)]
    assert 0 < len(refused) < 16 == len(found)
    for each in refused:
        assert (each.code, each.type) == ("queue_full", "rate_limit_error")
        assert int(each.response.headers["retry-after"]) >= 1


def test_ray_tells_nobody(server):
    """Usage statistics and the dashboard are off, a token is asked for, and no socket leads elsewhere."""
    processes = descendants(server.process.pid)
    assert len(processes) > 5
    own = {each.address for several in psutil.net_if_addrs().values() for each in several}
    ends = [found.raddr.ip for each in processes for found in each.net_connections("inet") if found.raddr]
    assert len(ends) > 5
    assert {each.removeprefix("::ffff:") for each in ends} <= own
    told = [named(each) for each in processes if "dashboard.py" in named(each)]
    assert all("--modules-to-load=UsageStatsHead" in each for each in told), "a dashboard"
    servers = [each for each in processes if each.name() in ("gcs_server", "raylet")]  # others hide theirs
    assert len(servers) == 2
    for each in servers:
        found = each.environ()
        assert (found["RAY_USAGE_STATS_ENABLED"], found["RAY_AUTH_MODE"]) == ("0", "token")


def test_sigterm_paints_what_was_accepted(server):
    """The last one: the server is gone then, with it all of Ray's processes, and no log has a prompt."""
    client, found, late = server.client(max_retries=0), [], []
    below = descendants(server.process.pid)

    def ask():
        try:
            found.append(client.images.generate(**LONG, extra_body={"steps": 3000}))
        except openai.APIStatusError as fault:  # it came after the signal, or to the busier replica
            late.append(fault.code)

    crew = [threading.Thread(target=ask) for _ in range(2)]
    for each in crew:
        each.start()
    wait(lambda: sum(server.counted("flux_active_pictures").values()) >= 1)
    server.process.send_signal(signal.SIGTERM)
    wait(lambda: server.process.poll() is not None or refusing(server))
    if server.process.poll() is None and not found:
        with pytest.raises(openai.InternalServerError) as fault:
            client.images.generate(prompt="a")
        assert fault.value.code == "draining"
        assert fault.value.response.headers["retry-after"]
    for each in crew:
        each.join()
    assert found
    assert [len(each.data) for each in found] == [10] * len(found)
    assert set(late) <= {"draining", "queue_full"}
    assert len(found) + len(late) == 2
    assert server.process.wait(120) == 0
    wait(lambda: not [each for each in below if each.is_running()], 60)
    files = [each for each in server.folder.rglob("*") if each.is_file()]
    assert any("replica" in each.name for each in files)
    assert [each for each in files if b"secret prompt" in each.read_bytes()] == []


def refusing(server):
    """Whether it says that it takes no more; one that is gone does not say it."""
    try:
        return server.get("/readyz").status_code == 503
    except httpx.TransportError:
        return server.process.wait(60) == 0
