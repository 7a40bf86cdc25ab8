"""Warnings of the commands: one line each, that says what it is."""

import logging
import warnings

from flux_trt.runtime import warned


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


def test_a_library_that_quiets_the_root_does_not_quiet_us(capsys):
    """OpenVINO's `convert_model` leaves the root logger at ERROR."""
    root, log = logging.getLogger(), logging.getLogger("flux_trt.runtime.somewhere")
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warned.lines():
            log.warning("said")
    finally:
        root.setLevel(before)
    assert capsys.readouterr().err == "warning: said\n"
    assert logging.getLogger("flux_trt").level == logging.NOTSET


def test_long_ones_are_cut_and_counted():
    assert warned.line("x" * warned.MOST) == f"warning: {'x' * warned.MOST}"
    assert warned.line("x" * 1000) == f"warning: {'x' * 300}... (700 more characters)"
