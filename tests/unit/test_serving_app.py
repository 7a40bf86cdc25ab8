"""What every request passes, and the process: keys, bodies, metrics, clients that leave, SIGTERM."""

import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
from click.testing import CliRunner
from serving_run import process, running, wait

from flux_trt.serving.cli import main
from flux_trt.serving.limits import Limits
from flux_trt.serving.rows import read

COMMAND = [sys.executable, "-c", "from flux_trt.serving.cli import main; main()"]
KEY, OTHER = "a-key-of-one-client", "a-key-of-another-one"


@pytest.fixture(scope="module")
def locked(tiny):
    with running({"tiny": tiny}, keys=[KEY, OTHER], limits=Limits(body_bytes=10_000)) as found:
        yield found


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"api-key": KEY},
    ],
)
def test_everything_but_liveness_needs_a_key(locked, header):
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/images/edits"),
        ("GET", "/nothing"),
    ):
        answer = httpx.request(method, locked.url + path, headers=header)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/healthz", "/readyz", "/", "/page.js"):
        assert httpx.get(locked.url + path, headers=header).status_code == 200


@pytest.mark.parametrize(
    "header",
    [{"Sec-Fetch-Site": "cross-site"}, {"Host": "example.com"}, {"Host": "127.0.0.1.example.com:8000"}],
)
def test_without_keys_no_other_sites_page_may_ask(tiny, header):
    with running({"tiny": tiny}) as server:
        answer = server.post("/v1/images/generations", json={"prompt": "a"}, headers=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        for host in ("localhost", "[::1]:80", "127.0.0.1:9"):
            assert server.get("/v1/models", headers={"Host": host}).status_code == 200


def test_openais_client_comes_again_when_it_is_told_to(tiny):
    with running({"tiny": tiny}, limits=Limits(queue_seconds=0.1)) as server:
        calls = slowly(server, 0.02)
        first = threading.Thread(
            target=lambda: server.client().images.generate(prompt="a", extra_body={"steps": 50, "seed": 1})
        )
        first.start()
        wait(lambda: server.engine.seconds_ahead() > 0.5)
        start, before = time.monotonic(), len(calls)
        assert server.client(max_retries=3).images.generate(prompt="a", extra_body={"steps": 1}).data
        assert time.monotonic() - start >= 1
        assert len(calls) > before
        first.join()


def test_a_key_opens(locked):
    for key in (KEY, OTHER):
        assert locked.client(key=key).images.generate(prompt="a").data
    with pytest.raises(openai.AuthenticationError):
        locked.client(key="wrong").images.generate(prompt="a")


@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_are_bounded(locked, chunked):
    content = (b"x" * 1000 for _ in range(20)) if chunked else b"x" * 20_000
    answer = locked.post(
        "/v1/images/generations", content=content, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_metrics(locked):
    locked.client().images.generate(prompt="a", n=2)
    text = locked.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    found = dict(re.findall(r'^(flux_\w+(?:\{model="tiny".*?\})?) ([\d.]+)', text, re.M))
    assert float(found['flux_pictures_total{model="tiny",task="generate"}']) >= 2
    assert 'flux_requests_total{model="tiny",outcome="done",task="generate"}' in found
    assert "flux_step_rows_sum" in text
    assert KEY not in text


def slowly(server, seconds):
    """Each call of the denoiser takes so long."""
    graph = server.pipelines["tiny"]._graphs["denoiser"]
    run, calls = graph.run, []

    def wait_and_run(inputs, into=None):
        calls.append(time.monotonic())
        time.sleep(seconds)
        return run(inputs, into)

    graph.run = wait_and_run
    return calls


def test_a_client_that_leaves_stops_costing_at_the_next_step(tiny):
    with running({"tiny": tiny}) as server:
        calls = slowly(server, 0.05)
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.4).images.generate(prompt="a", extra_body={"steps": 200})
        left = time.monotonic()
        wait(lambda: server.engine.seconds_ahead() == 0)
        assert len([each for each in calls if each > left]) <= 3
        stream = server.client().images.generate(
            prompt="a", stream=True, partial_images=1, extra_body={"steps": 200, "seed": 1}
        )
        wait(lambda: server.engine.seconds_ahead() > 0)
        stream.close()
        wait(lambda: server.engine.seconds_ahead() == 0)
        assert server.client().images.generate(prompt="a").data


def test_a_client_that_cannot_wait_so_long_is_told_at_once(tiny):
    with running({"tiny": tiny}) as server:
        slowly(server, 0.05)
        first = threading.Thread(
            target=lambda: server.client().images.generate(prompt="a", extra_body={"steps": 100})
        )
        first.start()
        wait(lambda: server.engine.seconds_ahead() > 2)
        with pytest.raises(openai.RateLimitError) as fault:
            server.client(timeout=0.9).images.generate(prompt="a", extra_body={"seed": 1})
        assert int(fault.value.response.headers["retry-after"]) >= 1
        first.join()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--host", "0.0.0.0"], "there is no key"),
        (["--host", "example.com"], "there is no key"),
        (["--alias", "a"], "is not NAME=BUNDLE"),
        (["--alias", "a=other"], "there is no bundle other"),
        (["--alias", "bundle=bundle"], "bundle is taken"),
        (["--api-key-file", "missing"], "cannot read the keys"),
        (["--api-key-file", "empty"], "has no key"),
        (["--api-key-file", "short"], "is not 16 or more"),
        (["--rows", "empty"], "is no table of rows"),
    ],
)
def test_what_the_command_refuses(tiny, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "short").write_text("tooshort1\n")
    found = CliRunner().invoke(main, [str(tiny), *words])
    assert found.exit_code == 1
    assert found.output.startswith("Error: ")
    assert line in found.output
    assert found.output.count("\n") == 1
    assert "tooshort1" not in found.output


def test_a_table_of_rows(tmp_path):
    (tmp_path / "rows.json").write_text('{"rows": {"4096": 8, "1048576": 2}}')
    limits = Limits(table=read(tmp_path / "rows.json"), rows=6)
    assert [limits.rows_of(pixels) for pixels in (1024, 4096, 4097, 2_000_000)] == [6, 6, 2, 1]


@pytest.fixture
def served(tiny, tmp_path):
    """`flux-serve` itself."""
    with process(COMMAND[-1], [str(tiny)], tmp_path / "log") as made:
        made.log = tmp_path / "log"
        yield made


def test_sigterm_paints_what_was_accepted(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    found, late = [], []

    def ask(seed):
        prompt = "a very secret prompt, longer than what is read, secret to its end"
        options = {"size": "128x128", "n": 10, "extra_body": {"steps": 200, "seed": seed}}
        try:
            found.append(client.images.generate(prompt=prompt, **options))
        except openai.InternalServerError as fault:  # it came after the signal
            late.append(fault.code)

    crew = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for each in crew:
        each.start()
    wait(lambda: "flux_active_pictures 0.0" not in httpx.get(served.url + "/metrics").text)
    served.send_signal(signal.SIGTERM)
    wait(lambda: served.poll() is not None or httpx.get(served.url + "/readyz").status_code == 503)
    if served.poll() is None:
        with pytest.raises(openai.InternalServerError) as fault:
            client.images.generate(prompt="a")
        assert fault.value.code == "draining"
        assert fault.value.response.headers["retry-after"]
    for each in crew:
        each.join()
    client.close()
    assert found
    assert [len(each.data) for each in found] == [10] * len(found)
    assert late == ["draining"] * (4 - len(found))
    assert served.wait(20) == 0
    assert "secret" not in served.log.read_text()


def test_a_port_that_is_taken_is_one_line(served, tiny):
    port = served.url.rpartition(":")[2]
    command = [
        sys.executable,
        "-c",
        "from flux_trt.serving.cli import main; main()",
        str(tiny),
        "--port",
        port,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
