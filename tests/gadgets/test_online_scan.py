"""A scan with images while it runs: both series, every readout accounted for, no thread left, nothing of the scan before."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from gadgets import stages
from gadgets.binning.by_count import by_count
from gadgets.header import parse
from gadgets.images import META_FIELDS, PROVISIONAL_META_FIELDS
from gadgets.noise import NoiseReadouts
from gadgets.online.engine import SliceEngine
from gadgets.online.provisional import FrameCutter, LiveClock, OnlineScan, numbering
from gadgets.readouts import admit
from gadgets.settings import chain_settings
from recon_core.errors import DataError, SettingError

SMALL = {
    "rank": 2,
    "calibration": 0.06,
    "start": 0.1,
    "settle": 0.2,
    "window": 0.4,
    "every": 16,
    "start_steps": 3,
    "steps": 1,
    "basis_width": 16,
}

MAGNITUDE_ONLY = {
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "InversionTime"),
    *("GADGETRON_WindowCenter", "GADGETRON_WindowWidth", "GADGETRON_ScaleRatio", "GADGETRON_TI"),
}


def properties(**changes: str) -> dict[str, str]:
    plain = {"solver": "gridding", "readouts_per_frame": "4", "image_type": "complex", "device": "cpu", "coils": "3", "time_tick_ms": "3"}
    online = {f"online.{name}": str(value) for name, value in SMALL.items()}
    return {**plain, "mode": "both", "late_frames": "wait", **online, **changes}


def series_of(images) -> dict[int, np.ndarray]:
    found: dict[int, list[np.ndarray]] = {}
    for image in images:
        assert np.isfinite(image.data).all()
        found.setdefault(image.image_series_index, []).append(image.data[0, 0])
    return {index: np.stack(pixels) for index, pixels in found.items()}


@pytest.fixture(scope="module")
def scan(scans):
    """160 spokes of 32² pixels, 0.48 s."""
    blobs = (scans.Blob((40.0, 60.0, 0.0), 22.0, 1.0), scans.Blob((-50.0, 10.0, 0.0), 30.0, 0.7))
    return scans.radial_scan(n=160, blobs=blobs, noise=0.01)


@pytest.fixture(autouse=True)
def _no_thread_left():
    before = set(threading.enumerate())
    yield
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


def run(scan, report=None, **changes: str):
    return stages.run(chain_settings(properties(**changes)), *scan, report)


def online_scan(scan, lines=None, **changes: str) -> tuple[OnlineScan, list]:
    xml, acquisitions = scan
    header, settings = parse(xml), chain_settings(properties(**changes))
    told = [] if lines is None else lines
    made = OnlineScan(header, settings, NoiseReadouts(), numbering(settings.mode), told.append, keep=True)
    return made, [admit(a, n, header) for n, a in enumerate(acquisitions)]


def test_provisional_images_come_first_and_final_ones_are_those_of_a_retrospective_run(scan):
    both = series_of(run(scan))
    alone = series_of(run(scan, mode="retrospective"))
    assert set(both) == {1, 2}
    assert set(alone) == {1}
    np.testing.assert_array_equal(both[2], alone[1])
    # 0.06 s of calibration are 21 readouts: five frames and a part before the first image.
    assert len(both[1]) == 40 - 5


def test_only_provisional_images(scan):
    assert set(series_of(run(scan, mode="online"))) == {1}


def test_provisional_images_show_the_object(scan):
    both = series_of(run(scan))
    y, x = np.meshgrid((np.arange(32) - 16) * 10.0, (np.arange(32) - 16) * 10.0, indexing="ij")
    wanted = sum(a * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * w**2)) for cx, cy, w, a in ((40, 60, 22, 1.0), (-50, 10, 30, 0.7)))
    for image in np.abs(both[1]):
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.9
    # Tracked against a model of a still object, the last ones are nearly free of noise and streaks.
    assert np.corrcoef(np.abs(both[1][-1]).ravel(), wanted.ravel())[0, 1] > 0.97
    # Gridding is linear: its frames' mean is the image of all readouts.
    scale = np.linalg.norm(both[1][-1]) / np.linalg.norm(both[2].mean(axis=0))
    assert scale == pytest.approx(1, rel=0.1)


def test_a_stored_scan_repeats_and_nothing_reaches_the_next(scans, scan):
    other = scans.radial_scan(n=120, seed=3, noise=0.05, blobs=(scans.Blob((0.0, -60.0, 0.0), 15.0, 2.0),))
    alone = [image.to_bytes() for image in run(scan, mode="online")]
    list(run(other))
    again = [image.to_bytes() for image in run(scan, mode="online")]
    assert len(again) == len(alone)
    pixels = [np.frombuffer(image[-8 * 32 * 32 :], np.complex64) for image in (*alone, *again)]
    np.testing.assert_array_equal(pixels[: len(alone)], pixels[len(alone) :])


def test_the_model_settles_once_it_has_seen_enough(scan):
    """However short its window: then it has its full rank, and its first frames are given up."""
    changes = {"online.window": "0.15", "online.settle": "0.2", "online.start_rank": "1"}
    online, readouts = online_scan(scan, **changes)
    ranks = [int(image.meta["SeriesDescriptionAdditional"].split("rank ")[1][0]) for image in online.images(readouts) if tracked(image)]
    assert ranks[0] == 1
    assert ranks[-1] == 2
    (engine,) = online._engines.values()
    assert engine._settled
    assert not engine._first


def test_the_residual_is_added_where_there_is_a_model(scan):
    """Gridded images before it are the same without; of a still object there is little to add."""
    with_it, without = (list(run(scan, mode="online", **{"online.residual": share})) for share in ("0.8", "0"))
    assert len(with_it) == len(without)
    changes = [float(np.linalg.norm(a.data - b.data) / np.linalg.norm(b.data)) for a, b in zip(with_it, without, strict=True)]
    of_model = [tracked(image) for image in with_it]
    assert any(of_model)
    assert all((change > 0) == by_model for change, by_model in zip(changes, of_model, strict=True))
    assert changes[-1] < 0.05


def tracked(image) -> bool:
    return int(image.meta["ModelVersion"]) > 0


def test_meta_tells_what_a_provisional_image_is(scan):
    images = [image for image in run(scan) if image.image_series_index == 1]
    first, last = images[0], images[-1]
    assert set(last.meta) == {*META_FIELDS, *PROVISIONAL_META_FIELDS} - MAGNITUDE_ONLY
    assert "no noise readouts" in first.meta["ImageComments"]
    assert "3 coils" in last.meta["ImageComments"]
    assert first.meta["Provisional"] == "1"
    assert "gridding" in first.meta["SeriesDescriptionAdditional"]
    assert first.meta["ModelVersion"] == "0"
    assert "ModelAge_s" not in first.meta
    assert [int(image.meta["LastReadout"]) for image in images] == [4 * n + 3 for n in range(5, 40)]
    assert [image.repetition for image in images] == list(range(5, 40))
    assert int(last.meta["ModelVersion"]) >= 2
    assert 0 <= float(last.meta["ModelAge_s"]) < 0.4
    assert 0 < float(last.meta["HeldOutError"]) < 100
    assert float(last.meta["FrameLag_s"]) > 0
    assert float(last.meta["FrameTime_s"]) == pytest.approx(0.003 * (4 * 39 + 1.5))


def test_magnitudes_share_one_scale(scan):
    images = [image for image in run(scan, image_type="magnitude") if image.image_series_index == 1]
    assert {image.data.dtype for image in images} == {np.dtype(np.uint16)}
    assert len({image.meta["RescaleSlope"] for image in images}) == 1


def test_every_readout_is_accounted_for(scan, heard):
    lines, report = heard
    list(run(scan, report, readouts_per_frame="3"))
    assert any("160 readouts received: 141 in 47 provisional images" in line and "1 in no whole frame" in line for line in lines)
    assert any(line.startswith("lag from the last readout") and "99th" in line for line in lines)


def test_slices_have_models_of_their_own(scans):
    parts = [scans.radial_scan(n=100, slice=s, seed=s, blobs=(scans.Blob((60.0 * s, 0.0, 0.0), 25.0, 1.0),))[1] for s in (0, 1)]
    stream = [part[row] for row in range(100) for part in parts]
    for number, acquisition in enumerate(stream):
        acquisition.acquisition_time_stamp = number
    images = [i for i in stages.run(chain_settings(properties()), scans.Protocol().xml(), stream) if i.image_series_index == 1]
    for number in (0, 1):
        mine = [np.abs(image.data[0, 0]) for image in images if image.slice == number]
        assert len(mine) > 15
        assert np.unravel_index(mine[-1].argmax(), (32, 32))[1] == pytest.approx(16 + 6 * number, abs=2)


class TestAModelThatFails:
    """Its data are not worth a provisional image, and still a final one."""

    FAULT = DataError("images", "NaN or Inf", "Repair them.")

    @pytest.fixture
    def failed(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def fails(self, failed):
        def fail(*_: object) -> None:
            failed.set()
            raise self.FAULT

        return fail

    @pytest.mark.parametrize(("part", "late"), [("solve", "wait"), ("solve", "join"), ("improve", "wait"), ("improve", "join")])
    def test_the_final_series_is_whole(self, scan, heard, monkeypatch, failed, fails, part, late):
        wanted = series_of(run(scan, mode="retrospective"))[1]
        monkeypatch.setattr(SliceEngine, part, fails)
        lines, report = heard
        xml, acquisitions = scan

        def arriving():
            yield from acquisitions[:-8]
            # The refinement comes when it can: the scan may not be over before.
            assert failed.wait(30)
            yield from acquisitions[-8:]

        made = series_of(run((xml, arriving()), report, late_frames=late))
        np.testing.assert_array_equal(made[2], wanted)
        assert [line for line in lines if "no provisional images from here on" in line and "NaN or Inf" in line]

    def test_without_a_final_series_the_scan_fails(self, scan, monkeypatch, fails):
        monkeypatch.setattr(SliceEngine, "solve", fails)
        with pytest.raises(DataError, match="images: NaN or Inf"):
            list(run(scan, mode="online"))


class TestTooSlow:
    """The solver sleeps: ten times the time that the frames take to come."""

    @pytest.mark.parametrize("late", ["join", "skip"])
    def test_memory_is_bounded_and_every_readout_is_found_again(self, scan, late):
        lines: list[str] = []
        online, readouts = online_scan(scan, lines, late_frames=late, frame_deadline_ms="60")
        online._throttle = lambda: time.sleep(0.1)
        longest = []

        def paced():
            for number, readout in enumerate(readouts):
                if number % 4 == 0:
                    time.sleep(0.01)
                longest.append(len(online._frames))
                yield readout

        images = list(online.images(paced()))
        status = online.status
        assert status.readouts == 160 == status.shown + status.given_up + status.start + status.loose
        assert status.frames == 40 == status.sent + status.skipped + status.early + status.joined - joined_images(images)
        assert status.skipped > 0
        assert max(longest) <= 40
        assert online._images.qsize() == 0
        assert online.readouts == readouts
        assert any(f"{status.given_up} in {status.skipped} frames skipped" in line for line in lines)
        assert len(images) == status.sent
        if late == "join":
            assert status.joined > 0

    def test_the_final_series_is_right_all_the_same(self, scan, monkeypatch):
        solve = OnlineScan._batch

        def slow(self, engine, frames):
            time.sleep(0.1)
            solve(self, engine, frames)

        monkeypatch.setattr(OnlineScan, "_batch", slow)
        both = series_of(run(scan, late_frames="join", frame_deadline_ms="20"))
        np.testing.assert_array_equal(both[2], series_of(run(scan, mode="retrospective"))[1])
        assert len(both.get(1, [])) < 35


def joined_images(images) -> int:
    return sum(int(image.meta["FramesJoined"]) > 1 for image in images)


class TestEnds:
    def test_left_in_the_middle(self, scan):
        """The caller stops asking, as at a disconnect; the source ends once it is closed."""
        for late in ("wait", "join"):
            online, readouts = online_scan(scan, late_frames=late)
            over = threading.Event()

            def blocking(readouts=readouts, over=over):
                yield from readouts[:120]
                assert over.wait(20)

            images = online.images(blocking())
            next(images)
            threading.Timer(0.05, over.set).start()
            images.close()

    def test_a_fault_of_the_source_comes_behind_the_images(self, scan):
        xml, acquisitions = scan

        def cut():
            yield from acquisitions[:100]
            time.sleep(0.5)
            raise ConnectionResetError("peer vanished")

        images = run((xml, cut()), late_frames="join", frame_deadline_ms="60000")
        got = []
        with pytest.raises(ConnectionResetError, match="peer vanished"):
            got.extend(images)

    def test_a_bad_readout_is_named(self, scan):
        xml, acquisitions = scan
        broken = scan_with_nan(acquisitions, 90)
        with pytest.raises(DataError, match="readout 90"):
            list(run((xml, broken)))

    def test_another_length_is_named(self, scans, scan):
        xml, acquisitions = scan
        longer = scans.radial_scan(scans.Protocol(matrix=(40, 40, 1), encoded_matrix=(40, 40, 1)), n=1)[1]
        with pytest.raises(DataError, match=r"readout 60\.number_of_samples"):
            list(run((xml, [*acquisitions[:60], *longer, *acquisitions[60:]])))

    def test_no_readout_at_all(self, scan):
        with pytest.raises(DataError, match="no imaging readout"):
            list(run((scan[0], [])))

    def test_a_scan_too_short_for_a_model_gets_one_image(self, scan, heard):
        lines, report = heard
        both = series_of(run((scan[0], scan[1][:8]), report))
        assert len(both[1]) == 1
        assert len(both[2]) == 2
        assert any("8 readouts received: 4 in 1 provisional images" in line and "4 in 1 frames before" in line for line in lines)

    def test_volumes_are_refused(self, scans):
        protocol = scans.Protocol(
            matrix=(16, 16, 8), encoded_matrix=(16, 16, 8), fov=(320.0, 320.0, 80.0), encoded_fov=(320.0, 320.0, 80.0)
        )
        random = np.random.default_rng(0)
        acquisitions = [
            scans.acquisition(random.standard_normal((3, 32)), random.uniform(-0.5, 0.5, (32, 3)), acquisition_time_stamp=n)
            for n in range(60)
        ]
        with pytest.raises(SettingError, match="mode=retrospective"):
            list(run((protocol.xml(), acquisitions)))


def scan_with_nan(acquisitions, number):
    import copy

    broken = list(acquisitions)
    broken[number] = copy.deepcopy(acquisitions[number])
    broken[number].data[0, 3] = np.nan
    return broken


@pytest.mark.parametrize(("per_frame", "stride"), [(4, 4), (5, 2), (3, 5), (1, 1)])
def test_frames_are_cut_as_of_a_whole_scan(scan, per_frame, stride):
    xml, acquisitions = scan
    header = parse(xml)
    cutter = FrameCutter(per_frame, stride)
    cut, between = [], 0
    for number, acquisition in enumerate(acquisitions[:31]):
        frame, gap = cutter.push(admit(acquisition, number, header), 0.003 * number, 0.0)
        between += gap
        cut += [frame] if frame else []
    wanted = by_count(31, per_frame, stride).frames
    assert [[r.number for r in frame.readouts] for frame in cut[:-1]] == [list(f) for f in wanted[:-1]]
    # What is left over joins the last frame of a whole scan: nobody knows before its end.
    assert [r.number for r in cut[-1].readouts] == list(wanted[-1][:per_frame])
    assert sum(frame.fresh for frame in cut) + cutter.left + between == 31


def test_the_clock_follows_stamps_and_never_runs_back():
    clock = LiveClock(0.0025, 0.003)
    assert [clock.time(s) for s in (100, 101, 101, 104)] == pytest.approx([0, 0.0025, 0.0025, 0.01])
    after = [clock.time(s) for s in (90, 91, 91)]
    assert after == pytest.approx([0.013, 0.016, 0.019])


def test_stamps_that_stand_still_are_spaced_by_the_repetition_time():
    clock = LiveClock(0.0025, 0.003)
    times = [clock.time(7) for _ in range(200)]
    assert times[:60] == [0.0] * 60
    assert np.diff(times[64:]) == pytest.approx(0.003)
