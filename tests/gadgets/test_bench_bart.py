"""The peer's files and commands; what runs the program itself is skipped where it is not installed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gadgets.bench import bart
from gadgets.bench.problems import compressed, predicted_error
from recon_core.errors import DataError, MissingPartError
from recon_core.operators.nufft import Nufft
from recon_core.problem import KSpaceProblem
from recon_core.trajectories import golden_angle_radial

program = pytest.mark.skipif(shutil.which("bart") is None, reason="the program bart is not installed")
SHAPE = (24, 30)


def truth(frames: int) -> torch.Tensor:
    ny, nx = SHAPE
    y, x = torch.meshgrid(torch.arange(ny) / ny - 0.5, torch.arange(nx) / nx - 0.5, indexing="ij")
    body = torch.exp(-(((y + 0.08) / 0.2) ** 2) - ((x - 0.05) / 0.16) ** 2)
    spot = torch.exp(-(((y - 0.2) / 0.06) ** 2) - ((x + 0.2) / 0.06) ** 2)
    return torch.stack([body + (0.4 + 0.05 * t) * spot for t in range(frames)]) * torch.exp(0.4j * x)


def maps(coils: int) -> torch.Tensor:
    ny, nx = SHAPE
    y, x = torch.meshgrid(torch.arange(ny) / ny - 0.5, torch.arange(nx) / nx - 0.5, indexing="ij")
    angle = [2 * math.pi * c / coils for c in range(coils)]
    raw = torch.stack([torch.exp(-((y - 0.6 * math.sin(a)) ** 2 + (x - 0.6 * math.cos(a)) ** 2) / 0.6 + 1j * a) for a in angle])
    return (raw / raw.abs().square().sum(0).sqrt()).to(torch.complex64)


def problem(frames: int = 3, per_frame: int = 40, coils: int = 3) -> KSpaceProblem:
    """Densely sampled, so that a weak λ must give the truth."""
    trajectory = torch.from_numpy(golden_angle_radial(frames * per_frame, 60, matrix=SHAPE, field_of_view=SHAPE))
    series, sensitivities = truth(frames), maps(coils)
    parts = [torch.arange(t * per_frame, (t + 1) * per_frame) for t in range(frames)]
    samples = torch.cat(
        [
            Nufft(trajectory[part].flatten(0, 1), SHAPE)
            .forward((sensitivities * series[t]).to(torch.complex64))
            .reshape(coils, per_frame, 60)
            for t, part in enumerate(parts)
        ],
        dim=1,
    )
    samples = samples + 0.002 * torch.randn(samples.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    times = torch.arange(frames * per_frame, dtype=torch.float64)
    return KSpaceProblem(samples, trajectory, tuple(parts), times, torch.stack([times[p].mean() for p in parts]), SHAPE)


def aligned_error(images: torch.Tensor, reference: torch.Tensor) -> float:
    """After one phase a pixel, but no scale: the program's images predict our samples."""
    phase = torch.exp(-1j * (images * reference.conj()).sum(0).angle())
    return float((images * phase - reference).norm() / reference.norm())


def test_files_go_round(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.complex64) * (1 + 2j)
    bart.write_cfl(tmp_path / "a", array)
    found = bart.read_cfl(tmp_path / "a")
    assert found.shape == (2, 3, 4, 5, *[1] * 12)
    assert np.array_equal(found.reshape(2, 3, 4, 5), array)
    # The format: first dimension fastest.
    raw = np.fromfile(tmp_path / "a.cfl", dtype=np.complex64)
    assert raw[1] == array[1, 0, 0, 0]
    (tmp_path / "a.cfl").write_bytes(b"\0" * 16)
    with pytest.raises(DataError, match="incomplete"):
        bart.read_cfl(tmp_path / "a")


def test_scale_is_that_which_predicts_the_samples() -> None:
    given, series = problem(), truth(3).to(torch.complex64)
    found = bart.scaled(given, maps(3), 7.5 * series)
    torch.testing.assert_close(found, series, rtol=1e-2, atol=1e-3)


def test_absent_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPartError, match="apt-get install bart"):
        bart.version()


@program
def test_failures_carry_the_programs_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nonexistent"):
        bart.Bart(tmp_path).run("fft", "7", "nonexistent", "out")


@program
def test_dense_data_give_the_truth_with_the_programs_own_maps(tmp_path: Path) -> None:
    """Axes, centre, sign, scale and order of the frames all agree, on a matrix that is not square."""
    given = problem()
    found = bart.Grasp(given, tmp_path).reconstruct(1e-4, 60)
    assert found.images.shape == (3, *SHAPE)
    assert found.maps.shape == (3, *SHAPE)
    assert found.seconds > 0
    assert found.peak > 2**20
    body = truth(3).abs().amax(0) > 0.2
    assert aligned_error(found.images * body, truth(3) * body) < 0.06
    held = torch.zeros(given.n_readouts, dtype=torch.bool)
    held[::10] = True
    predicted = predicted_error(found.images, given, held, found.maps)
    assert predicted < 0.05 * predicted_error(0 * found.images, given, held, found.maps)


@program
def test_one_coil_and_a_frame_that_is_short(tmp_path: Path) -> None:
    """Left-out readouts and samples weigh nothing, whatever stands in them."""
    given = problem(coils=1)
    keep = torch.ones(given.n_readouts, dtype=torch.bool)
    keep[5:12] = False
    short = bart.Grasp(given.keep_readouts(keep), tmp_path).reconstruct(0.01, 30).images
    assert not bart.Grasp(given.keep_readouts(keep), tmp_path).complete
    used = keep[:, None].expand(-1, given.samples.shape[2]).contiguous()
    spoiled = given.replace(mask=used, samples=torch.where(used, given.samples, 1e3 + torch.zeros_like(given.samples)))
    masked = bart.Grasp(spoiled, tmp_path).reconstruct(0.01, 30).images
    assert float((short - masked).norm() / short.norm()) < 1e-2
    whole = bart.Grasp(given, tmp_path)
    assert whole.complete
    assert float((whole.reconstruct(0.01, 30).images - short).norm() / short.norm()) < 0.1


@program
def test_stronger_regularisation_leaves_less_change(tmp_path: Path) -> None:
    program_run = bart.Grasp(compressed(problem(), 2), tmp_path)
    changes = []
    for strength in (1e-4, 1.0):
        images = program_run.reconstruct(strength, 40).images
        changes.append(float((images - images.mean(0)).norm() / images.norm()))
    assert changes[1] < 0.5 * changes[0]
