"""Stacks of stars: spokes in any order of partitions, slices by a transform along kz, breathing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recon_core.calibration.respiration import respiratory_signal
from recon_core.errors import DataError
from recon_core.problem import KSpaceProblem
from recon_core.stack_of_stars import decouple, navigator_profiles, sort_spokes
from recon_core.trajectories import GOLDEN_ANGLE

NZ, NY, NX, ENCODED, COILS, SPOKES, SAMPLES = 4, 10, 12, 6, 2, 5, 20
RATIO = NZ / ENCODED


def volume() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((COILS, NZ, NY, NX), dtype=torch.complex64, generator=generator)


def planar() -> Tensor:
    angle = GOLDEN_ANGLE * torch.arange(SPOKES)
    radius = (torch.arange(SAMPLES) - SAMPLES // 2) / SAMPLES
    return torch.stack([radius * angle.cos()[:, None] * NX, radius * angle.sin()[:, None] * NY], dim=-1)


def exact(image: Tensor, k: Tensor) -> Tensor:
    """Samples ``[coil, point]`` of a volume ``[coil, z, y, x]`` at k ``[point, 3]`` by the sum of docs/conventions.md."""
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in (NZ, NY, NX)]
    position = torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])
    wave = torch.exp(-2j * torch.pi * (k.double() @ position.flip(0)))
    return (image.flatten(1).to(torch.complex128) @ wave.T / math.sqrt(NZ * NY * NX)).to(torch.complex64)


def scan(order: str, measured: range = range(ENCODED)) -> tuple[KSpaceProblem, Tensor]:
    """A volume's readouts with partitions in some order, and every readout's angle."""
    pairs = [(angle, partition) for angle in range(SPOKES) for partition in measured]
    if order == "centre out":
        pairs.sort(key=lambda p: (p[0], abs(p[1] - ENCODED // 2)))
    elif order == "angles inside":
        pairs.sort(key=lambda p: (p[1], p[0]))
    elif order == "shuffled":
        generator = torch.Generator().manual_seed(3)
        pairs = [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]
    in_plane = planar()
    k = torch.stack([torch.cat([in_plane[a], torch.full((SAMPLES, 1), (p - ENCODED // 2) * RATIO)], dim=1) for a, p in pairs]).to(
        torch.float32
    )
    samples = exact(volume(), k.flatten(0, 1)).reshape(COILS, len(pairs), SAMPLES)
    times = torch.arange(len(pairs), dtype=torch.float64) * 0.004
    mask = torch.ones((len(pairs), SAMPLES), dtype=torch.bool)
    mask[:, 0] = False
    problem = KSpaceProblem(samples, k, (torch.arange(len(pairs)),), times, times.mean()[None], (NZ, NY, NX), mask=mask)
    return problem, torch.tensor([a for a, _ in pairs])


@pytest.mark.parametrize("order", ["linear", "centre out", "angles inside", "shuffled"])
def test_slices_are_what_was_measured_of_them_alone(order: str) -> None:
    """Each slice's spokes are the exact two-dimensional samples of that slice, whatever the order of acquisition."""
    problem, angles = scan(order)
    spokes = sort_spokes(problem, angles, RATIO)
    assert spokes.n_spokes == SPOKES
    assert spokes.partitions.tolist() == [-3, -2, -1, 0, 1, 2]
    slices = decouple(problem, spokes, [torch.tensor([0, 1]), torch.tensor([2, 3, 4])])
    assert len(slices) == NZ
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in (NY, NX)]
    position = torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])
    for number, one in enumerate(slices):
        assert one.shape == (NY, NX)
        points = one.trajectory.flatten(0, 1).double()
        wave = torch.exp(-2j * torch.pi * (points @ position.flip(0))) / math.sqrt(NY * NX)
        expected = volume()[:, number].flatten(1).to(torch.complex128) @ wave.T * math.sqrt(ENCODED / NZ)
        found = one.samples.flatten(1)
        assert float((found - expected).norm() / expected.norm()) < 1e-5
        assert one.mask is not None
        assert not one.mask[:, 0].any()
        assert one.mask[:, 1:].all()
        assert [f.tolist() for f in one.frames] == [[0, 1], [2, 3, 4]]
        assert bool((one.readout_times.diff() >= 0).all())


def test_noise_stays_white_where_partitions_are_missing() -> None:
    problem, angles = scan("linear", range(1, ENCODED))
    spokes = sort_spokes(problem, angles, RATIO)
    assert spokes.partitions.tolist() == [-2, -1, 0, 1, 2]
    noise = torch.randn((COILS, problem.n_readouts, 4000), dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    noisy = problem.replace(samples=noise, trajectory=problem.trajectory[:, :1].repeat(1, 4000, 1), mask=None)
    for one in decouple(noisy, spokes, [torch.arange(SPOKES)]):
        assert float(one.samples.abs().square().mean()) == pytest.approx(1, abs=0.03)


def test_a_spoke_cut_short_is_left_out_and_angles_may_come_again() -> None:
    problem, angles = scan("linear")
    keep = torch.ones(problem.n_readouts, dtype=torch.bool)
    keep[-2:] = False
    spokes = sort_spokes(problem.keep_readouts(keep), angles[keep], RATIO)
    assert (spokes.n_spokes, spokes.left_out) == (SPOKES - 1, ENCODED - 2)
    twice = problem.replace(
        samples=problem.samples.repeat(1, 2, 1),
        trajectory=problem.trajectory.repeat(2, 1, 1),
        readout_times=torch.cat([problem.readout_times, problem.readout_times + 1]),
        mask=None,
        frames=(torch.arange(2 * problem.n_readouts),),
    )
    again = sort_spokes(twice, angles.repeat(2), RATIO)
    assert again.n_spokes == 2 * SPOKES
    assert again.left_out == 0
    assert float((twice.readout_times[again.readouts].amax(1) - twice.readout_times[again.readouts].amin(1)).max()) < 0.1


def test_what_is_no_stack_of_stars_is_told() -> None:
    problem, angles = scan("linear")
    tilted = problem.trajectory.clone()
    tilted[:, -1, 2] += 1
    with pytest.raises(DataError, match="kz changes"):
        sort_spokes(problem.replace(trajectory=tilted), angles, RATIO)
    with pytest.raises(DataError, match="encoded partitions"):
        sort_spokes(problem, angles, 0.9)
    with pytest.raises(DataError, match="same kspace_encode_step_1"):
        sort_spokes(problem, torch.arange(problem.n_readouts).div(ENCODED, rounding_mode="floor").roll(2), RATIO)
    with pytest.raises(DataError, match="none of"):
        sort_spokes(problem, torch.arange(problem.n_readouts), RATIO)


def test_navigator_profiles_are_projections_onto_z() -> None:
    image = torch.zeros((COILS, NZ, NY, NX), dtype=torch.complex64)
    image[0, 1, 5, 6] = image[1, 3, 2, 3] = 1
    problem, angles = scan("centre out")
    samples = exact(image, problem.trajectory.flatten(0, 1)).reshape(COILS, -1, SAMPLES)
    profiles = navigator_profiles(problem.replace(samples=samples), sort_spokes(problem, angles, RATIO))
    assert profiles.shape == (COILS, SPOKES, 7)
    # Slice 1 of 4 lies a quarter of the reconstructed, a sixth of the encoded field of view below the centre; slice 3 as far above.
    assert profiles[0].abs().argmax(dim=1).tolist() == [2] * SPOKES
    assert profiles[1].abs().argmax(dim=1).tolist() == [4] * SPOKES


def breathing(count: int = 200, span: float = 50.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    times = torch.linspace(0, span, count, dtype=torch.float64) + 0.02 * torch.rand(count, generator=generator, dtype=torch.float64)
    breath = torch.sin(2 * math.pi * 0.25 * times + 0.4 * torch.sin(0.3 * times))
    z = torch.linspace(-1, 1, 15, dtype=torch.float64)
    dome = torch.sigmoid((z[None] - 0.2 * breath[:, None]) * 12)
    contrast = 1 + 4 * torch.sigmoid((times - 15) / 2)
    noise = 0.02 * torch.randn((3, count, 15), dtype=torch.complex64, generator=generator)
    gains = torch.tensor([1.0, 0.6, 0.3j])
    return gains[:, None, None] * (dome * contrast[:, None]).to(torch.complex64) + noise, times, breath


def test_the_respiratory_signal_is_found_under_contrast() -> None:
    profiles, times, breath = breathing()
    signal, share = respiratory_signal(profiles, times)
    assert abs(float(torch.corrcoef(torch.stack([signal.double(), breath]))[0, 1])) > 0.93
    assert share > 0.8
    assert float(signal.mean()) == pytest.approx(0, abs=1e-5)
    assert float(signal.std()) == pytest.approx(1, abs=1e-4)


def test_too_short_a_scan_has_no_respiratory_signal() -> None:
    profiles, times, _ = breathing(40, 5.0)
    with pytest.raises(DataError, match="10 s"):
        respiratory_signal(profiles, times)
