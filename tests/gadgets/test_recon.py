"""The command that reconstructs a file in this process."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from gadgets import stages
from gadgets.cli import main
from gadgets.scanfile import read_images, read_scan, write_scan
from gadgets.settings import ChainSettings

OPTIONS = ["-c", "cardiac.xml", "-s", "solver=gridding", "-s", "readouts_per_frame=8", "-s", "device=cpu", "-s", "image_type=complex"]


@pytest.fixture
def scan(scans, tmp_path):
    xml, acquisitions = scans.radial_scan(n=24)
    path = tmp_path / "scan.h5"
    write_scan(path, xml, acquisitions)
    return path


def test_images_equal_those_of_the_stages(scan, tmp_path, capsys):
    out = tmp_path / "out.h5"
    assert main(["recon", str(scan), "-o", str(out), "-G", "run", *OPTIONS]) == 0
    stored = read_images(out, "run")[1]
    source = read_scan(scan)
    settings = ChainSettings(solver="gridding", readouts_per_frame=8, device="cpu", image_type="complex")
    direct = list(stages.run(settings, source.header, source.items()))
    assert len(stored) == 3
    for mine, other in zip(stored, direct, strict=True):
        assert np.array_equal(mine.data, other.data)
        assert mine.attribute_string == other.attribute_string
    printed = capsys.readouterr().out
    assert f"3 images (3 in series 1) in {out}, group 'run'" in printed


def test_groups(scans, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, *scans.radial_scan(n=8), group="other")
    out = tmp_path / "out.h5"
    assert main(["recon", str(path), "-g", "/other", "-o", str(out), *OPTIONS]) == 0
    with h5py.File(out) as file:
        (group,) = file
        assert len(file[group]["image_1"]["data"]) == 1
    assert main(["recon", str(path), "-o", str(out), *OPTIONS]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "cardiak.xml"], "cardiac.xml"),
        (["-s", "redouts_per_frame=3"], "readouts_per_frame"),
        (["-s", "coils=0"], "coils: 0 is below 1"),
        (["-s", "coils"], "NAME=VALUE"),
        (["-g", "nothing"], "nothing"),
        (["-G", "/"], "group: '/' is no name"),
        (["-s", "regions=a=1,2"], "regions: 'a=1,2': it cannot be read"),
        (["-s", "mode=online", "-s", "profiles=a=1,2,3,4"], "profiles: of mode=online, which has no final series"),
    ],
)
def test_errors_leave_no_file(scan, tmp_path, capsys, arguments, words):
    out = tmp_path / "out.h5"
    assert main(["recon", str(scan), "-o", str(out), *OPTIONS, *arguments]) == 1
    told = capsys.readouterr().err
    assert "error: " in told
    assert words in told
    assert not out.exists()


def test_a_scan_that_cannot_be_used(scans, tmp_path, capsys):
    xml, acquisitions = scans.radial_scan(n=8)
    acquisitions[5].data[0, 0] = np.nan
    path, out = tmp_path / "scan.h5", tmp_path / "out.h5"
    write_scan(path, xml, acquisitions)
    assert main(["recon", str(path), "-o", str(out), *OPTIONS]) == 1
    assert "readout 5: NaN or Inf in channel 0" in capsys.readouterr().err
    assert not out.exists()


def test_images_before_an_error_are_kept(scans, tmp_path):
    xml, good = scans.radial_scan(n=8, slice=0)
    bad = scans.radial_scan(n=8, slice=1)[1]
    bad[3] = scans.acquisition(bad[3].data[:, :40], bad[3].traj[:40], slice=1)
    path, out = tmp_path / "scan.h5", tmp_path / "out.h5"
    write_scan(path, xml, good + bad)
    assert main(["recon", str(path), "-o", str(out), *OPTIONS]) == 1
    assert len(read_images(out)[1]) == 1


def test_the_scan_is_not_overwritten(scan, capsys):
    assert main(["recon", str(scan), "-o", str(scan), *OPTIONS]) == 1
    assert "is the scan itself" in capsys.readouterr().err
