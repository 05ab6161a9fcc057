"""Off-resonance estimated from the images' phase and taken out of them, against the exact sum with exp(i2πΔf t)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recon_core.deblurring import Blur, CentreOut, deblurred, phase_field, smooth_field, smooth_phase
from recon_core.errors import DataError
from recon_core.field_estimate import correct
from recon_core.fine_deblurring import FineBlur
from recon_core.operators.nufft import Nufft
from recon_core.problem import KSpaceProblem
from recon_core.time_segments import segment_basis
from recon_core.trajectories import golden_angle_radial, spiral_arms

SHAPE, VIEW, FRAMES = (48, 40), (240.0, 200.0), 4
SECONDS, ECHO_TIME = 2.5e-3, 0.8e-3


def positions() -> tuple[Tensor, Tensor]:
    y, x = ((torch.arange(n, dtype=torch.float32) - n // 2) / n for n in SHAPE)
    return y[:, None], x[None]


def problem_of(trajectory: Tensor, **changes) -> KSpaceProblem:
    count, n = trajectory.shape[:2]
    made = KSpaceProblem(
        samples=torch.zeros((1, count, n), dtype=torch.complex64),
        trajectory=trajectory,
        frames=tuple(torch.arange(count)[None].T),
        readout_times=torch.arange(count, dtype=torch.float64),
        frame_times=torch.arange(count, dtype=torch.float64),
        shape=SHAPE,
        field_of_view=VIEW,
        sample_times=torch.linspace(0, SECONDS, n, dtype=torch.float64),
    )
    return made.replace(**changes)


@pytest.fixture(scope="module")
def spiral() -> KSpaceProblem:
    return problem_of(torch.from_numpy(spiral_arms(FRAMES, SHAPE, VIEW, 6, dwell=1e-5)).float())


def moving_object() -> tuple[Tensor, Tensor, Tensor]:
    """Magnitudes and off-resonance of frames, and the static phase: discs with an edge, one of which moves and takes its field along."""
    y, x = positions()
    magnitudes, fields = [], []
    for t in range(FRAMES):
        at = 0.05 * t - 0.08
        still = torch.sigmoid((0.3 - torch.hypot(y, x)) * 90)
        moved = torch.sigmoid((0.06 - torch.hypot(y - at, x + 0.05)) * 90)
        magnitudes.append(still * (1 + 0.5 * torch.cos(60 * x) * torch.cos(60 * y)) - 0.7 * moved)
        fields.append(
            400 * torch.exp(-((y - at) ** 2 + (x + 0.05) ** 2) / 0.012) - 300 * torch.exp(-((y - 0.2) ** 2 + (x - 0.1) ** 2) / 0.01)
        )
    static = 0.4 + 1.2 * x - 0.7 * y + 1.5 * x * y
    return torch.stack(magnitudes), torch.stack(fields), static


def truth() -> tuple[Tensor, Tensor]:
    """Images at k = 0, complex64, and their off-resonance."""
    magnitude, field, static = moving_object()
    return torch.polar(magnitude.clamp_min(0), static + 2 * math.pi * ECHO_TIME * field), field


def error(images: Tensor, reference: Tensor) -> float:
    return float((images - reference).norm() / reference.norm())


def test_blurred_images_have_the_samples_of_the_exact_sum(spiral):
    images, field = truth()
    blurred = Blur(CentreOut.of(spiral), field).forward(images)
    y, x = positions()
    for t in range(FRAMES):
        k = spiral.trajectory[t].double()
        place = torch.stack([x.expand(SHAPE).flatten(), y.expand(SHAPE).flatten()]).double()
        phase = -k @ place + spiral.sample_times[:, None] * field[t].flatten().double()
        exact = torch.exp(2j * math.pi * phase) @ images[t].flatten().to(torch.complex128) / math.sqrt(math.prod(SHAPE))
        found, plain = Nufft(spiral.trajectory[t], SHAPE, "nudft").forward(torch.stack([blurred[t], images[t]])).to(torch.complex128)
        # Samples weigh as their area, or the centre, which is passed before any phase accrues, would decide.
        area = k.norm(dim=1)
        assert error(area * found, area * exact) < 1e-2
        assert error(area * plain, area * exact) > 0.1


def test_the_adjoint_is_one(spiral):
    _, field = truth()
    blur = Blur(CentreOut.of(spiral), field)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((FRAMES, *SHAPE), dtype=torch.complex64, generator=generator) for _ in range(2))
    left, right = torch.vdot(blur.forward(a).flatten(), b.flatten()), torch.vdot(a.flatten(), blur.adjoint(b).flatten())
    assert abs(complex(left - right)) < 1e-3 * abs(complex(left))


def test_a_known_map_deblurs(spiral):
    images, field = truth()
    timing = CentreOut.of(spiral)
    blurred = Blur(timing, field).forward(images)
    assert error(deblurred(blurred, timing, field), images) < 0.2 * error(blurred, images)
    static = field.mean(0)
    assert error(deblurred(Blur(timing, static.expand_as(field)).forward(images), timing, static), images) < 0.2 * error(blurred, images)


def finely(scan: KSpaceProblem, scale: float = 1.0, detail: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Blurred images and truth of an object with a steep field at a void, drawn at a third of the pixels; field at their centres."""
    shape = tuple(detail * n for n in SHAPE)
    y, x = ((torch.arange(n, dtype=torch.float32) - n // 2) / n for n in shape)
    y, x = y[:, None], x[None]
    timing = CentreOut.of(scan)
    basis = segment_basis(timing.sample_times, 450.0, 1e-3)
    below = timing.place.floor().long().clamp_max(len(timing.sample_times) - 2)
    passed = torch.lerp(basis.in_time[:, below], basis.in_time[:, below + 1], (timing.place - below).to(torch.complex64))
    passed = passed * (timing.place < len(timing.sample_times) - 1)
    blurred, images, fields = [], [], []
    for t in range(FRAMES):
        v, u = y - 0.02 * t, x + 0.05
        r = torch.hypot(v, u)
        magnitude = torch.sigmoid((0.36 - torch.hypot(y, x)) * 200) * (1 + 0.4 * torch.cos(50 * x) * torch.cos(50 * y))
        magnitude = magnitude * torch.sigmoid((r - 0.06) * 300)
        field = scale * 400 * 0.06**2 * (v**2 - u**2) / r.clamp_min(0.06) ** 4
        sharp = torch.polar(magnitude, 0.4 + 1.2 * x - 0.7 * y + 1.5 * x * y + 2 * math.pi * ECHO_TIME * field)
        spectrum = torch.fft.fft2(torch.fft.ifftshift(torch.cat([basis.in_space(field) * sharp, sharp[None]]), dim=(1, 2))) / detail**2
        rows, columns = (torch.fft.fftfreq(n, 1 / n).long() % m for n, m in zip(SHAPE, shape, strict=True))
        spectrum = spectrum[:, rows[:, None], columns]
        kept = torch.stack([(passed * spectrum[:-1]).sum(0), spectrum[-1] * (timing.place < len(timing.sample_times) - 1)])
        pair = torch.fft.fftshift(torch.fft.ifft2(kept), dim=(1, 2))
        blurred.append(pair[0])
        images.append(pair[1])
        first = [n // 2 - detail * (m // 2) for n, m in zip(shape, SHAPE, strict=True)]
        fields.append(field[first[0] :: detail, first[1] :: detail])
    return torch.stack(blurred), torch.stack(images), torch.stack(fields)


def test_the_fine_blur_has_an_adjoint_and_loses_nothing_on_resonance(spiral):
    generator = torch.Generator().manual_seed(0)
    shape = tuple(2 * n for n in SHAPE)
    field = 300 * torch.randn((FRAMES, *shape), generator=generator).clamp(-1, 1)
    blur = FineBlur(CentreOut.of(spiral), ECHO_TIME, field, torch.randn(shape, generator=generator))
    a = torch.randn((FRAMES, *shape), dtype=torch.complex64, generator=generator)
    b = torch.randn((FRAMES, *SHAPE), dtype=torch.complex64, generator=generator)
    left, right = torch.vdot(blur.forward(a).flatten(), b.flatten()), torch.vdot(a.flatten(), blur.adjoint(b).flatten())
    assert abs(complex(left - right)) < 1e-3 * abs(complex(left))
    still = FineBlur(CentreOut.of(spiral), ECHO_TIME, 0 * field, torch.zeros(shape))
    assert error(still.forward(still.adjoint(b)), b * still.measured) < 1e-2


@pytest.mark.parametrize("wrong", [0.8, 1.0, 1.2, None])
def test_a_steep_field_is_taken_out_also_with_a_map_that_is_wrong_by_a_fifth_or_not_given(spiral, wrong):
    blurred, images, field = finely(spiral)
    timing = CentreOut.of(spiral)
    cost = error(blurred, images)
    start = None if wrong is None else wrong * field
    sharp, found = correct(blurred, timing, ECHO_TIME, start)
    bright = images.abs() > 0.4
    # Not given, the smooth part of the field is known from sharpness only.
    assert error(sharp, images) < (0.36 if start is None else 0.25) * cost
    if start is not None:
        # A map on the pixels' grid, left as it is, gives less.
        assert error(sharp, images) < error(deblurred(blurred, timing, start), images)
        if wrong != 1.0:
            assert float((found - field)[bright].norm()) < 0.8 * float((start - field)[bright].norm())


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_phase_tells_the_map_of_every_frame(spiral, noise):
    images, field = truth()
    timing = CentreOut.of(spiral)
    generator = torch.Generator().manual_seed(1)
    blurred = Blur(timing, field).forward(images)
    blurred = blurred + noise * torch.randn(blurred.shape, dtype=torch.complex64, generator=generator)
    sharp, found = correct(blurred, timing, ECHO_TIME)
    # More than half of what the field costs comes back; the rest lies in its smooth part, which the phase shares with the coils'.
    assert error(sharp, images) < 0.5 * error(Blur(timing, field).forward(images), images)
    bright = images.abs() > 0.5
    assert float((found - field)[bright].square().mean().sqrt()) < 0.45 * float(field[bright].std())
    moved = (found - found.mean(0))[bright]
    assert np.corrcoef(moved, (field - field.mean(0))[bright])[0, 1] > 0.98


def test_the_smooth_part_of_a_map_is_found_by_sharpness(spiral):
    images, field = truth()
    timing = CentreOut.of(spiral)
    y, x = positions()
    missing = 70 - 160 * x + 100 * y
    found = smooth_field(Blur(timing, field).forward(images), timing, field - missing)
    bright = images[0].abs() > 0.5
    assert float((found - missing)[bright].square().mean().sqrt()) < 0.25 * float(missing[bright].square().mean().sqrt())


def test_on_resonance_nothing_is_corrected(spiral):
    magnitude, _, static = moving_object()
    images = torch.polar(magnitude.clamp_min(0), static.expand_as(magnitude))
    sharp, found = correct(images, CentreOut.of(spiral), ECHO_TIME)
    assert error(sharp, images) < 0.01
    assert float(found[images.abs() > 0.5].abs().max()) < 5


def test_smooth_phase_is_that_of_a_polynomial():
    y, x = positions()
    given = 0.3 + 4 * x - 3 * y + 5 * x * x - 2 * x * y + y * y
    found = smooth_phase(torch.polar(torch.exp(-4 * (x**2 + y**2)), given))
    assert float(torch.angle(torch.polar(torch.ones(SHAPE), given - found)).abs().max()) < 1e-3
    assert not smooth_phase(torch.zeros(SHAPE, dtype=torch.complex64)).any()


def test_no_signal_has_no_field():
    images = torch.zeros((1, *SHAPE), dtype=torch.complex64)
    images[0, 10:20, 10:20] = torch.polar(torch.tensor(1.0), torch.tensor(1.0))
    found = phase_field(images, 1e-3, 1.0)[0]
    assert float(found[15, 15]) == pytest.approx(1000 / (2 * math.pi), rel=1e-2)
    assert float(found[35, 30].abs()) < 0.1


def test_what_is_not_measured_from_the_centre_out_is_refused(spiral):
    spokes = torch.from_numpy(golden_angle_radial(4, 64, matrix=SHAPE, field_of_view=VIEW)).float()
    for problem, words in (
        (problem_of(spokes), r"start at \|k\|"),
        (spiral.replace(trajectory=spiral.trajectory * torch.tensor([0.7, 1.0, 1.0, 1.0]).reshape(-1, 1, 1)), "differ by up to"),
        (spiral.replace(sample_times=None), "sample_times"),
    ):
        with pytest.raises(DataError, match=words):
            CentreOut.of(problem)
    with pytest.raises(DataError, match="TE"):
        correct(torch.zeros((1, *SHAPE), dtype=torch.complex64), CentreOut.of(spiral), 0.0)
