"""What --ray refuses before any work, how a cluster is divided, and what replicas have counted."""

import subprocess
import sys

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from flux_trt.runtime.cli import main as run
from flux_trt.runtime.cluster import Cluster, Share
from flux_trt.runtime.errors import RequestError
from flux_trt.serving.cli import main as serve
from flux_trt.serving.metrics import Metrics
from flux_trt.serving.ray.counted import merged


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ray", "--keep", "jobs"], "--keep does not go with --ray: a job belongs to the engine"),
        (["--replicas", "2"], "--replicas is for --ray"),
        (["--autoscale", "1:2"], "--autoscale is for --ray"),
        (["--ray", "--replicas", "2", "--autoscale", "1:2"], "both say how many"),
        (["--ray", "--autoscale", "2"], "is not MIN:MAX"),
        (["--ray", "--autoscale", "3:2"], "is not MIN:MAX"),
        (["--ray", "--autoscale", "0:2"], "is not MIN:MAX"),
        (["--ray", "--host", "0.0.0.0"], "there is no key"),
        (["--ray", "--alias", "a=other"], "there is no bundle other"),
    ],
)
def test_what_the_server_refuses(tiny, words, line):
    found = CliRunner().invoke(serve, [str(tiny), *words])
    assert found.exit_code == 1
    assert found.output.startswith("Error: ")
    assert line in found.output
    assert found.output.count("\n") == 1


def test_a_bundle_that_is_none_starts_no_ray(tmp_path):
    found = CliRunner().invoke(serve, [str(tmp_path), "--ray"])
    assert found.exit_code == 1
    assert str(tmp_path) in found.output
    assert found.output.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a", "--ray"], "--ray paints the file of --jobs"),
        (["--jobs", "j.jsonl", "--replicas", "2"], "--replicas is for --ray"),
        (["a", "--replicas", "2"], "--replicas is for --ray"),
    ],
)
def test_what_jobs_refuse(tiny, words, line):
    found = CliRunner().invoke(run, ["generate", str(tiny), *words])
    assert found.exit_code == 2
    assert line in found.output


@pytest.mark.parametrize("command", ["serve", "run"])
def test_without_ray_its_extra_is_named(tiny, tmp_path, command):
    (tmp_path / "j.jsonl").write_text('{"prompt": "a"}\n')
    module, words = {
        "serve": ("flux_trt.serving.cli", [str(tiny), "--ray"]),
        "run": ("flux_trt.runtime.cli", ["generate", str(tiny), "--jobs", "j.jsonl", "--ray"]),
    }[command]
    code = f"import sys; sys.modules['ray'] = None; from {module} import main; main({words!r})"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert found.stderr == (
        "Error: --ray needs ray, which is not installed; install flux_trt with its extra: flux_trt[ray]\n"
    )
    assert {each.name for each in tmp_path.iterdir()} <= {"j.jsonl", "j.results.jsonl"}


@pytest.mark.parametrize(
    ("resources", "asked", "share"),
    [
        ({"CPU": 8.0}, ("auto", None, 2), Share(4, 0, 4)),
        ({"CPU": 8.0}, ("cpu", 3, 2), Share(3, 0, 3)),
        ({"CPU": 8.0, "GPU": 4.0}, ("auto", None, 4), Share(1, 1, None)),
        ({"CPU": 8.0, "GPU": 4.0}, ("cuda", 2, 4), Share(1, 1, 2)),
        ({"CPU": 8.0, "GPU": 4.0}, ("cpu", None, 4), Share(2, 0, 2)),
        ({"CPU": 3.0}, ("cpu", None, 2), Share(1, 0, 1)),
    ],
)
def test_a_cluster_is_divided(resources, asked, share):
    assert Cluster(resources, own=True).share(*asked) == share


@pytest.mark.parametrize(
    ("resources", "asked", "line"),
    [
        ({"CPU": 2.0}, ("cpu", None, 3), "3 with 1 CPU each do not fit into the 2"),
        ({"CPU": 8.0}, ("cpu", 5, 2), "2 with 5 CPUs each do not fit into the 8"),
        ({"CPU": 8.0, "GPU": 1.0}, ("auto", None, 2), "2 with 1 GPU each do not fit into the 1"),
        ({"CPU": 8.0}, ("cuda", None, 1), "1 with 1 GPU each do not fit into the 0"),
    ],
)
def test_what_does_not_fit_is_refused_where_a_cluster_does_not_grow(resources, asked, line):
    with pytest.raises(RequestError, match=line):
        Cluster(resources, own=True).share(*asked)
    assert Cluster(resources, own=False).share(*asked)


def test_how_many_there_are_by_themselves():
    assert Cluster({"CPU": 8.0, "GPU": 4.0}, own=True).actors("auto") == 4
    assert Cluster({"CPU": 8.0, "GPU": 4.0}, own=True).actors("cpu") == 1
    assert Cluster({"CPU": 8.0}, own=True).actors("auto") == 1


def test_what_replicas_have_counted_is_one_page():
    pages = []
    for name, rows in (("one", 2), ("two", 4)):
        metrics = Metrics()
        metrics.step("dev", 4096, rows, 0.02)
        metrics.queue(rows, 1, 0.5)
        pages.append((name, metrics.page()))
    families = list(text_string_to_metric_families(merged(pages, 2, 3).decode()))
    assert len({each.name for each in families}) == len(families), "a name comes once"
    values = {(each.name, each.labels.get("replica")): each.value for one in families for each in one.samples}
    assert values["flux_replicas", None] == 2
    assert values["flux_lost_total", None] == 3
    assert values["flux_step_rows_sum", "one"] == 2
    assert values["flux_step_rows_sum", "two"] == 4
    assert values["flux_waiting_pictures", "two"] == 4


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_one_line(tiny, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = CliRunner().invoke(serve, [str(tiny), "--ray"])
    assert found.exit_code == 1
    assert found.output.startswith(f"Error: there is no cluster at RAY_ADDRESS {address} (")
    assert found.output.count("\n") == 1
