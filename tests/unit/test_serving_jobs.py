"""Jobs: whole pictures after a restart, one's own alone, and cancelled by id."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from serving_run import file, running, wait

from flux_trt.serving.limits import Limits

KEY, OTHER = "a-key-of-one-client", "a-key-of-another-one"
MINE, THEIRS = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER))
ASKED = {"prompt": "a red circle", "n": 2, "steps": 4}


@pytest.fixture
def server(tiny, tmp_path):
    with running({"tiny": tiny}, keys=[KEY, OTHER], keep=tmp_path / "jobs") as found:
        found.folder = tmp_path / "jobs"
        yield found


def state(server, job):
    return server.get(f"/v1/images/jobs/{job['id']}", headers=MINE).json()


def over(server, job):
    wait(lambda: state(server, job)["status"] not in ("queued", "in_progress"))
    return state(server, job)


def pixels(server, job, index):
    answer = server.get(f"/v1/images/jobs/{job['id']}/content/{index}", headers=MINE)
    assert answer.status_code == 200
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_a_job(server):
    answer = server.post("/v1/images/jobs", json=ASKED, headers=MINE)
    assert answer.status_code == 202
    job = answer.json()
    done = over(server, job)
    assert (done["status"], done["progress"]) == ("completed", 100)
    assert [each["index"] for each in done["data"]] == [0, 1]
    seed = done["data"][0]["seed"]
    alone = server.pipelines["tiny"].generate("a red circle", count=2, steps=4, seed=seed)
    for index, image in enumerate(alone):
        np.testing.assert_array_equal(pixels(server, job, index), np.asarray(image))
    assert server.get(f"/v1/images/jobs/{job['id']}/content/2", headers=MINE).status_code == 404
    assert "prompt" not in json.dumps(done)


def test_jobs_are_their_owners_alone(server):
    job = server.post("/v1/images/jobs", json=ASKED, headers=MINE).json()
    over(server, job)
    place = f"/v1/images/jobs/{job['id']}"
    assert server.get(place, headers=THEIRS).status_code == 404
    assert server.get(f"{place}/content/0", headers=THEIRS).status_code == 404
    assert server.post(f"{place}/cancel", headers=THEIRS).status_code == 404
    assert server.get("/v1/images/jobs", headers=THEIRS).json()["data"] == []
    (found,) = server.get("/v1/images/jobs", headers=MINE).json()["data"]
    assert found["id"] == job["id"]


def test_cancelling_twice_and_deleting(server):
    job = server.post("/v1/images/jobs", json={**ASKED, "steps": 200}, headers=MINE).json()
    for _ in range(2):
        found = server.post(f"/v1/images/jobs/{job['id']}/cancel", headers=MINE).json()
        assert found["status"] == "cancelled"
    wait(lambda: server.engine.seconds_ahead() == 0)
    assert server.post("/v1/images/jobs", json=ASKED, headers=MINE).status_code == 202
    place = f"/v1/images/jobs/{job['id']}"
    import httpx

    assert httpx.delete(server.url + place, headers=MINE).json()["deleted"]
    assert server.get(place, headers=MINE).status_code == 404
    assert not (server.folder / job["id"]).exists()


def test_a_key_of_idempotency_makes_one_job(server):
    headers = {**MINE, "Idempotency-Key": "once"}
    one, two = (server.post("/v1/images/jobs", json=ASKED, headers=headers).json() for _ in range(2))
    assert one["id"] == two["id"]
    other = server.post("/v1/images/jobs", json={**ASKED, "steps": 5}, headers=headers)
    assert other.status_code == 400
    theirs = server.post("/v1/images/jobs", json=ASKED, headers={**headers, **THEIRS}).json()
    assert theirs["id"] != one["id"]


@pytest.mark.parametrize("sent", [{"steps": 0}, {"stream": True}, {"size": "33x32"}, {"strength": 0.5}])
def test_what_cannot_be_is_no_job(server, sent):
    assert server.post("/v1/images/jobs", json={**ASKED, **sent}, headers=MINE).status_code == 400
    assert server.get("/v1/images/jobs", headers=MINE).json()["data"] == []
    assert list(server.folder.iterdir()) == []


def test_an_id_is_no_path(server):
    for name in ("..", "%2e%2e", "..%2f..%2fetc", "imgjob_0"):
        assert server.get(f"/v1/images/jobs/{name}/content/0", headers=MINE).status_code == 404


def test_what_a_server_left_the_next_one_paints(bundle, tmp_path):
    """The first one is stopped in the midst of an edit; the second has the picture of one that was not."""
    picture, keep = Image.linear_gradient("L").resize((32, 48)).convert("RGB"), tmp_path / "jobs"
    asked = {"prompt": "a red circle", "strength": "0.8", "steps": "40"}
    root = bundle("flux-nano")
    with running({"nano": root}, keys=[KEY], keep=keep) as first:
        job = first.post("/v1/images/jobs", data=asked, files={"image": file(picture)}, headers=MINE).json()
        wait(lambda: state(first, job)["status"] == "in_progress")
        first.engine.drain(0)
    with running({"nano": root}, keys=[KEY], keep=keep) as second:
        done = over(second, job)
        assert done["status"] == "completed"
        (image,) = second.pipelines["nano"].generate(
            "a red circle", image=picture, strength=0.8, steps=40, seed=done["data"][0]["seed"]
        )
        np.testing.assert_array_equal(pixels(second, job, 0), np.asarray(image))


def test_a_full_queue_takes_no_job(tiny, tmp_path):
    keep = tmp_path / "jobs"
    with running({"tiny": tiny}, keys=[KEY], keep=keep, limits=Limits(queue_seconds=1e-9)) as server:
        jobs = [
            server.post("/v1/images/jobs", json={**ASKED, "n": 10, "steps": 200}, headers=MINE)
            for _ in range(4)
        ]
        refused = [each for each in jobs if each.status_code == 429]
        assert refused
        assert all(each.headers["retry-after"] for each in refused)
        assert len(list(keep.iterdir())) == 4 - len(refused)


def test_without_a_folder_there_are_no_jobs(tiny):
    with running({"tiny": tiny}) as server:
        assert "--keep" in server.post("/v1/images/jobs", json=ASKED).json()["error"]["message"]
