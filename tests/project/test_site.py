"""The site: it builds without a warning, asks no other host for anything, its generated parts are whole."""

import html
import os
import re
import subprocess
import sys

import click
import pytest
from pages import COMMANDS, ROOT, group

QUIET = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def page(site, name):
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_other_hosts(site):
    fetched = re.compile(r'<(?:script|img|iframe|source)[^>]+src="(https?:)?//|<link[^>]+href="(https?:)?//')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [each for each in pages if fetched.search(each.read_text(encoding="utf-8"))] == []


def test_every_command_and_option_is_there(site):
    text = html.unescape(page(site, "commands"))
    for name in COMMANDS:
        main = group(name)
        verbs = main.commands if isinstance(main, click.Group) else {"": main}
        for verb, command in verbs.items():
            assert f"{name} {verb}".strip() in text
            for each in command.params:
                if isinstance(each, click.Option) and not each.hidden:
                    assert each.opts[0] in text, (name, verb, each.opts)


def test_every_metric_is_there(site):
    from flux_trt.serving.metrics import Metrics

    text = page(site, "metrics")
    names = re.findall(r"^# TYPE (\w+) ", Metrics().page().decode(), re.M)
    assert len(names) > 8
    assert [
        name for name in names if not name.endswith("_created") and f"<code>{name}</code>" not in text
    ] == []


def test_functions_have_their_parameters_errors_and_source(site):
    text = page(site, "api")
    for name in ("pipeline.Pipeline.generate", "pipeline.Pipeline.load", "errors.FluxTrtError"):
        assert f'id="flux_trt.runtime.{name}"' in text
    assert 'id="flux_trt.exporter.build.build"' in text
    assert text.count("Source code in") > 30
    assert text.count("Raises:") > 10
    assert ".links" not in text


def test_the_plots_are_drawn_and_links_to_the_code_lead_to_it(site):
    text = page(site, "numbers")
    assert text.count("<svg") > 3
    copies = re.findall(r'href="\.\./(source/[^"]+)"', text)
    assert len(copies) > 20
    assert [each for each in copies if not (site / each).is_file()] == []
