"""Problems on a Dask scheduler: the images of a local run, in its order, whatever happens to the workers."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch

from gadgets import chain, executor, stages
from gadgets.executor import SchedulerAwayError
from gadgets.scanfile import read_scan
from gadgets.settings import ChainSettings, chain_settings
from gadgets.simulation import store
from recon_core.errors import DataError, MissingPartError, ReconError, SettingError
from recon_core.phantoms.dce import simulate
from recon_core.phantoms.settings import DceSettings
from recon_core.problem import ImageSeries
from recon_core.reconstruct import Reconstruction, reconstruct
from recon_core.threads import at_most_threads

distributed = pytest.importorskip("distributed")

LOCAL = ChainSettings(solver="cg_sense", readouts_per_frame=8, image_type="complex", device="cpu", coils=3, solver_settings={"steps": 4})
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets of Dask's own, closed by its event loop after the test
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def on(address: str, **changes: object) -> ChainSettings:
    return dataclasses.replace(LOCAL, executor=address, **changes)


def slices(scans, n: int, readouts: int = 16):
    """A scan of ``n`` slices of different noise."""
    return scans.Protocol().xml(), [a for s in range(n) for a in scans.radial_scan(n=readouts, slice=s, seed=s)[1]]


def same(images, wanted) -> None:
    """Bit for bit, in the same order."""
    assert [i.slice for i in images] == [i.slice for i in wanted]
    for image, other in zip(images, wanted, strict=True):
        assert np.isfinite(other.data).all()
        assert np.array_equal(image.data, other.data)


def with_one_thread(settings: ChainSettings, header: str, readouts: list) -> list:
    """Images as a worker process makes them, which Dask gives one thread."""
    with at_most_threads(1):
        return list(stages.run(settings, header, readouts))


@pytest.fixture(scope="module")
def threads() -> Iterator[str]:
    """Address of a scheduler with two workers of one thread each, all in this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def processes() -> Iterator[distributed.LocalCluster]:
    """Two worker processes of one thread each; Dask's nanny starts a new one for one that dies."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", host="127.0.0.1", silence_logs="ERROR"
    ) as cluster:
        yield cluster


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def dce_scan(path: Path, partitions: int, frames: int, matrix: tuple[int, int]) -> tuple[str, list]:
    """A stack of stars through the abdomen with a contrast agent."""
    store(path, simulate(DceSettings(matrix=matrix, partitions=partitions, coils=4, frames=frames, duration=1.5 * frames)))
    scan = read_scan(path)
    return scan.header, list(scan.items())


# Methods of the in-process workers, by name, so that they travel.
GATE, STUCK = threading.Event(), threading.Event()


def slow_first(problem, settings, solver_settings, progress):
    """The scan's first problem is ready last."""
    if bool((problem.readout_times == 0).any()):
        assert GATE.wait(60)
    images = problem.samples.abs().mean().to(torch.complex64).expand(problem.n_frames, *problem.shape).clone()
    progress("halfway")
    return Reconstruction(ImageSeries(images, problem.frame_times), {})


def stuck_once(problem, settings, solver_settings, progress):
    """The first call hangs; the same problem elsewhere does not."""
    if not STUCK.is_set():
        STUCK.set()
        assert GATE.wait(60)
    return reconstruct(problem, settings, solver_settings, progress)


def always_stuck(problem, settings, solver_settings, progress):
    assert GATE.wait(60)
    return reconstruct(problem, settings, solver_settings, progress)


def failing(problem, settings, solver_settings, progress):
    raise DataError("fit", "cost inf at step 3", "Lower the learning rate.")


def crashing(problem, settings, solver_settings, progress):
    raise RuntimeError("no such luck")


@pytest.fixture(autouse=True)
def _gates() -> Iterator[None]:
    GATE.clear()
    STUCK.clear()
    yield
    GATE.set()


def test_images_are_those_of_a_local_run(scans, heard, threads):
    lines, report = heard
    scan = slices(scans, 3)
    same(list(stages.run(on(threads), *scan, report)), list(stages.run(LOCAL, *scan)))
    for number in range(3):
        assert any(line.startswith(f"slice {number}, contrast 0, set 0: cg_sense: step") for line in lines)
    assert any("3 problems done, 0 running on 2 workers" in line for line in lines)


def test_slices_of_a_stack_are_parts_for_several_workers(scans, heard, threads, tmp_path):
    """The dce chain's volumes, with settings chosen on held-out readouts and one temporal basis of all slices."""
    lines, report = heard
    scan = dce_scan(tmp_path / "dce.h5", 4, 12, (20, 24))
    steps = {"solver.steps": "6", "solver.basis_steps": "4", "solver.basis_width": "12"}
    there = chain.load("dce").settings({"device": "cpu", "image_type": "complex", "executor": threads, **steps})
    images = list(stages.run(there, *scan, report))
    wanted = list(stages.run(dataclasses.replace(there, executor="local"), *scan))
    same(images, wanted)
    assert images[0].data.shape == (1, 4, 20, 24)
    assert images[0].meta["ImageComments"] == wanted[0].meta["ImageComments"]
    assert "one temporal basis" in images[0].meta["ImageComments"]
    assert {f"grasp_pro: slice {number} of 4" for number in range(1, 5)} <= set(lines)
    assert any("(1 problems done, 0 running on 2 workers)" in line for line in lines)


def test_order_is_kept_when_later_problems_are_ready_first(scans, heard, threads):
    lines, report = heard

    def hear(line: str) -> None:
        report(line)
        if "(2 problems done" in line:
            GATE.set()

    images = list(stages.run(on(threads), *slices(scans, 4), hear, slow_first))
    assert [image.slice for image in images] == [0, 0, 1, 1, 2, 2, 3, 3]
    done = [line.split(",")[0] for line in lines if "problems done" in line]
    assert done.index("slice 0") >= 2
    assert len({float(image.data.real.max()) for image in images}) == 4


def test_a_hanging_problem_is_done_again_elsewhere(scans, heard, threads):
    lines, report = heard
    scan = slices(scans, 3)
    same(list(stages.run(on(threads, executor_patience_s=1.5), *scan, report, stuck_once)), list(stages.run(LOCAL, *scan)))
    assert STUCK.is_set()
    assert any("no word for 1.5 s from" in line and "done again elsewhere" in line for line in lines)


def test_a_problem_that_hangs_everywhere_is_an_error(scans, threads):
    with pytest.raises(ReconError, match=r"no word for 1 s from .*, .*Start more workers"):
        list(stages.run(on(threads, executor_patience_s=1.0), *slices(scans, 1), method=always_stuck))


def test_an_error_of_the_fit_arrives_as_it_is(scans, threads):
    with pytest.raises(DataError, match="cost inf at step 3") as caught:
        list(stages.run(on(threads), *slices(scans, 2), method=failing))
    assert (caught.value.field, caught.value.cure) == ("fit", "Lower the learning rate.")


def test_a_crash_names_problem_and_error(scans, threads):
    with pytest.raises(ReconError, match=r"slice [01], contrast 0, set 0: RuntimeError: no such luck"):
        list(stages.run(on(threads), *slices(scans, 2), method=crashing))


def test_a_cancelled_scan_leaves_nothing_on_the_scheduler(scans, threads):
    def cancelled(line: str) -> None:
        if "problems done" in line:
            raise ReconError("connection", "the peer hung up", "Keep it open.")

    with pytest.raises(ReconError, match="hung up"):
        list(stages.run(on(threads), *slices(scans, 4), cancelled))
    with distributed.Client(threads, set_as_default=False) as client:
        deadline = time.monotonic() + 10
        while (left := client.run_on_scheduler(_tasks)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not left


def _tasks(dask_scheduler) -> list[str]:
    return list(dask_scheduler.tasks)


def test_a_gpu_that_no_worker_offers_is_refused(scans, threads):
    with pytest.raises(MissingPartError, match=r"no worker at .* offers the resource GPU.*--resources 'GPU=1'"):
        list(stages.run(on(threads, device="cuda"), *slices(scans, 1)))


def test_an_absent_scheduler_is_told_within_ten_seconds(scans):
    started = time.monotonic()
    with pytest.raises(SchedulerAwayError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:\d+.*executor=local"):
        list(stages.run(on(f"tcp://127.0.0.1:{free_port()}"), *slices(scans, 1)))
    assert time.monotonic() - started < 10


def test_local_in_its_place_is_said_in_log_status_and_images(scans, heard, caplog):
    lines, report = heard
    address = f"tcp://127.0.0.1:{free_port()}"
    scan = slices(scans, 2)
    images = list(stages.run(on(address, executor_fallback=True), *scan, report))
    same(images, list(stages.run(LOCAL, *scan)))
    word = f"Dask scheduler {address} away, reconstructed locally"
    assert word in lines
    assert any(word in record.message and record.levelname == "WARNING" for record in caplog.records)
    assert all(word in image.meta["ImageComments"] and word in image.meta["GADGETRON_ImageComment"] for image in images)


def test_a_scheduler_without_workers_is_told(scans):
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        pytest.raises(SchedulerAwayError, match=r"has no worker.*dask worker"),
    ):
        list(stages.run(on(cluster.scheduler_address), *slices(scans, 1)))


def test_absent_package_names_its_cure(scans, monkeypatch):
    monkeypatch.setattr(executor.util, "find_spec", lambda name: None if name == "distributed" else util.find_spec(name))
    with pytest.raises(MissingPartError, match=r"pip install 'gadgetron-inr\[dask\]'"):
        list(stages.run(on("tcp://127.0.0.1:8786"), *slices(scans, 1)))


@pytest.mark.parametrize("value", ["tcp://host", "host:8786", "http://host:8786", "tcp://ho st:1", "remote", ""])
def test_other_executors_are_refused(value):
    with pytest.raises(SettingError, match="Choose local or a Dask scheduler"):
        chain_settings({"executor": value})


@pytest.mark.parametrize("value", ["local", "tcp://10.0.0.1:8786", "tls://scheduler.site:8786"])
def test_executors(value):
    assert chain_settings({"executor": value}).executor == value


@pytest.mark.parametrize("kind", [ReconError, DataError, SettingError, MissingPartError, SchedulerAwayError])
def test_errors_travel_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("field", "problem", "Cure.")))
    assert type(error) is kind
    assert (error.field, error.problem, error.cure, str(error)) == ("field", "problem", "Cure.", "field: problem. Cure.")


def test_killing_a_worker_process_loses_nothing(scans, heard, processes):
    lines, report = heard
    scan = slices(scans, 8)
    killed: list[int] = []

    def hear(line: str) -> None:
        report(line)
        if "(2 problems done" in line:
            with distributed.Client(processes.scheduler_address, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    images = list(stages.run(on(processes.scheduler_address), *scan, hear))
    assert killed
    same(images, with_one_thread(LOCAL, *scan))
    assert any("(8 problems done" in line for line in lines)


@pytest.mark.slow
def test_a_frozen_worker_process_loses_nothing(scans, heard, processes):
    lines, report = heard
    scan = slices(scans, 8)
    frozen: list[int] = []

    def hear(line: str) -> None:
        report(line)
        if "(2 problems done" in line:
            with distributed.Client(processes.scheduler_address, set_as_default=False) as client:
                frozen.append(next(iter(client.run(os.getpid).values())))
            os.kill(frozen[0], signal.SIGSTOP)

    try:
        images = list(stages.run(on(processes.scheduler_address, executor_patience_s=8.0), *scan, hear))
        same(images, with_one_thread(LOCAL, *scan))
        assert any("done again elsewhere" in line for line in lines)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_workers_take_at_most_two_thirds_of_the_time_of_one(scans, tmp_path):
    """The dce chain on 16 slices: the images of a local run, and the gain of a second core."""
    scan = dce_scan(tmp_path / "dce.h5", 16, 30, (40, 36))
    settings = chain.load("dce").settings({"device": "cpu", "image_type": "complex"})
    wanted = list(stages.run(settings, *scan))
    seconds = {}
    for workers in (1, 2):
        with distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1", silence_logs="ERROR"
        ) as cluster:
            # Imports and first calls of the workers are not what is timed.
            list(stages.run(on(cluster.scheduler_address, solver="grasp_pro", solver_settings={"steps": 2}), *slices(scans, 2 * workers)))
            started = time.monotonic()
            images = list(stages.run(dataclasses.replace(settings, executor=cluster.scheduler_address), *scan))
            seconds[workers] = time.monotonic() - started
        same(images, wanted)
    print(f"one worker {seconds[1]:.1f} s, two workers {seconds[2]:.1f} s, ratio {seconds[2] / seconds[1]:.2f}")
    assert seconds[2] <= 0.65 * seconds[1]
