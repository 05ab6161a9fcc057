"""The field of motion by itself."""

from __future__ import annotations

import pytest
import torch

from recon_core.fields.motion import MotionField


def test_field_at_rest_shows_its_canonical_images() -> None:
    canonical = torch.randn(2, 11, 8, dtype=torch.complex64)
    contrast = torch.stack([torch.ones(5), torch.arange(5.0)])
    field = MotionField(canonical, torch.randn(3, 5), contrast)
    with torch.no_grad():
        field.mixing.zero_()
        images = field(torch.tensor([0, 3]))
    torch.testing.assert_close(images[0], canonical[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(images[1], canonical[0] + 3 * canonical[1], rtol=1e-4, atol=1e-5)


def test_displacement_is_in_pixels_along_x_then_y() -> None:
    canonical = torch.randn(1, 12, 9, dtype=torch.complex64)
    field = MotionField(canonical, torch.tensor([[1.0, 2.0]]), torch.ones(1, 2))
    shift = torch.tensor([1.0, 2.0])
    field.displacements = lambda: shift.expand(1, 12, 9, 2)  # type: ignore[method-assign]
    images = field(torch.tensor([0, 1]))
    torch.testing.assert_close(images[0, :-2, :-1], canonical[0, 2:, 1:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(images[1, :-4, :-2], canonical[0, 4:, 2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 7), (5, 8, 6)])
def test_field_asked_for_some_pixels_gives_those(shape: tuple[int, ...]) -> None:
    canonical, motion, contrast = torch.randn(2, *shape, dtype=torch.complex64), torch.randn(3, 5), torch.randn(2, 5)
    inside = torch.rand(shape) < 0.3
    whole, some = MotionField(canonical, motion, contrast), MotionField(canonical, motion, contrast, inside=inside)
    frames = torch.tensor([4, 0, 1])
    torch.testing.assert_close(some(frames), whole(frames)[:, inside])


def test_field_has_gradients_everywhere() -> None:
    field = MotionField(torch.randn(2, 7, 6, dtype=torch.complex64), torch.randn(2, 4), torch.ones(2, 4))
    field(torch.arange(4)).abs().square().sum().backward()
    for name, weights in field.named_parameters():
        assert weights.grad is not None, name
        assert bool(torch.isfinite(weights.grad).all()), name
        assert bool(weights.grad.any()), name


def test_field_follows_a_moving_object() -> None:
    """A blob on a circular path: the field must move its canonical image, which alone leaves the path unexplained."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(30.0), indexing="ij")
    angle = torch.arange(16) * (2 * torch.pi / 16)
    courses = torch.stack([angle.cos(), angle.sin()])
    frames = torch.stack([torch.exp(-((x - 14 - 3 * a.cos()) ** 2 + (y - 11 - 3 * a.sin()) ** 2) / 12) for a in angle]) + 0j
    field = MotionField(frames.mean(0, keepdim=True), courses, torch.ones(1, 16))
    optimiser = torch.optim.Adam(field.parameters(), lr=0.03)
    still = float((frames - frames.mean(0)).abs().square().mean())
    for _ in range(150):
        optimiser.zero_grad()
        loss = (field(torch.arange(16)) - frames).abs().square().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05 * still
