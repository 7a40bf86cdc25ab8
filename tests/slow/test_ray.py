"""Replicas and actors that are killed, and jobs on a cluster: nothing is lost, no picture is another one."""

import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from ray_run import CPU, PATIENCE, descendants, end, environment, folder, named, run, serving
from serving_run import file, pixels, wait

from flux_trt.runtime import Pipeline, recorded

pytest.importorskip("ray", reason="flux_trt[ray] is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nano(bundle):
    return bundle("flux-nano")


@pytest.fixture(scope="module")
def alone(nano):
    with Pipeline.load(nano, "onnxruntime", "cpu") as pipeline:
        yield pipeline


def test_a_replica_that_is_killed_under_load_loses_nothing(nano, alone):
    """The client is OpenAI's as it is; each request is told its seed, so each picture can be compared."""
    with serving(nano) as server:
        client, killed = server.client(), threading.Event()
        picture = Image.linear_gradient("L").resize((32, 48)).convert("RGB")

        def ask(seed):
            for turn in range(6):
                extra = {"steps": 6 + turn, "seed": 100 * seed + turn}
                if turn % 3 == 2:
                    answer = client.images.edit(
                        image=file(picture), prompt="a red circle", extra_body={**extra, "strength": 0.7}
                    )
                    (image,) = alone.generate("a red circle", image=picture, strength=0.7, **extra)
                else:
                    answer = client.images.generate(prompt="a red circle", size="64x64", extra_body=extra)
                    (image,) = alone.generate("a red circle", size=(64, 64), **extra)
                np.testing.assert_array_equal(pixels(answer.data[0].b64_json), np.asarray(image))
                if turn == 1:
                    killed.set()

        before = server.replicas()
        assert len(before) == 2
        with ThreadPoolExecutor(12) as crew:
            asked = [crew.submit(ask, seed) for seed in range(12)]
            killed.wait(PATIENCE)
            wait(lambda: sum(server.counted("flux_active_pictures").values()) > 0, PATIENCE)
            before[0].kill()
            for each in asked:
                each.result()
        wait(lambda: "flux_replicas 2.0" in server.get("/metrics").text, PATIENCE)
        assert {each.pid for each in server.replicas()} != {each.pid for each in before}
        assert client.images.generate(prompt="a", size="64x64").data


def test_what_kills_its_replica_twice_is_told_so(nano):
    """A request goes to another replica once; then it is the client's to send it again."""
    with serving(nano, replicas=1) as server:
        found = []

        def ask():
            path = f"{server.url}/v1/images/generations"
            sent = {"prompt": "a", "size": "64x64", "n": 10, "steps": 200}
            key = {"Authorization": f"Bearer {server.key}"}
            found.append(httpx.post(path, json=sent, headers=key, timeout=PATIENCE))

        crew = threading.Thread(target=ask)
        crew.start()
        seen = set()
        while len(seen) < 2:
            wait(lambda: sum(server.counted("flux_active_pictures").values()) > 0, PATIENCE)
            for each in server.replicas():
                if each.pid not in seen:
                    seen.add(each.pid)
                    each.kill()
            assert server.get("/healthz").status_code == 200
        crew.join()
        (answer,) = found
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.headers["x-should-retry"] == "true"
        assert int(answer.headers["retry-after"]) >= 1
        assert server.client().images.generate(prompt="a", size="64x64").data


JOBS = [
    {"prompt": "a red circle", "seed": 1, "size": "32x48", "steps": 4},
    {"prompt": "b", "image": "p.png", "strength": 0.6, "steps": 4, "output": "b.webp"},
    {"prompt": "c", "size": "33x32"},
    {"prompt": "d", "image": "missing.png"},
    {"promt": "e"},
    {"prompt": "a very secret prompt " * 30, "seed": 3, "steps": 3},
    {"prompt": "g", "negative": "x", "true_cfg": 2, "size": "32x48", "steps": 4},
    {"prompt": "h", "seed": 5, "size": "32x48", "steps": 4},
]


def written(place, jobs):
    place.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(place / "p.png")
    (place / "j.jsonl").write_text("".join(json.dumps(each) + "\n" for each in jobs))
    return place


def results(place):
    lines = (place / "j.results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_jobs_on_a_cluster_are_those_of_one_process(nano, tmp_path):
    with folder() as place:
        one, two = written(tmp_path / "one", JOBS), written(tmp_path / "two", JOBS)
        plain = run(nano, "--jobs", "j.jsonl", "--batch", 2, cwd=one, place=place)
        spread = run(nano, "--jobs", "j.jsonl", "--batch", 2, "--ray", "--replicas", 2, cwd=two, place=place)
        assert plain.returncode == spread.returncode == 1
        assert spread.stdout == plain.stdout
        assert spread.stdout.startswith("5 painted, 0 kept, 3 failed")
        assert "Error: 3 of 8 jobs failed" in spread.stderr
        assert spread.stderr.count("very secret") == plain.stderr.count("very secret") > 0
        by_line = [sorted(results(each), key=lambda record: record["line"]) for each in (one, two)]
        assert by_line[0] == by_line[1]
        painted = [[each["line"] for each in results(where) if each["ok"]] for where in (one, two)]
        assert painted[0] == painted[1]
        for each in results(one):
            if each["ok"]:
                assert (one / each["path"]).read_bytes() == (two / each["path"]).read_bytes()
        assert list(two.glob(".*")) == []
        logs = [each for each in place.rglob("*") if each.is_file()]
        assert any("worker" in each.name for each in logs)
        assert [each for each in logs if b"very secret" in each.read_bytes()] == []

        again = run(nano, "--jobs", "j.jsonl", "--ray", cwd=two, place=place)
        assert again.stdout.startswith("0 painted, 5 kept, 3 failed")
        assert "Ray" not in again.stderr, "it need not start"
        (two / "b.webp").unlink()
        third = run(nano, "--jobs", "j.jsonl", "--ray", cwd=two, place=place)
        assert third.stdout.startswith("1 painted, 4 kept, 3 failed")


def test_an_actor_and_then_the_command_are_killed(nano, tmp_path):
    jobs = [{"prompt": "a", "seed": seed, "size": "64x64", "steps": 40} for seed in range(60)]
    with folder() as place:
        where = written(tmp_path / "jobs", jobs)
        command = [sys.executable, "-m", "flux_trt.runtime.cli", "generate", str(nano), "--jobs", "j.jsonl"]
        command += ["--ray", "--replicas", "2", *CPU]
        with subprocess.Popen(
            command, cwd=where, env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            wait(lambda: len(list(where.glob("j-*.png"))) > 4, PATIENCE)
            actors = [each for each in descendants(process.pid) if "MapWorker" in named(each)]
            assert len(actors) == 2
            actors[0].kill()
            more = len(list(where.glob("j-*.png"))) + 8
            wait(lambda: len(list(where.glob("j-*.png"))) > more or process.poll() is not None, PATIENCE)
            below = descendants(process.pid)
            process.terminate()
            _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == -15, error
        assert b"stopped by SIGTERM: " in error
        wait(lambda: not [each for each in below if each.is_running()], 60)
        last = run(nano, "--jobs", "j.jsonl", "--ray", "--replicas", 2, cwd=where, place=place)
        assert last.returncode == 0, last.stderr
        painted, kept = (int(part.split()[0]) for part in last.stdout.split(";")[0].split(",")[:2])
        assert painted + kept == 60
        assert kept > 4
        seeds = {recorded(where / each["path"]).parameters["seed"] for each in results(where)}
        assert seeds == set(range(60))
        shutil.copytree(where, tmp_path / "plain")
        for each in (tmp_path / "plain").glob("j-*.png"):
            each.unlink()
        (tmp_path / "plain" / "j.results.jsonl").unlink()
        assert run(nano, "--jobs", "j.jsonl", cwd=tmp_path / "plain", place=place).returncode == 0
        for each in (tmp_path / "plain").glob("j-*.png"):
            assert each.read_bytes() == (where / each.name).read_bytes()


def test_a_cluster_that_runs_is_used_and_left(nano, tmp_path):
    """Somebody's cluster: a server and jobs come and go, and it stays."""
    with folder() as place:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", "0"]
        command += ["--num-cpus", "2", "--include-dashboard", "false", "--object-store-memory", "100000000"]
        command += ["--temp-dir", str(place)]
        log = (place / "head").open("wb")
        head = subprocess.Popen(command, env=environment(place) | {"RAY_AUTH_MODE": "disabled"}, stdout=log)
        try:
            wait(lambda: b"--address='" in (place / "head").read_bytes(), PATIENCE)
            address = re.search(r"--address='([^']+)'", (place / "head").read_text())[1]
            more = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
            with serving(nano, more=more) as server:
                assert server.client().images.generate(prompt="a", size="64x64").data
                replicas = [each for each in descendants(head.pid) if "ServeReplica" in named(each)]
                assert len(replicas) == 2
            assert server.process.returncode == 0
            wait(lambda: not [each for each in replicas if each.is_running()], PATIENCE)
            assert head.poll() is None
            where = written(tmp_path / "jobs", JOBS[:2])
            done = run(nano, "--jobs", "j.jsonl", "--ray", cwd=where, place=place, more=more)
            assert done.stdout.startswith("2 painted, 0 kept, 0 failed"), done.stderr
            assert head.poll() is None
        finally:
            end(head)
            log.close()
