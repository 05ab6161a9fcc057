"""TD-DIP: the generator's sizes, and a helix that turns with the motion."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.errors import DataError
from recon_core.fields.generator import ImageGenerator
from recon_core.solvers.td_dip import TdDip, TdDipSettings


@pytest.mark.parametrize(
    ("shape", "small"), [((128, 128), (8, 8)), ((256, 192), (16, 12)), ((48, 30), (12, 8)), ((23, 18), (12, 9)), ((5, 9), (5, 9))]
)
def test_generator_has_the_images_shape(shape: tuple[int, int], small: tuple[int, int]) -> None:
    made = ImageGenerator(shape, 3, 8, 4, 4, seed=0)
    assert made.small == small
    images = made(torch.randn(2, 3))
    assert (images.dtype, images.shape) == (torch.complex64, (2, *shape))


def test_no_frame_depends_on_another() -> None:
    made = ImageGenerator((24, 20), 3, 8, 4, 4, seed=0)
    latents = torch.randn(3, 3)
    torch.testing.assert_close(made(latents)[1], made(latents[1:2])[0], rtol=1e-4, atol=1e-5)
    assert float((made(latents)[0] - made(latents)[1]).detach().abs().max()) > 1e-3


def solver(problem, **changes) -> TdDip:
    made = TdDip(TdDipSettings(**{"steps": 4, "channels": 4, "mapped": 8, **changes}))
    made.start(problem)
    return made


def test_helix_turns_once_a_period(toy: ModuleType) -> None:
    """The toy moves by one sine every 12 frames: 4 turns in 48 frames, found in the k-space centre."""
    problem = calibrate(toy.toy_problem(n_frames=48, shape=(16, 14), coils=2, noise=0.01)[0], 2)[0]
    made = solver(problem)
    assert made.turns == pytest.approx(4, abs=0.3)
    assert made.images().notes == (f"helix of {made.turns:g} turns, from the navigator",)


def test_latents_lie_on_a_helix(toy: ModuleType) -> None:
    problem = calibrate(toy.toy_problem(n_frames=10, shape=(16, 14), coils=2)[0], 2)[0]
    made = solver(problem, turns=2.0)
    z = made.latents(torch.tensor([0.0, 2.0, 2.5, 9.0], dtype=torch.float64))
    torch.testing.assert_close(z[:, :2].norm(dim=1), torch.ones(4))
    torch.testing.assert_close(z[:, 2], torch.tensor([-0.9, -0.5, -0.4, 0.9]))
    assert math.atan2(float(z[1, 1]), float(z[1, 0])) == pytest.approx(math.remainder(2 * math.pi * 2 * 0.25, 2 * math.pi), abs=1e-5)
    assert made.images().notes == ()


def test_a_still_object_has_no_period(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=10, shape=(16, 14), coils=2)
    still = calibrate(
        problem.replace(samples=problem.samples[:, :3].repeat(1, 10, 1), trajectory=problem.trajectory[:3].repeat(10, 1, 1)), 2
    )[0]
    made = solver(still)
    assert made.turns == 0
    assert made.images().notes == ("straight latents: no period found",)


def test_volumes_are_refused(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=2, shape=(8, 6), coils=1)
    flat = torch.zeros(*problem.trajectory.shape[:2], 1)
    volume = problem.replace(trajectory=torch.cat([problem.trajectory, flat], dim=2), shape=(2, 8, 6))
    with pytest.raises(DataError, match="td_dip handles"):
        TdDip.suits(volume)
    TdDip.suits(problem)
