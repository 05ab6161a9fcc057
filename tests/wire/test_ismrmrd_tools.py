"""Scans written by the programs of the ISMRMRD project (Debian's ismrmrd-tools) go through our chains."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from gadgets import client
from gadgets.commands.replay import configuration
from gadgets.scanfile import read_scan
from gadgets.server import Server

GENERATE = shutil.which("ismrmrd_generate_cartesian_shepp_logan")
pytestmark = pytest.mark.skipif(GENERATE is None, reason="ismrmrd_generate_cartesian_shepp_logan is not on PATH (Debian: ismrmrd-tools)")


def generated(folder: Path, *options: str) -> Path:
    path = folder / "scan.h5"
    subprocess.run([str(GENERATE), "-m", "48", "-c", "4", "-o", str(path), *options], check=True, capture_output=True)
    return path


def root_sum_of_squares(path: Path, repetition: int) -> np.ndarray:
    """The plain reconstruction of a fully sampled repetition, from the file alone."""
    with h5py.File(path) as file:
        rows = [row for row in file["dataset/data"] if not int(row["head"]["flags"]) >> (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1) & 1]
    k = np.zeros((4, 48, 96), complex)
    for row in rows:
        if row["head"]["idx"]["repetition"] == repetition:
            k[:, row["head"]["idx"]["kspace_encode_step_1"]] = row["data"].view(np.complex64).reshape(4, 96)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k, axes=(1, 2))), axes=(1, 2))
    return np.sqrt((np.abs(image[:, :, 24:72]) ** 2).sum(axis=0))


@pytest.mark.parametrize(
    ("options", "solver", "words"),
    [
        (["-r", "2", "-C"], "cg_sense", "cg_sense on cpu, fft"),
        (["-r", "2"], "gridding", "no noise readouts"),
        (["-r", "2", "-C", "-k"], "gridding", "gridding on cpu"),
    ],
)
def test_a_fully_sampled_scan(options, solver, words, tmp_path):
    """Noise readouts or none, trajectory stored or not; a header that says <version>, two repetitions as frames."""
    path = generated(tmp_path, *options)
    scan = read_scan(path)
    assert "<version>" in scan.header
    overrides = {"solver": solver, "readouts_per_frame": "48", "coils": "4", "device": "cpu", "image_type": "float"}
    images: list[ismrmrd.Image] = []
    with Server(port=0) as server:
        config, _ = configuration("cardiac.xml", None, overrides)
        result = client.replay(scan, config, "127.0.0.1", server.port, on_image=images.append)
    assert result.error == ""
    assert [image.data.shape for image in images] == [(1, 1, 48, 48)] * 2
    assert words in images[0].meta["ImageComments"]
    for repetition, image in enumerate(images):
        ours, plain = image.data[0, 0].astype(float), root_sum_of_squares(path, repetition)
        assert np.isfinite(ours).all()
        assert np.corrcoef(ours.ravel(), plain.ravel())[0, 1] > 0.98
