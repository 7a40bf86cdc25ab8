"""examples/deploy: the files are what Kubernetes and a builder of images read, and what they call is there.

The oracle for Kubernetes is the models of its own client. KubeRay has none: of a RayCluster, what surrounds
its pods is compared with the fields that its reference names.
"""

import ast
import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml
from kubernetes.client import models

from flux_trt.serving.cli import main

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
FILES = ("kubernetes.yaml", "kuberay.yaml")
KINDS = {"Deployment": "V1Deployment", "Service": "V1Service"}
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"}
CLUSTER |= {"workerGroupSpecs"}
HEAD = {"rayStartParams", "template"}
WORKERS = {*HEAD, "groupName", "replicas", "minReplicas", "maxReplicas"}
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "CMD"}


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def expect(value, kind):
    """That a value is one of a type of Kubernetes' client, without a field that the type has not."""
    found = getattr(models, kind).model_validate(value)
    assert found.model_dump(by_alias=True, exclude_unset=True, mode="json") == value


def groups(cluster):
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_knows_every_field(name):
    for each in documents(name):
        if each["kind"] in KINDS:
            expect(each, KINDS[each["kind"]])
            continue
        assert (each["apiVersion"], each["kind"]) == ("ray.io/v1", "RayCluster")
        expect(each["metadata"], "V1ObjectMeta")
        assert set(each["spec"]) <= CLUSTER
        assert set(each["spec"]["headGroupSpec"]) == HEAD
        for group in groups(each):
            assert set(group) <= WORKERS
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            expect(group["template"], "V1PodTemplateSpec")


@pytest.mark.parametrize(
    "wrong",
    [{"replicas": "4"}, {"replica": 4}, {"template": {"spec": {"containers": [{"image": "a", "arg": []}]}}}],
)
def test_the_check_sees_what_is_wrong(wrong):
    (made, _) = documents("kubernetes.yaml")
    made["spec"] |= wrong
    with pytest.raises((AssertionError, ValueError)):
        expect(made, "V1Deployment")


def pods(name):
    for each in documents(name):
        if each["kind"] == "Deployment":
            yield each["spec"]["template"]
        elif each["kind"] == "RayCluster":
            yield from (group["template"] for group in groups(each))


def commands(template):
    """Calls of flux-serve in a pod, as words."""
    (container,) = template["spec"]["containers"]
    if container["args"][0] == "flux-serve":
        yield container["args"][1:]
        return
    for line in container["args"][0].splitlines():
        words = shlex.split(line)
        if "flux-serve" in words:
            yield words[words.index("flux-serve") + 1 :]


def routes():
    """Paths that the server answers without a key."""
    tree = ast.parse((ROOT / "serving" / "app.py").read_text(encoding="utf-8"))
    (found,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "OPEN"
    )
    return ast.literal_eval(found)


@pytest.mark.parametrize("name", FILES)
def test_pods_and_the_server_agree(name):
    called = 0
    for template in pods(name):
        spec, (container,) = template["spec"], template["spec"]["containers"]
        assert {each["name"] for each in container["volumeMounts"]} == {
            each["name"] for each in spec["volumes"]
        }
        assert spec["securityContext"]["runAsNonRoot"]
        for words in commands(template):
            called += 1
            asked = main.make_context("flux-serve", list(words)).params
            ports = {each["name"]: each["containerPort"] for each in container["ports"]}
            assert ports["http"] == asked["port"]
            assert spec["terminationGracePeriodSeconds"] > asked["drain_seconds"]
            places = [each["mountPath"] for each in container["volumeMounts"]]
            for path in (*asked["bundles"], asked["api_key_file"]):
                assert any(path.is_relative_to(each) for each in places)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                request = container[probe]["httpGet"]
                assert (request["port"], request["path"] in routes()) == ("http", True)
    assert called == 1


def test_replicas_are_the_gpus_of_the_workers():
    cluster, service = documents("kuberay.yaml")
    ((words,),) = ([*commands(group)] for group in [cluster["spec"]["headGroupSpec"]["template"]])
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    asked = main.make_context("flux-serve", list(words)).params
    assert asked["ray"]
    assert asked["autoscale"] == f"{workers['minReplicas']}:{workers['maxReplicas']}"
    (container,) = workers["template"]["spec"]["containers"]
    assert workers["rayStartParams"]["num-gpus"] == container["resources"]["limits"]["nvidia.com/gpu"]
    labels = cluster["spec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={cluster['spec']['rayVersion']}\n" in pinned


def instructions():
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line.strip()]


def test_the_containerfile():
    """It is not built here: its instructions are read, and what they name is there."""
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    arguments = dict(rest.split("=") for name, rest in found if name == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= set(config["options.extras_require"])
    used = {each for _, rest in found for each in re.findall(r"\$\{(\w+)\}", rest)}
    assert used == set(arguments)
    stages = {rest.split()[-1] for name, rest in found if name == "FROM" and " AS " in rest}
    copied = set()
    for rest in (rest for name, rest in found if name == "COPY"):
        words = rest.split()
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages
            continue
        copied |= set(words[:-1])
    assert all((ROOT / each).exists() for each in copied)
    folders = {line.split("=")[1].strip() for line in config["options"]["package_dir"].strip().splitlines()}
    assert folders | {"setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == copied
    users = [rest for name, rest in found if name == "USER"]
    assert users == ["10001"]
    uids = {template["spec"]["securityContext"]["runAsUser"] for name in FILES for template in pods(name)}
    assert uids == {int(users[0])}
