"""The provisional model: started, refined on a window, good on frames that it has not seen; deterministic."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recon_core.online.measured import FrameEncoder, SlidingGridding
from recon_core.online.model import OnlineModel, OnlineSettings
from recon_core.online.tracker import Tracker
from tests.recon_core.test_online_numerics import one
from tests.recon_core.toy import toy_problem

SETTINGS = OnlineSettings(rank=5, window=0.3, steps=3, start_steps=10, rebuild=2, basis_width=16, forget=0.99)
FRAMES, START = 60, 24


@pytest.fixture(scope="module")
def scan():
    """60 frames of 9 ms: five periods; the model starts with two of them."""
    return toy_problem(n_frames=FRAMES, shape=(20, 26), coils=3, per_frame=3, noise=0.01)


def first(problem, count):
    keep = torch.zeros(problem.n_readouts, dtype=torch.bool)
    keep[: 3 * count] = True
    kept = problem.keep_readouts(keep)
    return kept.replace(frames=kept.frames[:count], frame_times=kept.frame_times[:count])


def follow(problem, every=6):
    """Images from START on, model refined every so many frames; gridding beside."""
    encoder = FrameEncoder(first(problem, 20), 3, "nudft")
    frames = [encoder.measure(one(problem, n), gridded=True) for n in range(problem.n_frames)]
    gridding = SlidingGridding(encoder, 33)
    gridded = torch.stack([gridding.image(frame) for frame in frames])[START:]
    model = OnlineModel(encoder, SETTINGS)
    tracker = Tracker(model.start(frames[:START]))
    images = []
    for at in range(START, problem.n_frames, every):
        solved = tracker.solve(frames[at : at + every])
        images.append(solved.images)
        model.take(frames[at : at + every], solved.coefficients, tracker.model.version)
        tracker.follow(model.refine())
    return torch.cat(images), gridded, model


def errors(images, truth):
    """Relative error, and that of the deviation from the time mean, after one phase a pixel and one scale."""
    aligned = images * torch.exp(-1j * (images * truth.conj()).sum(0).angle())
    aligned = aligned * ((truth.conj() * aligned).real.sum() / aligned.abs().square().sum())
    dynamic = (aligned - truth) - (aligned - truth).mean(0)
    return float((aligned - truth).norm() / truth.norm()), float(dynamic.norm() / (truth - truth.mean(0)).norm())


@pytest.fixture(scope="module")
def followed(scan):
    return follow(scan[0])


def test_frames_the_model_has_not_seen_are_better_than_gridding_and_than_the_average(scan, followed):
    images, gridded, _ = followed
    truth = scan[1][START:]
    error, dynamic = errors(images, truth)
    assert error < 0.6 * errors(gridded, truth)[0]
    assert error < 0.8 * float((truth - truth.mean(0)).norm() / truth.norm())
    assert dynamic < 0.6


def test_the_window_slides(followed):
    _, _, model = followed
    times = [entry.frame.time for entry in model.sums.entries]
    assert times[-1] - times[0] <= SETTINGS.window
    assert len(times) == 34
    assert model.refinements == 6


def test_the_same_calls_give_the_same_images(scan, followed):
    torch.rand(7)
    assert torch.equal(follow(scan[0])[0], followed[0])


def test_coefficients_of_an_older_model_are_carried_over(scan):
    """Frames tracked before a change of gauge enter the sums as if they had been tracked after it."""
    problem = scan[0]
    encoder = FrameEncoder(first(problem, 20), 3, "nudft")
    frames = [encoder.measure(one(problem, n), gridded=True) for n in range(START + 4)]
    model = OnlineModel(encoder, dataclasses.replace(SETTINGS, rebuild=1))
    old = model.start(frames[:START])
    solved = Tracker(old).solve(frames[START:])
    model.refine()
    turned = model.refine()
    assert turned.version == 3
    move = model._moves[0].T @ model._moves[1].T
    for each in model._moves:
        assert float((each - torch.eye(5, dtype=torch.float64)).abs().max()) > 1e-3
    model.take(frames[START:], solved.coefficients, old.version)
    torch.testing.assert_close(model.sums.temporal()[:, -4:].double(), (solved.coefficients.double() @ move).T, rtol=1e-5, atol=1e-6)
