"""Warnings of the commands: one line each, that says what it is."""

import logging
import warnings

import pytest

from flux_trt.runtime import warned
from flux_trt.serving import told


def test_what_is_logged_and_what_python_warns_of_are_lines(capsys):
    log = logging.getLogger("flux_trt.runtime.somewhere")
    with warned.lines():
        log.warning("two\nlines of %s", "text")
        log.info("nothing")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("by a\nlibrary", UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "warning: two lines of text\nwarning: by a library\n"
    log.warning("afterwards")
    assert "warning: afterwards" not in capsys.readouterr().err


@pytest.fixture
def quiet_root():
    """As OpenVINO's `convert_model` leaves it."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    yield
    root.setLevel(before)


def test_a_library_that_quiets_the_root_does_not_quiet_us(quiet_root, capsys):
    with warned.lines():
        logging.getLogger("flux_trt.runtime.somewhere").warning("said")
    assert capsys.readouterr().err == "warning: said\n"
    assert logging.getLogger("flux_trt").level == logging.NOTSET


def test_nor_does_it_the_server(quiet_root, caplog):
    """What is warned of goes into the answer, and no further."""
    log, lines = logging.getLogger("flux_trt.runtime.somewhere"), []
    with told.listening(), told.heard(lines):
        log.warning("said")
        log.warning("said")
    assert (lines, caplog.messages) == (["said"], [])
    runtime = logging.getLogger("flux_trt.runtime")
    assert (runtime.level, runtime.propagate, runtime.handlers) == (logging.NOTSET, True, [])


def test_long_ones_are_cut_and_counted():
    assert warned.line("x" * warned.MOST) == f"warning: {'x' * warned.MOST}"
    assert warned.line("x" * 1000) == f"warning: {'x' * 300}... (700 more characters)"
