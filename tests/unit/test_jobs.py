import errno
import fcntl
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_trt.runtime import jobs
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.jobs import BadLine, Job
from flux_trt.runtime.results import Results


def written(folder, *lines):
    path = folder / "jobs.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def one(folder, **fields):
    (found,) = jobs.read(written(folder, json.dumps(fields)))
    return found


def test_a_job_has_the_options_of_the_command(tmp_path):
    job = one(
        tmp_path,
        prompt="caf\u00e9",
        size="96x64",
        steps=4,
        guidance=1,
        image="in/a.png",
        mask=str(tmp_path / "elsewhere" / "m.png"),
        reference=["r.png", "s.png"],
        output="b.png",
    )
    fields = job.fields
    assert (job.line, fields.prompt, fields.size, fields.steps, fields.guidance) == (
        1,
        "caf\u00e9",
        (96, 64),
        4,
        1.0,
    )
    assert (fields.image, fields.output) == (tmp_path / "in" / "a.png", tmp_path / "b.png")
    assert fields.mask == tmp_path / "elsewhere" / "m.png"
    assert fields.reference == (tmp_path / "r.png", tmp_path / "s.png")
    assert (fields.seed, fields.control, fields.canny, fields.source) == (None,) * 4
    assert one(tmp_path, size=[96, 64]).fields.size == (96, 64)
    assert one(tmp_path, outpaint="0, 0,256,0").fields.outpaint == (0, 0, 256, 0)
    assert one(tmp_path, outpaint=[1, 2, 3, 4]).fields.outpaint == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"promt": "a"}', "line 1: unknown field 'promt'; the fields are prompt, output, size"),
        ('{"prompt": ', "line 1: no JSON object .*; give one on each line"),
        ("[1, 2]", "line 1: .*object; give one JSON object on each line"),
        ('{"size": "64"}', "line 1: size: '64' is not WIDTHxHEIGHT, such as 1024x768; correct it"),
        ('{"outpaint": "1,2,3"}', "line 1: outpaint: '1,2,3' is not LEFT,TOP,RIGHT,BOTTOM"),
        ('{"size": [64]}', "line 1: size.*; correct it"),
        ('{"steps": "4"}', "line 1: steps: .*integer; correct it"),
        ('{"steps": true}', "line 1: steps: "),
        ('{"guidance": NaN}', "line 1: "),
        ('{"reference": "a.png"}', "line 1: reference: "),
        (b'{"prompt": "\xff"}', "line 1: "),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_the_rest_goes_on(tmp_path, line, why):
    bad, good = jobs.read(written(tmp_path, line, '{"prompt": "a"}'))
    assert isinstance(bad, BadLine) and isinstance(good, Job)
    with pytest.raises(RequestError, match=why):
        raise RequestError(bad.error)
    assert "\n" not in bad.error
    assert (bad.line, good.line) == (1, 2)


def test_blank_lines_count_but_are_no_jobs(tmp_path):
    found = list(
        jobs.read(written(tmp_path, b"\xef\xbb\xbf" + b'{"prompt": "a"}', "", "  \r", '{"prompt": "b"}'))
    )
    assert [(job.line, job.fields.prompt) for job in found] == [(1, "a"), (4, "b")]


def test_the_key_is_the_lines_and_tells_twins_apart(tmp_path):
    a, b = '{"prompt": "a"}', '{"prompt": "b"}'
    first = [job.key for job in jobs.read(written(tmp_path, a, b, a, a))]
    assert len(set(first)) == 4
    assert first[2:] == [f"{first[0]}-2", f"{first[0]}-3"]
    moved = [job.key for job in jobs.read(written(tmp_path, b, "", a))]
    assert moved == [first[1], first[0]]


def test_files_that_cannot_be_read_or_written_are_one_line(tmp_path):
    with pytest.raises(RequestError, match=r"cannot read the jobs .*none\.jsonl: No such file"):
        list(jobs.read(tmp_path / "none.jsonl"))
    with pytest.raises(RequestError, match="cannot read the jobs .*: Is a directory"):
        list(jobs.read(tmp_path))
    with pytest.raises(RequestError, match="cannot write the results .*: No such file"):
        Results(tmp_path / "none" / "results.jsonl")


@pytest.fixture
def three(tmp_path):
    lines = [json.dumps({"prompt": text}) for text in "abc"]
    return list(jobs.read(written(tmp_path, *lines)))


def test_a_next_run_knows_what_was_painted_and_where(tmp_path, three):
    path, (a, b, c) = tmp_path / "results.jsonl", three
    with Results(path) as results:
        assert results.place(a) is None
        results.succeeded(a, tmp_path / "a.png", {"seed": 1})
        results.succeeded(b, tmp_path / "b.png", {})
        results.failed(c, "no memory; use less")
        assert results.place(a) == tmp_path / "a.png"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0] == {"line": 1, "job": a.key, "ok": True, "path": "a.png", "parameters": {"seed": 1}}
    assert records[2] == {"line": 3, "job": c.key, "ok": False, "error": "no memory; use less"}
    with Results(path) as results:
        assert [results.place(job) for job in three] == [tmp_path / "a.png", tmp_path / "b.png", None]
        results.failed(a, "painted again, and this time it failed")
        assert results.place(a) is None
        assert [results.owner(tmp_path / name) for name in ("a.png", "b.png", "c.png")] == [
            a.key,
            b.key,
            None,
        ]


def test_pictures_elsewhere_keep_their_whole_path(tmp_path, three):
    (tmp_path / "runs").mkdir()
    (tmp_path / "a.png").touch()
    with Results(tmp_path / "runs" / "results.jsonl") as results:
        results.succeeded(three[0], tmp_path / "a.png", {})
        assert results.place(three[0]) == tmp_path / "a.png"


def test_a_result_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, three, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.failed(three[0], "first")
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RequestError, match="cannot write the results .*: No space left"):
                results.failed(three[1], "second")
        assert path.read_bytes() == before
        results.failed(three[2], "third")
    assert [json.loads(line)["line"] for line in path.read_text().splitlines()] == [1, 3]


def test_each_result_is_on_disk_before_the_next(tmp_path, three, monkeypatch):
    synced, path = [], tmp_path / "results.jsonl"
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with Results(path) as results:
        for job in three:
            results.failed(job, "x")
            assert synced[-1] == path.stat().st_size
    assert len(synced) == len(set(synced)) == 3


@settings(deadline=None, max_examples=50)  # it waits for the disk
@given(st.integers(0, 10_000), st.binary(max_size=40))
def test_a_file_cut_anywhere_is_repaired_and_goes_on(tmp_path_factory, cut, dirt):
    """Killed while writing: whole lines count, the torn one is taken away, and the next result fits."""
    folder = tmp_path_factory.getbasetemp()
    whole = list(jobs.read(written(folder, *(json.dumps({"prompt": text}) for text in "abcd"))))
    (folder / "x.png").touch()
    path = folder / "results.jsonl"
    path.unlink(missing_ok=True)
    with Results(path) as results:
        for job in whole[:3]:
            results.succeeded(job, folder / "x.png", {"prompt": "caf\u00e9"})
    content = path.read_bytes()
    torn = content[: cut % (len(content) + 1)] + dirt.replace(b"\n", b"")
    path.write_bytes(torn)
    complete = torn.count(b"\n")
    with Results(path) as results:
        assert [results.place(job) is not None for job in whole[:3]] == [k < complete for k in range(3)]
        results.succeeded(whole[3], folder / "x.png", {})
    lines = path.read_bytes().splitlines()
    assert len(lines) == complete + 1
    assert json.loads(lines[-1])["job"] == whole[3].key


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_foreign_lines_among_the_results_say_nothing(tmp_path_factory, foreign):
    folder = tmp_path_factory.getbasetemp()
    (job,) = jobs.read(written(folder, '{"prompt": "a"}'))
    (folder / "results.jsonl").write_bytes(foreign + b"\n")
    with Results(folder / "results.jsonl") as results:
        assert results.place(job) is None


def test_only_one_run_has_the_results_at_a_time(tmp_path):
    busy = pytest.raises(RequestError, match="another run is at work on .*; wait for it to end")
    with Results(tmp_path / "results.jsonl"), busy:
        Results(tmp_path / "results.jsonl")
    Results(tmp_path / "results.jsonl").close()


def test_a_disk_without_locks_is_warned_of_and_used(tmp_path, three, monkeypatch, caplog):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with Results(tmp_path / "results.jsonl") as results:
        results.failed(three[0], "x")
    assert "cannot be locked on this disk; start no other run" in caplog.text


def test_a_place_follows_the_job_and_not_its_line(tmp_path):
    a, b = json.dumps({"prompt": "a"}), json.dumps({"prompt": "b", "output": "b.webp"})
    first = [job.place for job in jobs.read(written(tmp_path, a, b, a))]
    later = [job.place for job in jobs.read(written(tmp_path, '{"prompt": "new"}', "", a, b, a))]
    assert later[1:] == first and len(set(later)) == 4
    assert first[1] == tmp_path / "b.webp"
    assert first[0].name.startswith("jobs-") and first[2].name == f"{first[0].stem}-2.png"


def test_two_jobs_with_one_output_are_refused(tmp_path):
    lines = [
        json.dumps({"prompt": text, "output": place}) for text, place in (("a", "x.png"), ("b", "./x.png"))
    ]
    with pytest.raises(
        RequestError, match=r"lines 1 and 3 both write .*x\.png; give each an output of its own"
    ):
        jobs.expect_apart(jobs.read(written(tmp_path, lines[0], "", lines[1])))
