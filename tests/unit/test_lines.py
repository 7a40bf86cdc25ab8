"""Prompts in files of every system, for every command that reads such a file."""

import codecs

import pytest
from click.testing import CliRunner

from flux_trt.bench.cli import _prompts
from flux_trt.exporter.quantise.ranges import _lines
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import BuildError, RequestError
from flux_trt.runtime.lines import lines

PROMPTS = ["a red circle", " a blue\tsquare ", "ein grünes Kreuz", "two\u2028lines\x85in one\x0b", "图"]
TEXT = "\n\n".join(PROMPTS) + "\n \n"
FORMS = {
    "plain": TEXT.encode(),
    "Windows": TEXT.replace("\n", "\r\n").encode(),
    "Notepad": codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode(),
    "PowerShell": codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
    "big-endian": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "no last end": TEXT.strip().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_prompts_are_the_same_from_every_system(form, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(FORMS[form])
    assert [each.strip() for each in lines(FORMS[form])] == [each.strip() for each in PROMPTS]
    assert _lines(path) == _prompts(path) == lines(FORMS[form])


def test_what_stands_around_a_prompt_stays():
    assert lines(b"  a cat \r\n") == ["  a cat "]
    assert lines(b"a\rb\n\r\n") == ["a\rb"]


@pytest.mark.parametrize("form", FORMS)
def test_standard_input_is_read_alike(form, tiny, tmp_path):
    asked = ["generate", str(tiny), "-", "--steps", "1", "--size", "32x32", "--out", str(tmp_path / "o.png")]
    found = CliRunner().invoke(main, asked, input=FORMS[form])
    assert found.exit_code == 0, found.output
    assert len(list(tmp_path.iterdir())) == len(PROMPTS)


def test_another_encoding_is_one_line(tiny, tmp_path):
    latin, why = "a\nein grünes Kreuz".encode("latin-1"), "line 2 is not UTF-8; save it as UTF-8"
    path = tmp_path / "prompts.txt"
    path.write_bytes(latin)
    with pytest.raises(BuildError, match=why):
        _lines(path)
    with pytest.raises(RequestError, match=why):
        _prompts(path)
    found = CliRunner().invoke(main, ["generate", str(tiny), "-"], input=latin)
    assert (found.exit_code, found.output) == (1, f"Error: standard input: {why}\n")
