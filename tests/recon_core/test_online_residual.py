"""The residual of the newest frames as an image: what the bases lack, little of noise, the same in any bases."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from recon_core.online.measured import FrameEncoder
from recon_core.online.residual import SlidingResidual
from recon_core.online.tracker import Model, coil_spectra, spectral_products
from recon_core.operators.toeplitz import ToeplitzNormal
from tests.recon_core.test_online_numerics import one
from tests.recon_core.toy import toy_problem

SHAPE, COUNT, PER_FRAME = (20, 26), 8, 3


@pytest.fixture(scope="module")
def encoder():
    return FrameEncoder(toy_problem(n_frames=COUNT, shape=SHAPE, coils=3, per_frame=PER_FRAME)[0], coils=3, engine="nudft")


@pytest.fixture(scope="module")
def measured(encoder):
    """Frames whose point spread is that of spokes, to be given other contents."""
    problem, _ = toy_problem(n_frames=COUNT, shape=SHAPE, coils=3, per_frame=PER_FRAME)
    return [encoder.measure(one(problem, n), gridded=True) for n in range(COUNT)]


def blob(y, x, width):
    at = torch.meshgrid(*(torch.arange(float(n)) for n in SHAPE), indexing="ij")
    return torch.exp(-((at[0] - y) ** 2 + (at[1] - x) ** 2) / (2 * width**2)).to(torch.complex64)


def frames_of(image, measured, encoder):
    """Noise-free data of an image."""
    made = []
    for frame in measured:
        normal = ToeplitzNormal(frame.spectrum.reshape(1, *(2 * n for n in SHAPE)), encoder.sensitivities)
        made.append(dataclasses.replace(frame, adjoint=normal(image[None])[0]))
    return made


def model_of(bases, encoder):
    spectra = coil_spectra(bases, encoder.sensitivities)
    rank = len(bases)
    state = torch.zeros(rank, dtype=torch.float64)
    return Model(bases, spectra, spectral_products(spectra), state, torch.eye(rank, dtype=torch.float64), 1.0, 0.0, 1)


STILL = blob(10, 12, 5.0)
BASES = torch.stack([STILL, blob(4, 6, 2.0)])
SHOWN = torch.tensor([1.0, 0.5])
SPOT = 0.3 * blob(8, 17, 1.5)


def residual_of(frames, encoder, bases=BASES, shown=SHOWN):
    window = SlidingResidual(encoder.sensitivities, COUNT * PER_FRAME, 1.0)
    window.add(frames, shown.expand(len(frames), -1))
    return window.image(model_of(bases, encoder))


def test_a_spot_that_the_bases_lack_is_shown(measured, encoder):
    truth = torch.tensordot(SHOWN.to(BASES.dtype), BASES, dims=1) + SPOT
    residual = residual_of(frames_of(truth, measured, encoder), encoder)
    assert torch.linalg.norm(residual - SPOT) < 0.5 * torch.linalg.norm(SPOT)
    at = int(residual.abs().argmax())
    assert abs(at // SHAPE[1] - 8) <= 1
    assert abs(at % SHAPE[1] - 17) <= 1


def test_what_the_bases_show_leaves_no_residual(measured, encoder):
    truth = torch.tensordot(SHOWN.to(BASES.dtype), BASES, dims=1)
    residual = residual_of(frames_of(truth, measured, encoder), encoder)
    assert float(residual.abs().max()) < 1e-4 * float(truth.abs().max())


def test_noise_alone_is_mostly_taken_away(measured, encoder):
    generator = torch.Generator().manual_seed(0)
    window = SlidingResidual(encoder.sensitivities, COUNT * PER_FRAME, 1.0)
    noise = [dataclasses.replace(f, adjoint=torch.randn(SHAPE, dtype=torch.complex64, generator=generator)) for f in measured]
    window.add(noise, torch.zeros((COUNT, 2)))
    model = model_of(BASES, encoder)
    assert torch.linalg.norm(window.image(model)) < 0.4 * torch.linalg.norm(window._gridded(model))


def test_it_is_the_same_in_other_bases_of_the_same_images(measured, encoder):
    frames = frames_of(STILL + SPOT, measured, encoder)
    window = SlidingResidual(encoder.sensitivities, COUNT * PER_FRAME, 1.0)
    window.add(frames, SHOWN.expand(COUNT, -1))
    before = window.image(model_of(BASES, encoder))
    turn = torch.linalg.qr(torch.randn((2, 2), generator=torch.Generator().manual_seed(4), dtype=torch.float64))[0]
    window.follow(turn)
    after = window.image(model_of(torch.tensordot(turn.to(BASES.dtype), BASES, dims=1), encoder))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_the_window_holds_its_readouts_and_is_made_again_when_a_quarter_is_new(measured, encoder):
    model = model_of(BASES, encoder)
    window = SlidingResidual(encoder.sensitivities, 4 * PER_FRAME, 0.5)
    still, spot = frames_of(STILL, measured, encoder), frames_of(STILL + SPOT, measured, encoder)
    for n, frame in enumerate(still[:6]):
        window.add([frame], SHOWN[None])
        assert len(window._frames) == min(4, n + 1)
    held = window.image(model)
    assert window.image(model) is held
    window.add(spot[6:7], SHOWN[None])
    new = window.image(model)
    assert float((new - held).abs().max()) > 0
    # After four frames with the spot nothing of those without is left.
    window.add(spot[:4], SHOWN.expand(4, -1))
    alone = SlidingResidual(encoder.sensitivities, 4 * PER_FRAME, 0.5)
    alone.add(spot[:4], SHOWN.expand(4, -1))
    torch.testing.assert_close(window.image(model), alone.image(model))


def test_a_window_that_has_just_begun_shows_no_more_than_a_full_one():
    """One spoke leaves most of k-space without a sample: the median of its density is nothing to measure it by."""
    problem, _ = toy_problem(n_frames=24, shape=(40, 52), coils=2, per_frame=1)
    sparse = FrameEncoder(problem, coils=2, engine="nudft")
    frames = [sparse.measure(one(problem, n), gridded=False) for n in range(24)]
    bases = torch.zeros((1, 40, 52), dtype=torch.complex64)
    full, begun = (SlidingResidual(sparse.sensitivities, 24, 24 * sparse.coverage) for _ in range(2))
    full.add(frames, torch.zeros((24, 1)))
    begun.add(frames[:1], torch.zeros((1, 1)))
    model = model_of(bases, sparse)
    assert 0 < float(begun._gridded(model).abs().max()) < 1.2 * float(full._gridded(model).abs().max())


def test_a_spokes_share_of_k_space(encoder):
    """A spoke as long as k-space is wide, of a disc."""
    square, _ = toy_problem(n_frames=4, shape=(24, 24), coils=2, per_frame=4)
    share = FrameEncoder(square, coils=2, engine="nudft").coverage
    assert share == pytest.approx(24 / (math.pi / 4 * 24**2), rel=0.08)
