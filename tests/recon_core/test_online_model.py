"""The provisional model: started, refined on a window, good on frames that it has not seen; deterministic."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recon_core.errors import DataError
from recon_core.online.measured import FrameEncoder, SlidingGridding
from recon_core.online.model import OnlineModel, OnlineSettings, gauge
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
    tracker = Tracker(model.start(frames[:START], first(problem, START)))
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


def test_a_second_start_takes_frames_tracked_against_the_first_along(scan):
    """From more data, with more bases: their V shows as nearly as it can the same images in the new ones."""
    problem = scan[0]
    encoder = FrameEncoder(first(problem, 20), 3, "nudft")
    frames = [encoder.measure(one(problem, n), gridded=True) for n in range(START + 12)]
    model = OnlineModel(encoder, dataclasses.replace(SETTINGS, start_rank=3))
    old = model.start(frames[:START])
    solved = Tracker(old).solve(frames[START + 8 :])
    new = model.start(frames[: START + 8], first(problem, START + 8))
    assert (old.rank, new.rank, old.version, new.version) == (3, 5, 1, 2)
    model.take(frames[START + 8 :], solved.coefficients, old.version)
    carried = new.series(model.sums.temporal()[:, -4:].T)
    assert torch.linalg.norm(carried - solved.images) < 0.2 * torch.linalg.norm(solved.images)
    # The first two have left the window.
    assert [entry.frame.time for entry in model.sums.entries] == [frame.time for frame in frames[2:]]


def test_a_start_is_near_the_images_after_few_steps(scan):
    """It sets out from gridding: four steps from zero are far from there."""
    problem, truth = scan
    encoder = FrameEncoder(first(problem, 20), 3, "nudft")
    frames = [encoder.measure(one(problem, n), gridded=True) for n in range(START)]
    made = OnlineModel(encoder, dataclasses.replace(SETTINGS, start_steps=4)).start(frames, first(problem, START))
    images = Tracker(made).solve(frames).images
    assert errors(images, truth[:START])[0] < 0.25


def test_a_change_of_gauge_keeps_series_and_momentum(scan):
    encoder = FrameEncoder(first(scan[0], 20), 3, "nudft")
    frames = [encoder.measure(one(scan[0], n), gridded=True) for n in range(START)]
    model = OnlineModel(encoder, SETTINGS)
    model.start(frames, first(scan[0], START))
    model.refine()
    fit, rows = model._fit, model.sums.temporal()
    before = [torch.tensordot(rows.T.to(each), each, dims=1) for each in (fit.fista.x, fit.fista.ahead)]
    momentum = fit.fista.momentum
    assert momentum > 1
    _, _, singular, move = gauge(fit.bases, rows + 0.01 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    model.sums.rebuild(move.float() @ rows)
    fit.turn(move, singular, model.sums)
    rows = model.sums.temporal()
    after = [torch.tensordot(rows.T.to(each), each, dims=1) for each in (fit.fista.x, fit.fista.ahead)]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3 * float(old.abs().max()))
    assert fit.fista.momentum == momentum


def test_coefficients_of_an_older_model_are_carried_over(scan):
    """Frames tracked before a change of gauge enter the sums as if they had been tracked after it."""
    problem = scan[0]
    encoder = FrameEncoder(first(problem, 20), 3, "nudft")
    frames = [encoder.measure(one(problem, n), gridded=True) for n in range(START + 4)]
    model = OnlineModel(encoder, dataclasses.replace(SETTINGS, rebuild=1))
    old = model.start(frames[:START], first(problem, START))
    solved = Tracker(old).solve(frames[START:])
    model.refine()
    turned = model.refine()
    assert turned.version == 3
    move = model._moves[0].T @ model._moves[1].T
    for each in model._moves:
        assert float((each - torch.eye(5, dtype=torch.float64)).abs().max()) > 1e-3
    model.take(frames[START:], solved.coefficients, old.version)
    torch.testing.assert_close(model.sums.temporal()[:, -4:].double(), (solved.coefficients.double() @ move).T, rtol=1e-5, atol=1e-6)


def test_frames_and_problem_must_agree(scan):
    encoder = FrameEncoder(first(scan[0], 20), 3, "nudft")
    frames = [encoder.measure(one(scan[0], n), gridded=True) for n in range(3)]
    with pytest.raises(DataError, match="3 measured of 20"):
        OnlineModel(encoder, SETTINGS).start(frames, first(scan[0], 20))
