"""A multi-contrast protocol is complete and consistent, or refused before any fit starts; maps leave with exact scaling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import chain, client, stages
from gadgets.cli import main
from gadgets.commands.replay import configuration
from gadgets.evaluation import pixel_values
from gadgets.header import parse
from gadgets.map_simulation import evaluate_maps, header, read_map_truth, store, stored_maps
from gadgets.protocol import one_contrast
from gadgets.quantitative import map_scale, physical, stored
from gadgets.readouts import admit
from gadgets.scanfile import Scan, read_images, read_scan
from gadgets.server import Server
from recon_core.errors import DataError, ReconError
from recon_core.phantoms.relaxometry import RelaxometryScan, RelaxometrySettings, simulate
from recon_core.signal_models import ParameterMap

SIZE = {"matrix": (4, 20, 16), "field_of_view": (40.0, 220.0, 200.0), "coils": 3, "acceleration": 1.0, "snr": 60.0}
PLAIN = {"solver": "parameter_fit", "device": "cpu"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RelaxometryScan, Path]]:
    folder = tmp_path_factory.mktemp("protocols")
    made = {}
    for name, more in {"set1": {"echoes": 4}, "set2": {"recoveries": 6, "acceleration": 2.0}}.items():
        scan = simulate(RelaxometrySettings(protocol=name, **{**SIZE, **more}))
        store(folder / f"{name}.h5", scan)
        made[name] = scan, folder / f"{name}.h5"
    return made


def run(scan: Scan, items=None, text: str | None = None, **overrides: str) -> list[ismrmrd.Image]:
    settings = chain.load("mpqmri.xml").settings({**PLAIN, **overrides})
    return list(stages.run(settings, scan.header if text is None else text, scan.items() if items is None else items))


def test_masks_keep_their_promises(scans):
    scan, _ = scans["set2"]
    places = 80
    counts = np.bincount(scan.contrast, minlength=96)
    assert counts.min() >= 1
    assert len(scan.contrast) == round(96 * places / 2)
    assert counts.max() - counts.min() <= 2
    flat = scan.place[:, 0] * 20 + scan.place[:, 1]
    visits = np.bincount(flat, minlength=places)
    assert visits.min() >= 1
    assert visits[2 * 20 + 10] > 1.5 * np.median(visits)
    assert len(np.unique(scan.contrast * places + flat)) == len(flat)
    # Every place is visited at contrasts spread over the protocol, not in one run of them.
    spread = [np.ptp(scan.contrast[flat == p]) for p in range(places)]
    assert np.median(spread) > 70


@pytest.mark.parametrize("name", ["set1", "set2"])
def test_over_the_socket_and_back_to_physical_values(name, scans, tmp_path):
    simulated, path = scans[name]
    with Server("127.0.0.1", 0) as server:
        images: list[ismrmrd.Image] = []
        config, tick = configuration("mpqmri.xml", None, {**PLAIN, "weighted_images": "ends"})
        result = client.replay(read_scan(path), config, server.host, server.port, on_image=images.append, tick_ms=tick)
    assert result.error == ""
    weighted = [i for i in images if i.meta["DataRole"] == "Image"]
    protocol = simulated.protocol
    outer, recoveries, echoes = protocol.shape
    assert len(weighted) == outer * min(2, recoveries) * echoes
    assert {(i.set, i.repetition, i.contrast) for i in weighted} == {
        (p, r, e) for p in range(outer) for r in {0, recoveries - 1} for e in range(echoes)
    }
    assert weighted[-1].meta["EchoTime"] == f"{1e3 * protocol.echo_times[-1]:g}"
    assert weighted[-1].meta["FlipAngle"] == ("40" if name == "set1" else "10")
    assert ("InversionTime" in weighted[-1].meta) == (name == "set2")
    if name == "set2":
        assert weighted[-1].meta["InversionTime"] == f"{30 * (recoveries - 1):g}"
        assert weighted[-1].meta["T2PreparationTime"] == "90"
    maps = [i for i in images if i.meta["DataRole"] == "Quantitative"]
    assert all(i.meta["GADGETRON_DataRole"] == "Quantitative" for i in maps)
    found = {(str(i.meta["ParameterName"]), i.data.dtype): i for i in maps}
    assert len(found) == len(maps) == 2 * len({n for n, _ in found})
    units = {"T1": "ms", "T2": "ms", "T2star": "ms", "B": "1", "off_resonance": "Hz", "PD": "1", "phase": "rad"}
    for (map_name, kind), image in found.items():
        assert image.meta["ParameterUnit"] == units[map_name]
        assert image.data.shape == (1, *simulated.settings.matrix)
        if kind == np.float32:
            other = found[map_name, np.dtype("uint16")]
            step = float(other.meta["RescaleSlope"])
            values, back = image.data[0].astype(np.float64), other.data[0] * step + float(other.meta["RescaleIntercept"])
            assert np.abs(back - values).max() <= 0.5 * step * (1 + 1e-6) + 1e-6 * np.abs(values).max()
            assert values.any()
    assert float(found["phase", np.dtype("uint16")].meta["RescaleIntercept"]) == pytest.approx(-math.pi)
    window = found["T1", np.dtype("uint16")].meta
    assert 500 < float(window["WindowCenter"]) < 4000
    assert int(window["GADGETRON_WindowCenter"]) == pytest.approx(float(window["WindowCenter"]) / float(window["RescaleSlope"]), abs=1)


def test_commands_from_simulation_to_score(tmp_path, capsys):
    scan, out = str(tmp_path / "scan.h5"), str(tmp_path / "out.h5")
    size = ["--matrix", "20", "24", "4", "--coils", "4", "--echoes", "4", "--acceleration", "1", "--snr", "100"]
    assert main(["simulate", "mpqmri", scan, *size]) == 0
    assert "5 flip angles" in capsys.readouterr().out
    assert main(["recon", scan, "-c", "mpqmri.xml", "-o", out, "-s", "solver=parameter_fit", "-s", "weighted_images=none"]) == 0
    capsys.readouterr()
    assert main(["evaluate", out, scan]) == 0
    assert "T2star" in capsys.readouterr().out
    scores = evaluate_maps(out, scan)
    # Edges are shared between tissues at 11 mm: what a fully sampled scan can reach.
    assert scores["T1"] < 0.25
    assert scores["T2star"] < 0.25
    assert scores["off_resonance_rms_hz"] < 3
    series = read_images(out)
    assert all(i.meta["DataRole"] == "Quantitative" for images in series.values() for i in images)
    assert set(stored_maps(out)) == {"T1", "T2star", "off_resonance", "PD", "phase"}
    with pytest.raises(DataError, match="no group 'map_truth'"):
        read_map_truth(out)


def test_truth_is_where_the_object_is(scans):
    """A fully sampled fit agrees with the truth as it lies, and not mirrored or shifted."""
    scan, path = scans["set1"]
    images = run(read_scan(path), weighted_images="none", map_type="float32")
    pd = next(pixel_values(i) for i in images if i.meta["ParameterName"] == "PD")
    truth = scan.truth["PD"]
    wrong = [truth[:, ::-1], truth[:, :, ::-1], truth[::-1]] + [np.roll(truth, s, a) for s in (-1, 1) for a in (1, 2)]
    right, *others = (np.corrcoef(pd.ravel(), t.ravel())[0, 1] for t in (truth, *wrong))
    assert right > 0.9
    assert right > max(others)


Change = tuple[str, str]


@pytest.mark.parametrize(
    ("name", "field", "changes", "words"),
    [
        ("set1", "idx.contrast", [("<TE>2.15</TE>", "")], "4 values from 0 to 3 received, the header lists 3"),
        ("set1", "idx.contrast", [("<TE>2.15</TE>", "<TE>1</TE><TE>2.15</TE>")], "missing: 4"),
        ("set1", "idx.set", [("<flipAngle_deg>40</flipAngle_deg>", "")], "header lists 4"),
        ("set1", "protocol: flip angles", [("<flipAngle_deg>40</flipAngle_deg>", "<flipAngle_deg>5</flipAngle_deg>")], "different"),
        ("set1", "protocol: echo times", [("<TE>2.15</TE>", "<TE>200</TE>")], "rising"),
        ("set1", "protocol: TR", [("<TR>46</TR>", "")], "not given"),
        ("set2", "segment", [("<TI>150</TI>", "")], "the header lists 5 TI"),
        ("set2", "userParameterDouble T2prep_ms_n", [("T2prep_ms_1<", "T2prep_ms_7<")], "numbered 0, 2, 3, 7"),
        ("set2", "idx.set", [("<name>T2prep_ms_3</name>", "<name>other</name>")], "header lists 3"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(name, field, changes: list[Change], words, scans):
    simulated, path = scans[name]
    text = header(simulated)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(ReconError) as error:
        run(read_scan(path), text=text)
    assert error.value.field == field
    assert words in str(error.value)


def without(scan: Scan, dropped) -> Iterator[ismrmrd.Acquisition]:
    return (a for a in scan.items() if a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) or not dropped(a.idx))


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        (lambda i: i.contrast == 2, "missing: 2"),
        (lambda i: (i.set, i.contrast) == (3, 1), "1 of 20 contrasts have no readout (set 3 repetition 0 contrast 1)"),
        (lambda i: i.set == 4, "missing: 4"),
    ],
)
def test_a_missing_contrast_is_named(dropped, words, scans):
    scan = read_scan(scans["set1"][1])
    with pytest.raises(DataError, match="Send the whole protocol") as error:
        run(scan, items=without(scan, dropped))
    assert words in str(error.value)


def test_mixed_matrices_and_nans_are_refused(scans):
    scan = read_scan(scans["set1"][1])
    first, last = scan.header.index("<encoding>"), scan.header.index("</encoding>") + len("</encoding>")
    other = scan.header[first:last].replace("<y>20</y>", "<y>24</y>")
    text = scan.header[:last] + other + scan.header[last:]

    def moved() -> Iterator[ismrmrd.Acquisition]:
        for acquisition in scan.items():
            if acquisition.idx.contrast == 1:
                acquisition.encoding_space_ref = 1
            yield acquisition

    with pytest.raises(DataError, match="different matrices") as error:
        run(scan, items=moved(), text=text)
    assert error.value.field == "encodedSpace.matrixSize"

    def spoilt() -> Iterator[ismrmrd.Acquisition]:
        for number, acquisition in enumerate(scan.items()):
            if number == 100:
                acquisition.data[1, 3] = np.nan
            yield acquisition

    with pytest.raises(DataError, match="NaN or Inf in channel 1"):
        run(scan, items=spoilt())


def test_solver_and_scan_must_fit(scans):
    scan = read_scan(scans["set1"][1])
    settings = chain.load("mpqmri.xml").settings({"solver": "gridding", "device": "cpu", "readouts_per_frame": "80"})
    # A solver of dynamic scans sees every contrast as a scan of its own.
    assert len({i.contrast for i in stages.run(settings, scan.header, scan.items())}) == 4


def echo_train(scans, repeated: bool, echoes: int = 2) -> Iterator[ismrmrd.Acquisition]:
    """The first flip angle's readouts, as a scan of some echoes; ``repeated``: all of them twice, as a dynamic scan would send them."""
    for _ in range(2 if repeated else 1):
        for acquisition in read_scan(scans["set1"][1]).items():
            noise = acquisition.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
            if not noise and acquisition.idx.set == 0 and acquisition.idx.contrast < echoes:
                yield acquisition


def test_echoes_of_a_static_scan_are_no_course_in_time(scans):
    """A dynamic scan of several echoes is one, echo by echo; so is a scan of one echo."""
    _, path = scans["set1"]
    found = dataclasses.replace(parse(read_scan(path).header), flip_angles=())

    def handed_on(items: Iterator[ismrmrd.Acquisition], solver: str = "inmr") -> int:
        return len(list(one_contrast((admit(a, n, found) for n, a in enumerate(items)), found, solver)))

    with pytest.raises(DataError, match=r"inmr models a course in time.*it has 2 echoes, of which no line comes twice") as error:
        handed_on(echo_train(scans, repeated=False))
    assert error.value.field == "solver"
    assert "cg_sense" in error.value.cure
    assert handed_on(echo_train(scans, repeated=True)) == 2 * 2 * 80
    assert handed_on(echo_train(scans, repeated=False, echoes=1)) == 80


@pytest.mark.parametrize(
    ("name", "unit", "values", "signed"),
    [
        ("T1", "s", [[0.0, 0.3], [1.2, 4.0]], False),
        ("off_resonance", "Hz", [[0.0, -31.5], [12.25, 3.0]], True),
        ("phase", "rad", [[0.0, -3.1], [3.1, 0.5]], True),
        ("PD", "", [[0.0, 0.0], [0.0, 0.0]], False),
        ("B", "", [[0.0, -0.9], [-0.95, -0.8]], True),
    ],
)
def test_scaling_to_whole_numbers(name, unit, values, signed):
    found = ParameterMap(name, unit, torch.tensor(values), signed)
    pixels, _ = physical(found)
    scale = map_scale(pixels, found)
    back = stored(pixels, scale) * scale.slope + scale.intercept
    assert np.abs(back - pixels).max() <= 0.5 * scale.slope * (1 + 1e-9) + 1e-6 * np.abs(pixels).max()
    assert scale.width > 0
    assert scale.slope > 0
