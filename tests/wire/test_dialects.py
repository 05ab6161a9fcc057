"""Peers of different dialects at one server, at the same time."""

from __future__ import annotations

import json
import threading
import time

import numpy as np


def test_four_dialects_at_once(dial, raw, server, fake, pixel_sums, image_sums):
    """All four are in mid-scan together; each gets the images of its own readouts, by its own parameters, in its own manner."""
    node = '<?xml version="1.0"?>\n<configuration><property name="readouts_per_image" value="1"/></configuration>'
    gadget = '<gadget><dll>gadgetron_inr</dll><classname>speech</classname><property name="readouts_per_image" value="8"/></gadget>'
    worker = f'<configuration><version>2</version><readers/><writers/><stream key="">{gadget}</stream></configuration>'
    console = raw.text(json.dumps({"parameters": {"config": "speech", "readouts_per_image": "2"}}), nul=True)
    openings = {
        "client": (raw.config_name("cardiac.xml") + raw.header(), 4, [5, 4]),
        "console": (raw.config_name("cardiac") + raw.header(nul=True) + console, 2, [5, 4]),
        "node": (raw.script(node) + raw.header(), 1, [4]),
        "worker": (raw.script(worker) + raw.header(), 8, [4]),
    }
    together = threading.Barrier(len(openings) + 1, timeout=30)
    answers = {}

    def play(name: str, seed: int) -> None:
        scan = raw.scan(8, seed=seed)
        with dial() as peer:
            peer.send(openings[name][0], scan[: len(scan) // 2])
            together.wait()
            together.wait()
            peer.send(scan[len(scan) // 2 :])
            answers[name] = (scan, peer.rest())

    threads = [threading.Thread(target=play, args=(name, seed)) for seed, name in enumerate(openings)]
    for thread in threads:
        thread.start()
    together.wait()
    deadline = time.monotonic() + 30
    while server.scans < len(openings) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.scans == len(openings)
    together.wait()
    for thread in threads:
        thread.join(30)
    assert set(answers) == set(openings)
    for name, (scan, messages) in answers.items():
        _, per_image, last = openings[name]
        np.testing.assert_allclose(image_sums(messages), pixel_sums(scan, per_image), rtol=1e-6, err_msg=name)
        assert [number for number, _ in messages] == [1022] * (8 // per_image) + last, name
    assert sorted(settings.chain for settings, _ in fake.ran) == ["cardiac.xml", "node", "speech.xml", "speech.xml"]


def test_an_error_in_one_dialect_leaves_the_other_alone(dial, raw, pixel_sums, image_sums):
    scan = raw.scan(8)
    with dial() as good, dial() as bad:
        good.send(raw.config_name("cardiac.xml"), raw.header(), scan[: len(scan) // 2])
        bad.send(
            raw.config_name("cardiac"), raw.header(), raw.text(json.dumps({"parameters": {"readoutsPerImages": "2"}})), raw.scan(4, seed=1)
        )
        told = bad.rest()
        assert [number for number, _ in told] == [5, 4]
        assert "ERROR: readoutsPerImages: unknown name" in told[0][1]
        good.send(scan[len(scan) // 2 :])
        np.testing.assert_allclose(image_sums(good.rest()), pixel_sums(scan, 4), rtol=1e-6)
