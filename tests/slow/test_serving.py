"""Many clients at once, for a while: no picture is another one, nothing is lost, and memory stays."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import openai
import pytest
from painting_threads import PROMPTS
from serving_run import pixels, running, wait

CLIENTS, SECONDS = 32, 60
PATIENT = {"x-stainless-read-timeout": "600"}
"""What a client says that goes nevertheless; one that says 0.05 s may be refused at once."""
ASKED = [
    {"size": size, "steps": steps, "guidance": guidance}
    for size in ("32x32", "48x32", "64x64")
    for steps, guidance in ((2, 1.0), (5, 3.5), (9, 2.0))
] + [{"size": "32x32", "steps": 4, "negative": "green", "true_cfg": 2.0}]


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_many_clients(bundle):
    with running({"nano": bundle("flux-nano")}) as server:
        alone = {}
        for number, asked in enumerate(ASKED):
            size = tuple(map(int, asked["size"].split("x")))
            (image,) = server.pipelines["nano"].generate(PROMPTS[0], seed=number, **{**asked, "size": size})
            alone[number] = np.asarray(image)
        wrong, done, gone = [], [0], [0]
        lock, end = threading.Lock(), time.monotonic() + SECONDS

        def client(name):
            draw, api = np.random.default_rng(name), server.client(max_retries=3)
            while time.monotonic() < end:
                number = int(draw.integers(len(ASKED)))
                asked = {**ASKED[number], "seed": number}
                try:
                    if draw.random() < 0.1:  # one that leaves
                        server.client(timeout=0.05).images.generate(
                            prompt=PROMPTS[0], extra_body=asked, extra_headers=PATIENT
                        )
                    answer = api.images.generate(prompt=PROMPTS[0], extra_body=asked)
                    same = np.array_equal(pixels(answer.data[0].b64_json), alone[number])
                    with lock:
                        done[0] += 1
                        wrong.extend([] if same else [number])
                except openai.APITimeoutError:
                    with lock:
                        gone[0] += 1
                except openai.OpenAIError as fault:
                    with lock:
                        wrong.append(repr(fault))

        crew = [threading.Thread(target=client, args=(name,)) for name in range(CLIENTS)]
        for each in crew:
            each.start()
        time.sleep(SECONDS / 3)
        before = resident()
        for each in crew:
            each.join()
        assert wrong == []
        assert done[0] > CLIENTS
        assert gone[0] > 0
        wait(lambda: server.engine.seconds_ahead() == 0)
        assert resident() - before < 200e6
