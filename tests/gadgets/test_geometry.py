"""A marker at a known patient position is found there from the image's position and direction vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets import stages
from gadgets.settings import ChainSettings

ANGLES = (0.5, -0.35, 1.1)


def oblique() -> np.ndarray:
    """Directions (read, phase, slice) of an oblique slice: a rotation about all three axes."""
    (ca, sa), (cb, sb), (cc, sc) = ((np.cos(a), np.sin(a)) for a in ANGLES)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return (about_x @ about_y @ about_z).T


def setup(scans, matrix, encoded_y=1):
    """Protocol (300 × 240 mm, readout oversampled twice), slice, marker position, blobs."""
    n_x, n_y = matrix
    protocol = scans.Protocol(
        encoded_matrix=(2 * n_x, encoded_y * n_y, 1),
        encoded_fov=(600.0, encoded_y * 240.0, 6.0),
        matrix=(n_x, n_y, 1),
        fov=(300.0, 240.0, 6.0),
        channels=4,
    )
    read, phase, normal = oblique()
    where = scans.Slice(position=(35.0, -48.0, 71.0), read=tuple(read), phase=tuple(phase), normal=tuple(normal))
    marker = np.array(where.position) + 83.0 * read - 46.0 * phase
    body = np.array(where.position) - 20.0 * read + 12.0 * phase
    blobs = (scans.Blob(tuple(body), 38.0, 0.5), scans.Blob(tuple(marker), 4.0, 4.0))
    return protocol, where, marker, blobs


def found(image, fov) -> np.ndarray:
    """LPS point of the brightest spot, to a fraction of a pixel, with the convention of docs/conventions.md."""
    pixels = np.abs(image.data[0, 0]).astype(np.float64)
    n_y, n_x = pixels.shape
    assert tuple(image.getHead().matrix_size) == (n_x, n_y, 1)
    assert tuple(image.field_of_view) == pytest.approx(fov)
    iy, ix = np.unravel_index(pixels.argmax(), pixels.shape)
    patch = pixels[iy - 2 : iy + 3, ix - 2 : ix + 3]
    patch = patch - patch.min()
    y = iy + (patch.sum(axis=1) @ np.arange(-2, 3)) / patch.sum()
    x = ix + (patch.sum(axis=0) @ np.arange(-2, 3)) / patch.sum()
    spacing = np.array(fov[:2]) / (n_x, n_y)
    return (
        np.array(image.position)
        + (x - n_x // 2) * spacing[0] * np.array(image.read_dir)
        + (y - n_y // 2) * spacing[1] * np.array(image.phase_dir)
    )


def check(scans, protocol, acquisitions, marker, matrix=None, solver="gridding"):
    settings = ChainSettings(solver=solver, readouts_per_frame=len(acquisitions), matrix=matrix, device="cpu", coils=4, holdout=0.0)
    (image,) = stages.run(settings, protocol.xml(), acquisitions)
    pixel = min(np.array(protocol.fov[:2]) / np.array(image.getHead().matrix_size[:2]))
    assert np.linalg.norm(found(image, protocol.fov) - marker) < 0.5 * pixel


MATRICES = [(100, 60), (75, 81)]


def edge(matrix):
    return (0.5 * matrix[0] / 300.0, 0.5 * matrix[1] / 240.0)


@pytest.mark.parametrize("matrix", MATRICES)
def test_radial(scans, matrix):
    protocol, where, marker, blobs = setup(scans, matrix)
    k = scans.spokes(160, 2 * matrix[0], edge(matrix))
    check(scans, protocol, scans.non_cartesian(k, protocol, where, blobs), marker)


@pytest.mark.parametrize("matrix", MATRICES)
def test_spiral(scans, matrix):
    protocol, where, marker, blobs = setup(scans, matrix)
    k = scans.spiral(32, 400, edge(matrix), 300.0)
    check(scans, protocol, scans.non_cartesian(k, protocol, where, blobs), marker)


@pytest.mark.parametrize("encoded_y", [1, 2])
@pytest.mark.parametrize("matrix", MATRICES)
def test_cartesian(scans, matrix, encoded_y):
    """Oversampling along y as well gives k between grid points: no longer a plain transform."""
    protocol, where, marker, blobs = setup(scans, matrix, encoded_y)
    protocol = scans.Protocol(**{**vars(protocol), "trajectory": "cartesian"})
    check(scans, protocol, scans.cartesian(protocol, where, blobs), marker)


@pytest.mark.parametrize("kind", ["radial", "cartesian"])
def test_another_matrix_keeps_positions(scans, kind):
    protocol, where, marker, blobs = setup(scans, (100, 60))
    if kind == "radial":
        acquisitions = scans.non_cartesian(scans.spokes(160, 200, edge((100, 60))), protocol, where, blobs)
    else:
        protocol = scans.Protocol(**{**vars(protocol), "trajectory": "cartesian"})
        acquisitions = scans.cartesian(protocol, where, blobs)
    check(scans, protocol, acquisitions, marker, matrix=(80, 75))


def test_iterative_solver(scans):
    protocol, where, marker, blobs = setup(scans, (75, 81))
    k = scans.spokes(120, 150, edge((75, 81)))
    check(scans, protocol, scans.non_cartesian(k, protocol, where, blobs), marker, solver="cg_sense")


def test_stack_of_spokes_in_a_volume(scans):
    """3D, partitions oversampled twice: the marker's plane too."""
    protocol, where, _, _ = setup(scans, (60, 48))
    protocol = scans.Protocol(
        **{
            **vars(protocol),
            "encoded_matrix": (120, 96, 16),
            "encoded_fov": (600.0, 480.0, 160.0),
            "matrix": (60, 48, 8),
            "fov": (300.0, 240.0, 80.0),
        }
    )
    axes = np.array([where.read, where.phase, where.normal])
    marker = np.array(where.position) + np.array([60.0, -40.0, 18.0]) @ axes
    plane = scans.spokes(80, 120, (0.1, 0.1))
    acquisitions = []
    for partition in range(16):
        k_z = np.full((*plane.shape[:2], 1), (partition - 8) / 160.0)
        made = scans.non_cartesian(
            np.concatenate([plane, k_z], axis=-1), protocol, where, (scans.Blob(tuple(marker), 10.0, 1.0),), kspace_encode_step_2=partition
        )
        acquisitions += [scans.acquisition(a.data, a.traj[:, :2], **scans.geometry(where), kspace_encode_step_2=partition) for a in made]
    settings = ChainSettings(solver="gridding", readouts_per_frame=len(acquisitions), device="cpu", coils=4, holdout=0.0)
    (image,) = stages.run(settings, protocol.xml(), acquisitions)
    volume = image.data[0].astype(np.float64)
    assert volume.shape == (8, 48, 60)
    centre = np.array(np.unravel_index(volume.argmax(), volume.shape))[::-1]
    point = np.array(image.position) + ((centre - (30, 24, 4)) * np.array([5.0, 5.0, 10.0])) @ axes
    assert np.abs((point - marker) @ axes.T / np.array([5.0, 5.0, 10.0])).max() <= 0.5
