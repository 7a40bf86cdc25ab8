"""The pages: their links lead somewhere, their commands exist, their code runs."""

import re
import shlex
import subprocess
import sys
from typing import get_args

import click
import pytest
from pages import COMMANDS, PAGES, ROOT, anchors, group, links, named, shown
from pydantic import BaseModel

from flux_trt.runtime.bundle import manifest

FRONT = 150  # lines: what somebody new reads


def command_lines():
    for page in PAGES:
        for line in shown(page.read_text(encoding="utf-8")):
            last = re.sub(r"^([A-Z_]+=\S* )+", "", line.rpartition(" | ")[2])
            words = shlex.split(last, comments=True)
            if words and words[0] in COMMANDS:
                yield pytest.param(words, id=f"{named(page)}: {' '.join(words)[:60]}")


def leads(page, target):
    """Whether a relative link, with or without an anchor, ends inside of the project."""
    name, _, anchor = target.partition("#")
    place = (page.parent / name).resolve() if name else page
    if not place.exists() or not place.is_relative_to(ROOT):
        return False
    return not anchor or anchor in set(anchors(place.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    broken = [
        target for target in links(text) if not re.match(r"[a-z]+:", target) and not leads(page, target)
    ]
    assert not broken


@pytest.mark.parametrize("words", list(command_lines()))
def test_command_lines_parse(words):
    main = group(words[0])
    try:
        if words[1].startswith("-") or not isinstance(main, click.Group):
            main.make_context(words[0], words[1:])
        else:
            main.commands[words[1]].make_context(words[1], words[2:])
    except click.exceptions.Exit as shown_and_done:
        assert shown_and_done.exit_code == 0


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_the_text_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for span in re.findall(r"`((?:flux-bench|flux-export|flux-run|flux-serve)[^`]*)`", text):
        name, *words = span.split()
        verbs = getattr(group(name), "commands", {})
        verb = next((word for word in words if word in verbs), None)
        command = verbs[verb] if verb else group(name)
        known = {option for each in command.params for option in each.opts} | {"--help", "-h"}
        assert not words or verb or words[0].startswith("-"), span
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, span


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_make_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    used = {word for span in re.findall(r"`make ([a-z -]+)", text) for word in span.split()}
    used |= {
        word for line in shown(text) if line.startswith("make ") for word in line.split("#")[0].split()[1:]
    }
    assert used <= targets


def test_files_in_the_code_map_exist():
    """Names in backquotes that look like our files are ours."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    spans = re.findall(r"`((?:exporter|runtime|plugins|benchmarks|tests|docs|examples)/[\w./-]*)`", text)
    assert [span for span in spans if not (ROOT / span).exists()] == []


def records(model):
    """A pydantic model's fields and those of the models inside of it."""
    for name, field in model.model_fields.items():
        yield name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from records(inner)


def test_every_field_of_the_manifest_is_described():
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    fields = set(records(manifest.Manifest))
    assert {"schema_version", "shift", "sha256", "dims"} <= fields
    assert [name for name in sorted(fields) if not re.search(rf"`([\w*]+\.)*{name}[`.]", text)] == []


def test_every_option_and_parameter_of_the_server_is_described():
    from flux_trt.serving.fields import ALIASES, IDLE, REFUSED, Fields

    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    options = {each.opts[0] for each in group("flux-serve").params if each.opts[0].startswith("--")}
    names = options - {"--version", "--verbose"} | {
        *Fields.model_fields,
        *ALIASES,
        *IDLE,
        *REFUSED,
        "image",
        "mask",
    }
    assert [name for name in sorted(names) if not re.search(rf"`{name}[` ]", text)] == []


def test_every_stage_is_described(bundle):
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    for name, stage in manifest.read(bundle("flux-nano")).stages.items():
        for tensor in (*stage.inputs, *stage.outputs):
            varying = [dim for dim in tensor.dims if isinstance(dim, str)]
            assert f"`{name}`" in text
            assert re.search(rf"`{tensor.name}`[^|]*\| \[{', '.join(varying)}[,\]]", text), (name, tensor)


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < FRONT


def test_every_page_is_found_from_the_front():
    """From the README, or from the site's first page, which the README leads to; and in the site's menu."""
    front = {target.partition("#")[0] for target in links((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert "docs/index.md" in front
    home = {
        target.partition("#")[0] for target in links((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    }
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages <= home | {"index.md"}
    menu = set(
        re.findall(r"^ +- (?:[^:]+: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    )
    assert pages == menu


def test_the_model_card_is_what_the_scores_say():
    command = [sys.executable, "-m", "nano.card", "--check"]
    found = subprocess.run(
        command, cwd=ROOT / "examples" / "flux-nano", capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
