"""LoRAs that clients choose by id: the pictures are flux-run's with the file, and no path goes in or out."""

import base64
import io
import json
import shutil
import threading

import loras
import numpy as np
import openai
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from serving_run import file, pixels, running, wait

from flux_trt.runtime import recorded
from flux_trt.runtime.errors import CheckpointError, FluxTrtError, RequestError
from flux_trt.serving import adapters
from flux_trt.serving.cli import main
from flux_trt.serving.errors import ApiError
from flux_trt.serving.limits import Limits

ASKED = {"prompt": "a red circle", "size": "64x64"}
NUMBERS = {"seed": 5, "steps": 3}
ALONE = {**NUMBERS, "size": (64, 64)}


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    source, made = checkpoint("dev-like"), tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("style", "person 2"), 11):
        loras.save(
            made / f"{name}.safetensors", loras.FORMS["kohya"](source, loras.update(source, seed, 0.12))
        )
    (made / "README.md").write_text("of these files")
    return made


@pytest.fixture(scope="module")
def server(lora_bundle, folder):
    with running({"dev": lora_bundle}, aliases={"gpt-image-2": "dev"}, lora_dir=folder) as found:
        yield found


def painted(server, *chosen, **more):
    (image,) = server.pipelines["dev"].generate("a red circle", lora=list(chosen), **ALONE, **more)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("sent", "chosen"),
    [
        ({"lora": "style"}, [("style", 1.0)]),
        ({"lora": "style:0.5"}, [("style", 0.5)]),
        ({"lora": ["style:0.5", "person 2:-0.75"]}, [("style", 0.5), ("person 2", -0.75)]),
        ({"loras": [{"id": "person 2", "strength": 0.5}]}, [("person 2", 0.5)]),
        ({"lora": {"name": "style", "scale": 0.25, "int_id": 7}}, [("style", 0.25)]),
        ({"loras": [{"lora_name": "style", "weight": 2}, "person 2"]}, [("style", 2.0), ("person 2", 1.0)]),
        ({"lora_name": "style"}, [("style", 1.0)]),
        ({"model": "dev:style"}, [("style", 1.0)]),
        ({"model": "gpt-image-2:style", "lora": "person 2:0.5"}, [("style", 1.0), ("person 2", 0.5)]),
        ({"lora": "style:0"}, []),
        ({"lora": []}, []),
        ({}, []),
    ],
)
def test_the_picture_is_flux_runs(server, folder, sent, chosen):
    answer = server.client().images.generate(**ASKED, extra_body={**NUMBERS, **sent})
    files = [(folder / f"{name}.safetensors", strength) for name, strength in chosen]
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), painted(server, *files))


def test_of_an_edit_it_is_text(server, folder):
    given = Image.new("RGB", (64, 64), "red")
    sent = {**NUMBERS, "strength": "0.7", "loras": json.dumps([{"id": "style", "strength": 0.5}])}
    answer = server.client().images.edit(image=file(given), prompt="a red circle", extra_body=sent)
    exact = painted(server, (folder / "style.safetensors", 0.5), image=given, strength=0.7)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), exact)


def test_in_company_of_others_and_none(server, folder):
    """All at once, and with fewer places for LoRAs than are asked for."""
    sent = [
        {},
        {"lora": "style"},
        {"lora": "style:0.5"},
        {"lora": "person 2"},
        {"lora": ["style", "person 2"]},
    ]
    sent += [{"lora": f"style:{0.1 * k:.1f}"} for k in range(2, 7)]
    found = {}

    def ask(number):
        asked = {**NUMBERS, "steps": 8, **sent[number]}
        answer = server.client(max_retries=0).images.generate(**ASKED, extra_body=asked)
        found[number] = pixels(answer.data[0].b64_json)

    crew = [threading.Thread(target=ask, args=(number,)) for number in range(len(sent))]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    for number, asked in enumerate(sent):
        several = asked.get("lora", [])
        chosen = [each.partition(":") for each in ([several] if isinstance(several, str) else several)]
        files = [(folder / f"{name}.safetensors", float(at or 1)) for name, _, at in chosen]
        (image,) = server.pipelines["dev"].generate(
            "a red circle", lora=files, size=(64, 64), seed=5, steps=8
        )
        np.testing.assert_array_equal(found[number], np.asarray(image))


def test_they_are_listed_as_models_of_a_parent(server):
    found = {each.id: each.model_dump() for each in server.client().models.list().data}
    assert set(found) == {"dev", "dev:style", "dev:person 2", "gpt-image-2"}
    assert (found["dev"]["parent"], found["dev:style"]["parent"]) == (None, "dev")
    assert sorted(found["dev"]["adapters"]) == ["person 2", "style"]
    assert server.client().models.retrieve("dev:style").model_dump()["root"] == "dev"


def test_no_path_goes_out(server, folder, tmp_path):
    answer = server.client().images.generate(**ASKED, extra_body={**NUMBERS, "lora": "style:0.5"})
    data = base64.b64decode(answer.data[0].b64_json)
    assert str(folder).encode() not in data
    assert str(folder) not in answer.model_copy(update={"data": []}).model_dump_json()
    Image.open(io.BytesIO(data)).verify()
    (tmp_path / "picture.png").write_bytes(data)
    (one,) = recorded(tmp_path / "picture.png").parameters["lora"]
    assert (one["path"], one["strength"], len(one["sha256"])) == ("style.safetensors", 0.5, 64)
    assert str(folder) not in json.dumps(server.get("/v1/models").json())


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"lora": "other"}, 404, "adapter_not_found"),
        ({"model": "dev:other"}, 404, "model_not_found"),
        ({"lora": "../style"}, 400, "invalid_value"),
        ({"lora": "/etc/passwd"}, 400, "invalid_value"),
        ({"lora": {"path": "style"}}, 400, "invalid_value"),
        ({"lora": {"name": "style", "local_path": "/a"}}, 400, "invalid_value"),
        ({"lora_path": "style"}, 400, "unsupported_parameter"),
        ({"lora": "style:much"}, 400, "invalid_value"),
        ({"lora": {"id": "style", "strength": True}}, 400, "invalid_value"),
        ({"lora": {"strength": 1}}, 400, "invalid_value"),
        ({"lora": {"id": "style", "name": "style"}}, 400, "invalid_value"),
        ({"lora": {"id": "style", "colour": 1}}, 400, "invalid_value"),
        ({"lora": 3}, 400, "invalid_value"),
        ({"lora": "[1"}, 400, "invalid_value"),
        ({"lora": ["style", "style:0.5"]}, 400, "invalid_value"),
        ({"lora": "style", "loras": ["person 2"]}, 400, None),
        ({"lora": ["style"] * 9}, 400, "invalid_value"),
        ({"lora": "style:1e39"}, 400, "invalid_value"),
    ],
)
def test_what_is_refused(server, folder, sent, status, code):
    with pytest.raises(openai.APIStatusError) as fault:
        server.client().images.generate(**ASKED, extra_body={**NUMBERS, **sent})
    assert (fault.value.status_code, fault.value.code) == (status, code)
    assert fault.value.response.headers["x-should-retry"] == "false"
    assert str(folder) not in fault.value.response.text
    assert "\n" not in fault.value.body["message"]


def test_a_file_that_has_changed_is_not_painted_with(lora_bundle, folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    with running({"dev": lora_bundle}, lora_dir=own) as server:
        ask = lambda **sent: server.client().images.generate(**ASKED, extra_body={**NUMBERS, **sent})  # noqa: E731
        ask(lora="style")
        shutil.copy(own / "person 2.safetensors", tmp_path / "other")
        (tmp_path / "other").replace(own / "style.safetensors")
        with pytest.raises(openai.BadRequestError, match="style has changed since the server started"):
            ask(lora="style")
        (own / "person 2.safetensors").unlink()
        with pytest.raises(openai.BadRequestError, match="person 2 has changed"):
            ask(lora="person 2")
        assert ask().data


def test_places_for_loras_are_bounded(lora_bundle, folder):
    """Each strength is a set of its own, which takes memory: no more are under way than there are places."""
    with running({"dev": lora_bundle}, lora_dir=folder, limits=Limits(adapted=2)) as server:
        (model,), seen = server.engine.models, []
        slots = model.pipeline.loras._slots
        graph = model.pipeline._graphs["denoiser"]
        lent = slots._slot
        slots._slot = lambda given: seen.append(sum(bool(each.users) for each in slots._slots)) or lent(given)
        assert graph

        def ask(k):
            server.client().images.generate(**ASKED, extra_body={**NUMBERS, "lora": f"style:{k / 8}"})

        crew = [threading.Thread(target=ask, args=(k,)) for k in range(1, 7)]
        for each in crew:
            each.start()
        for each in crew:
            each.join()
        wait(lambda: server.engine.seconds_ahead() == 0)
        assert len(seen) >= 6
        assert max(seen) <= 2


def hostile(path, kind, source):
    good = loras.FORMS["kohya"](source, loras.update(source, 11, 0.12))
    if kind == "truncated":
        loras.save(path, good)
        path.write_bytes(path.read_bytes()[:-1000])
    if kind == "garbage":
        path.write_bytes(b"\x80\x04pickle" * 100)
    if kind == "foreign":
        save_file({"lora_unet_no_such_block.lora_down.weight": torch.ones(4, 8)}, path)
    if kind == "infinite":
        state, metadata = good
        name = next(each for each in state if each.endswith("lora_up.weight"))
        loras.save(path, ({**state, name: torch.full_like(state[name], float("inf"))}, metadata))
    if kind == "bad:name":
        loras.save(path.with_name("bad:name.safetensors"), good)


@pytest.mark.parametrize("kind", ["truncated", "garbage", "foreign", "infinite", "bad:name"])
def test_hostile_files_are_refused_at_start_by_name(lora_bundle, checkpoint, tmp_path, kind):
    hostile(tmp_path / f"{kind.replace(':', '')}.safetensors", kind, checkpoint("dev-like"))
    found = CliRunner().invoke(
        main, [str(lora_bundle), "--lora-dir", str(tmp_path), "--backend", "onnxruntime", "--device", "cpu"]
    )
    assert found.exit_code == 1
    line = found.output.splitlines()[-1]
    assert line.startswith("Error: ")
    assert f"{kind}.safetensors" in line


def test_a_bundle_without_branches_is_told_what_to_build(tiny, folder, tmp_path):
    words = ["--backend", "onnxruntime", "--device", "cpu"]
    found = CliRunner().invoke(main, [str(tiny), "--lora-dir", str(folder), *words])
    assert found.exit_code == 1
    assert "flux-export build --lora-rank" in found.output.splitlines()[-1]
    found = CliRunner().invoke(main, [str(tiny), "--lora-dir", str(tmp_path / "none"), *words])
    assert found.exit_code == 1
    assert "cannot read --lora-dir" in found.output.splitlines()[-1]


def test_beside_a_bundle_without_branches(lora_bundle, tiny, folder):
    with running({"dev": lora_bundle, "tiny": tiny}, lora_dir=folder) as server:
        with pytest.raises(openai.NotFoundError, match="it takes none"):
            server.client().images.generate(prompt="a", model="tiny", extra_body={"lora": "style"})
        assert server.client().images.generate(**ASKED, model="dev:style", extra_body=NUMBERS).data


def test_what_is_no_lora_file_is_named(lora_bundle, folder):
    from flux_trt.runtime.bundle.bundle import Bundle

    found, rest = adapters.opened(folder, {"dev": Bundle.open(lora_bundle, check=False)})
    assert rest == ["README.md"]
    assert {each.id for each in found["dev"]} == {"style", "person 2"}
    assert issubclass(CheckpointError, FluxTrtError) and issubclass(RequestError, FluxTrtError)
    with pytest.raises(ApiError):
        found["dev"].choose((("nobody", 1.0),), "dev")
