"""Training from the client, on a real server: by its end, or by any other end."""

import json
import os
import signal
import time
from pathlib import Path

from bodies_of_label import MODEL
from serving import SERVED, codes

pytestmark = SERVED
PATH = f"/train/{MODEL}"


def awaited(server, done, seconds=240):
    """Ask for the training's status until `done` of it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status, task = server.json("GET", "/train/")
        if status == 200 and done(task):
            return task
        time.sleep(0.5)
    raise AssertionError(f"{task}\n{server.log.read_text()[-3000:]}")


def started(server, path=PATH):
    """Start a training of hours and wait until it has begun to learn."""
    status, answer = server.json("POST", path, {"max_epochs": 5000})
    assert status == 200
    learns = awaited(
        server,
        lambda t: t["status"] == "ERROR" or "training:" in " ".join(t.get("details", ())),
    )
    assert learns["status"] == "RUNNING", learns
    return answer


def ended(process, seconds=60):
    """Wait until a process, of whoever it is now, has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.2)
    return False


def test_a_training_that_is_stopped_or_cannot_be_leaves_the_model(teaching):
    before = codes(teaching)
    for asked, sentence in (
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"pretrained": 1}, "is 1"),
        ({"device": "abacus"}, "The device 'abacus' is unknown"),
    ):
        status, said = teaching.json("POST", f"{PATH}?run_sync=true", asked)
        assert status == 400
        assert sentence in said["detail"]
    status, said = teaching.json("POST", "/train/nobody?run_sync=true", {})
    assert status == 404
    started(teaching)
    assert teaching.json("POST", PATH, {"max_epochs": 1})[0] == 429  # one at a time
    assert codes(teaching) == before  # it answers meanwhile
    assert teaching.json("DELETE", "/train/")[1]["status"] == "STOPPED"
    assert codes(teaching) == before
    json.loads((teaching.studies / "datastore_v2.json").read_text())


def test_what_ohif_sends_to_train(teaching):
    """It names no model: all are trained, one after the other."""
    answer = started(teaching, "/train/")
    assert list(answer) == [MODEL]
    assert answer[MODEL]["result"]["status"] in ("SUBMITTED", "RUNNING")
    status, task = teaching.json("GET", "/train/?check_if_running=true")
    assert (status, task["status"]) == (200, "RUNNING")
    assert teaching.json("DELETE", "/train/")[1]["status"] == "STOPPED"


def test_a_kill_of_the_worker_or_the_server_leaves_the_model(teaching):
    before = codes(teaching)
    weights = teaching.root / "bundles" / MODEL / "models" / "model.pt"
    kept = weights.read_bytes()
    started(teaching)
    (worker,) = teaching.workers()
    os.kill(worker, signal.SIGKILL)
    assert awaited(teaching, lambda t: t["status"] != "RUNNING")["status"] == "ERROR"
    assert codes(teaching) == before
    started(teaching)
    (worker,) = teaching.workers()
    teaching.process.kill()
    teaching.process.wait(30)
    assert ended(worker)  # it has nobody left to report to
    teaching.start()
    teaching.ready()
    assert codes(teaching) == before
    assert weights.read_bytes() == kept
    json.loads((teaching.studies / "datastore_v2.json").read_text())


def test_a_training_from_the_client_replaces_the_model(teaching):
    assert MODEL in teaching.json("GET", "/info/")[1]["trainers"]
    before = codes(teaching)
    assert teaching.json("POST", f"/train/{MODEL}", {"max_epochs": 1})[0] == 200
    task = awaited(teaching, lambda t: t["status"] not in ("SUBMITTED", "RUNNING"))
    assert task["status"] == "DONE", teaching.log.read_text()[-3000:]
    assert codes(teaching) != before
    assert (teaching.root / "bundles" / MODEL / "previous" / "models" / "model.pt").is_file()
