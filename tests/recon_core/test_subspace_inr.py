"""The subspace solver with a field of motion: phase, bases, field and the choice of its settings."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType, SimpleNamespace

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.calibration.holdout import held_out_readouts
from recon_core.fields.motion import MotionField
from recon_core.operators.phase import smooth_phase
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.solvers import subspace_inr
from recon_core.solvers.subspace import BASIS_STRENGTHS, RANKS
from recon_core.solvers.subspace_inr import FIELD_SHARES, STRENGTHS, SubspaceInr, SubspaceInrSettings

SMALL = SubspaceInrSettings(rank=6, steps=40, strength=0.015, basis_width=20, basis_coils=3, field=0.35, field_steps=60, field_batch=6)


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> tuple[KSpaceProblem, torch.Tensor]:
    problem, truth = toy.toy_problem(n_frames=36, per_frame=3, noise=0.005)
    return calibrate(problem, 3)[0], truth


@pytest.fixture(scope="module")
def fitted(scan: tuple[KSpaceProblem, torch.Tensor]) -> SubspaceInr:
    return fit(scan[0], SMALL)


def fit(problem: KSpaceProblem, settings: SubspaceInrSettings) -> SubspaceInr:
    solver = SubspaceInr(settings)
    solver.start(problem)
    while not solver.done:
        solver.update()
    return solver


def errors(images: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Relative error, and that of the deviation from the time mean, after one phase a pixel and one scale."""
    aligned = images * torch.exp(-1j * (images * truth.conj()).sum(0).angle())
    aligned = aligned * ((truth.conj() * aligned).real.sum() / aligned.abs().square().sum())
    dynamic = (aligned - truth) - (aligned - truth).mean(0)
    return float((aligned - truth).norm() / truth.norm()), float(dynamic.norm() / (truth - truth.mean(0)).norm())


# ---- phase


def test_smooth_phase_is_found() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 54), indexing="ij")
    phase = 1.2 * x - 0.7 * y + 0.4 * x * y
    magnitude = 1 + 0.2 * torch.rand(40, 54)
    found = smooth_phase(torch.polar(magnitude, phase))
    torch.testing.assert_close(found.abs(), torch.ones(40, 54))
    inner = (slice(6, -6), slice(6, -6))
    assert float((found * torch.polar(torch.ones_like(phase), -phase))[inner].angle().abs().max()) < 0.2


# ---- solver


def test_recovers_the_motion(fitted: SubspaceInr, scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    static, dynamic = errors(fitted.images().images, scan[1])
    assert static < 0.1
    assert dynamic < 0.5


def test_steps_that_are_too_long_are_shortened(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    """An eigenvalue far too low at the start must not make the fit diverge."""
    solver = SubspaceInr(dataclasses.replace(SMALL, field=0.0))
    solver.start(scan[0])
    solver.bound *= 0.2
    begun = solver.bound
    while not solver.done:
        solver.update()
    assert solver.bound > 2 * begun
    static, dynamic = errors(solver.images().images, scan[1])
    assert static < 0.1
    assert dynamic < 0.5


def test_curvature_is_that_of_the_gram_operator(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    solver = SubspaceInr(dataclasses.replace(SMALL, field=0.0))
    solver.start(scan[0])
    for _ in range(7):
        solver.update()
    torch.testing.assert_close(solver.normal(solver.fista.x), _image_of_iterate(solver), rtol=1e-3, atol=1e-4)


def _image_of_iterate(solver: SubspaceInr) -> torch.Tensor:
    solver._curvature(solver.normal(solver.fista.ahead))
    return solver.image_of_x


def test_share_of_the_field(fitted: SubspaceInr) -> None:
    """Images are the two parts in their shares; the field is close to the frames it was fitted to."""
    assert fitted.field is not None
    explicit = torch.tensordot(fitted.temporal.T.to(torch.complex64), fitted.bases, dims=1)
    with torch.no_grad():
        field = fitted.field(torch.arange(36)) * fitted.peak
    torch.testing.assert_close(fitted.images().images, 0.65 * explicit + 0.35 * field, rtol=1e-3, atol=1e-4)
    moving = explicit - explicit.mean(0)
    assert float((field - explicit).norm()) < 0.7 * float(moving.norm())


def test_in_a_volume_the_field_is_fitted_where_the_series_changes() -> None:
    """And mixed in there only: a moving cube in a static volume, on the grid."""
    generator = torch.Generator().manual_seed(0)
    shape, count = (8, 12, 10), 9
    truth = torch.zeros(count, *shape, dtype=torch.complex64)
    truth[:, 1:7, 1:11, 1:9] = 0.5
    for t in range(count):
        truth[t, 2:5, 2 + t % 3 : 6 + t % 3, 3:7] = 1.0
    truth += 0.01 * torch.randn(truth.shape, dtype=torch.complex64, generator=generator)
    axes = [torch.arange(n, dtype=torch.float32) - n // 2 for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).reshape(shape[0] * shape[1], shape[2], 3)
    k = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(truth, dim=(1, 2, 3)), dim=(1, 2, 3), norm="ortho"), dim=(1, 2, 3))
    lines = len(grid)
    problem = KSpaceProblem(
        samples=k.reshape(1, count * lines, shape[2]),
        trajectory=grid.repeat(count, 1, 1),
        frames=tuple(torch.arange(t * lines, (t + 1) * lines) for t in range(count)),
        readout_times=torch.arange(count * lines, dtype=torch.float64),
        frame_times=torch.arange(count, dtype=torch.float64) * lines,
        shape=shape,
        sensitivities=torch.ones(1, *shape, dtype=torch.complex64),
        cartesian=True,
    )
    settings = dataclasses.replace(SMALL, steps=10, field_steps=10)
    fitted = fit(problem, settings)
    assert fitted.field is not None
    inside = fitted.field.inside
    assert inside is not None
    assert int(inside.sum()) == math.ceil(inside.numel() / 4)
    change = (truth - truth.mean(0)).abs().square().sum(0)
    assert bool(inside[change > 0.2 * change.max()].all())
    explicit = fit(problem, dataclasses.replace(settings, field=0.0)).images().images
    images = fitted.images().images
    torch.testing.assert_close(images[:, ~inside], explicit[:, ~inside])
    moved = (fitted.field(torch.arange(count)) * fitted.peak).detach()
    torch.testing.assert_close(images[:, inside], 0.65 * explicit[:, inside] + 0.35 * moved, rtol=1e-3, atol=1e-4)


def test_no_field_no_steps_for_it(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    bare = dataclasses.replace(SMALL, field=0.0, steps=3)
    solver = fit(scan[0], bare)
    assert solver.step == 3
    assert solver.field is None
    assert solver.objective() is None


def test_a_large_image_takes_fewer_frames_a_step_of_the_field(scan: tuple[KSpaceProblem, torch.Tensor], monkeypatch) -> None:
    batches = []
    forward = MotionField.forward
    monkeypatch.setattr(MotionField, "forward", lambda field, frames: (batches.append(len(frames)), forward(field, frames))[1])
    settings = dataclasses.replace(SMALL, steps=2, field_steps=3)
    fit(scan[0], settings)
    monkeypatch.setattr(subspace_inr, "_FIELD_PIXELS", 2 * int(torch.tensor(scan[0].shape).prod()) + 1)
    fit(scan[0], settings)
    monkeypatch.setattr(subspace_inr, "_FIELD_PIXELS", 1)
    fit(scan[0], settings)
    assert batches == [6] * 3 + [2] * 3 + [1] * 3


def test_fit_beside_another_shares_the_set_up_and_nothing_else(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    first = fit(scan[0], dataclasses.replace(SMALL, field=0.0, steps=10))
    settings = dataclasses.replace(SMALL, field=0.0, steps=10, strength=0.03)
    beside = SubspaceInr(settings)
    beside.start_beside(first)
    assert beside.normal is first.normal
    while not beside.done:
        beside.update()
    torch.testing.assert_close(beside.images().images, fit(scan[0], settings).images().images)
    other_rank = SubspaceInr(dataclasses.replace(settings, rank=4))
    other_rank.start_beside(beside)
    assert other_rank.temporal.shape[0] == 4
    assert other_rank.low_resolution is first.low_resolution
    other_rank.start(first.problem.replace(frames=first.problem.frames[:9], frame_times=first.problem.frame_times[:9]))
    assert other_rank.low_resolution[1].shape[0] == other_rank.temporal.shape[1] == 9


def test_field_beside_goes_on_from_the_bases(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    bare = fit(scan[0], dataclasses.replace(SMALL, field=0.0))
    joined = SubspaceInr(SMALL)
    joined.start_beside(bare)
    assert joined.step == SMALL.steps
    while not joined.done:
        joined.update()
    torch.testing.assert_close(joined.images().images, fit(scan[0], SMALL).images().images)


def test_threshold_and_share_are_chosen_on_held_out_readouts(toy: ModuleType) -> None:
    problem, _ = toy.toy_problem(n_frames=36, per_frame=3, noise=0.005)
    own = {"rank": 5, "steps": 8, "basis_width": 16, "field_steps": 8}
    report = reconstruct(problem, ReconstructionSettings(solver="subspace_inr", coils=3, device="cpu", holdout=0.1), own).report
    tried = [t["settings"] for t in report["tried"]]
    assert [t["strength"] for t in tried[:2]] == [STRENGTHS[1], STRENGTHS[0]]
    assert [t["field"] for t in tried] == [0.0] * (len(tried) - len(FIELD_SHARES)) + [*FIELD_SHARES]
    limited = report["settings"]["strength"] != STRENGTHS[0]
    assert any(t["smooth"] for t in tried) == any(t["even"] for t in tried) == limited
    with_field = [t for t in report["tried"] if t["settings"]["field"] > 0]
    best = min(with_field, key=lambda t: t["held_out_error"])
    chosen, least = (SubspaceInr.regularisation(SubspaceInrSettings(**settings)) for settings in (report["settings"], best["settings"]))
    assert report["settings"] in tried
    assert chosen >= least
    assert held_out_readouts(problem, 0.1, 0).any()


SHORT = SimpleNamespace(n_frames=8 * RANKS[1] - 1, shape=(64, 64), field_map=None)
LONG = SimpleNamespace(n_frames=8 * RANKS[2], shape=(64, 64), field_map=None)


def test_thresholds_are_raised_or_lowered_as_long_as_that_helps() -> None:
    """And again after the settings for bad data, if these are better; the field comes last."""
    asked = SubspaceInrSettings()
    tried = SubspaceInr.candidates(asked, None)

    def next_after(best: SubspaceInrSettings) -> list[tuple[float | None, bool | None, bool | None, float | None]]:
        found = SubspaceInr.refinements(best, asked, tried, SHORT)
        tried.extend(found)
        return [(f.strength, f.smooth, f.even, f.field) for f in found]

    plain = tried[0]
    assert [(t.strength, t.smooth, t.even, t.field) for t in tried] == [(0.02, False, False, 0.0), (0.011, False, False, 0.0)]
    assert plain.basis_strength == BASIS_STRENGTHS[0]
    assert next_after(plain) == [(0.035, False, False, 0.0)]
    assert next_after(plain) == [(0.02, False, False, 0.0)]
    assert tried[-1].basis_strength == BASIS_STRENGTHS[1]
    assert next_after(plain) == [(0.02, True, False, 0.0)]
    smooth = dataclasses.replace(plain, smooth=True)
    assert next_after(smooth) == [(0.035, True, False, 0.0)]
    assert next_after(smooth) == [(0.011, True, False, 0.0)]
    assert next_after(smooth) == [(0.02, True, False, 0.0)]
    assert tried[-1].static_strength == 5 * asked.static_strength
    assert next_after(smooth) == [(0.02, True, True, 0.0), (0.011, True, True, 0.0)]
    even = dataclasses.replace(smooth, even=True)
    assert next_after(even) == [(0.035, True, True, 0.0)]
    assert next_after(even) == [(0.02, True, True, share) for share in FIELD_SHARES]
    assert next_after(dataclasses.replace(even, field=FIELD_SHARES[0])) == []
    tried = SubspaceInr.candidates(asked, None)
    assert next_after(tried[1]) == [(0.011, False, False, share) for share in FIELD_SHARES]


def test_of_long_scans_components_are_added_as_long_as_that_helps() -> None:
    """Then such data are good data; thresholds come first, and again after every addition."""
    asked = SubspaceInrSettings()
    tried = SubspaceInr.candidates(asked, LONG)

    def next_after(best: SubspaceInrSettings) -> list[tuple[int | None, float | None, bool | None, float | None]]:
        found = SubspaceInr.refinements(best, asked, tried, LONG)
        tried.extend(found)
        return [(f.rank, f.strength, f.smooth, f.field) for f in found]

    best = tried[1]
    assert [t.rank for t in tried] == [24, 24]
    assert next_after(best) == [(40, 0.011, False, 0.0)]
    assert SubspaceInr.evidence_for(tried[-1], best) == 0.02
    assert SubspaceInr.regularisation(best) > SubspaceInr.regularisation(tried[-1])
    best = tried[-1]
    assert next_after(best) == [(40, 0.02, False, 0.0)]
    best = tried[-1]
    assert next_after(best) == [(40, 0.035, False, 0.0)]
    assert next_after(best) == [(64, 0.02, False, 0.0)]
    assert next_after(best) == [(40, 0.02, False, share) for share in FIELD_SHARES]

    tried = SubspaceInr.candidates(asked, LONG)
    plain = tried[0]
    assert next_after(plain) == [(24, 0.035, False, 0.0)]
    assert next_after(plain) == [(40, 0.02, False, 0.0)]
    assert [rank for rank, *_ in next_after(plain)] == [24]
    assert tried[-1].basis_strength == BASIS_STRENGTHS[1]


@pytest.mark.parametrize(
    ("n_frames", "shape", "ranks"),
    [
        (319, (64, 64), [24]),
        (320, (64, 64), [24, 40]),
        (511, (64, 64), [24, 40]),
        (512, (128, 128), [24, 40, 64]),
        (600, (192, 192), [24, 40]),
        (600, (256, 256), [24]),
        (600, (64, 64, 64), [24]),
    ],
)
def test_more_components_need_frames_and_room_for_their_kernels(n_frames: int, shape: tuple[int, ...], ranks: list[int]) -> None:
    problem = SimpleNamespace(n_frames=n_frames, shape=shape, field_map=None)
    asked = SubspaceInrSettings(strength=0.02, basis_strength=0.06, smooth=False, even=False, field=0.0)
    tried = SubspaceInr.candidates(asked, problem)
    while more := SubspaceInr.refinements(tried[-1], asked, tried, problem):
        tried.extend(more)
    assert [settings.rank for settings in tried] == ranks
    problem.field_map = torch.zeros(shape)
    assert SubspaceInr.refinements(tried[0], asked, tried[:1], problem) == []
    given = dataclasses.replace(asked, rank=12)
    assert SubspaceInr.refinements(given, given, [given], problem) == []


def test_a_less_smooth_v_has_to_predict_clearly_better() -> None:
    plain = SubspaceInr.candidates(SubspaceInrSettings(), None)[0]
    rough = dataclasses.replace(plain, basis_strength=BASIS_STRENGTHS[1])
    assert SubspaceInr.evidence_for(rough, plain) == 0.03
    assert SubspaceInr.evidence_for(plain, rough) == SubspaceInr.evidence_for(plain, plain) == 0.0


def test_there_is_a_field_unless_it_is_set_to_none() -> None:
    asked = SubspaceInrSettings()
    bare = dataclasses.replace(asked, field=0.0)
    assert not SubspaceInr.admissible(bare, asked)
    assert SubspaceInr.admissible(bare, bare)
    assert SubspaceInr.unguided(asked, None).field == FIELD_SHARES[-1]
    assert SubspaceInr.unguided(bare, None).field == 0.0


def test_another_share_has_the_same_field(scan: tuple[KSpaceProblem, torch.Tensor], fitted: SubspaceInr) -> None:
    other = SubspaceInr(dataclasses.replace(SMALL, field=0.1))
    other.start_beside(fitted)
    assert other.done
    assert other.field is fitted.field
    torch.testing.assert_close(other.images().images, fit(scan[0], other.settings).images().images)


def test_what_is_set_is_not_refined() -> None:
    asked = SubspaceInrSettings(rank=24, strength=0.02, basis_strength=0.06, smooth=False, even=False, field=0.35)
    assert SubspaceInr.candidates(asked, LONG) == [asked]
    assert SubspaceInr.refinements(asked, asked, [asked], LONG) == []


def test_bad_data_weigh_more_evenly_and_smooth_the_static_basis(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    bare = dataclasses.replace(SMALL, field=0.0, steps=10)
    plain = fit(scan[0], bare)
    noisy = SubspaceInr(dataclasses.replace(bare, smooth=True, even=True))
    noisy.start_beside(plain)
    assert noisy.density_power == bare.density_power / 8
    assert noisy.normal is not plain.normal
    assert not noisy.bases.any()
    same = dataclasses.replace(bare, density_power=bare.density_power / 8, static_strength=20 * bare.static_strength)
    while not noisy.done:
        noisy.update()
    torch.testing.assert_close(noisy.images().images, fit(scan[0], same).images().images)


@pytest.mark.parametrize(("dim", "plain", "even"), [(2, 0.5, 0.0625), (3, 0.75, 0.53125)])
def test_readouts_of_volumes_weigh_more_evenly_in_k(dim: int, plain: float, even: float) -> None:
    solver = SubspaceInr(SubspaceInrSettings())
    solver.problem = SimpleNamespace(dim=dim)
    assert solver.density_power == plain
    solver.settings = SubspaceInrSettings(even=True)
    assert solver.density_power == even


def test_one_frame_and_one_component(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    problem = scan[0]
    whole = problem.replace(frames=(torch.arange(problem.n_readouts),), frame_times=problem.readout_times.mean()[None])
    images = fit(whole, dataclasses.replace(SMALL, rank=1, steps=5, field_steps=3)).images().images
    assert images.shape[0] == 1
    assert bool(torch.isfinite(torch.view_as_real(images)).all())
    assert images.abs().max() > 0


def test_times_between_frames(fitted: SubspaceInr) -> None:
    frames = fitted.images()
    middle = fitted.images((frames.times[3:4] + frames.times[4:5]) / 2).images[0]
    nearest = torch.stack([frames.images[3], frames.images[4]])
    assert float((middle - nearest.mean(0)).norm()) < float((nearest[0] - nearest[1]).norm()) + 1e-6
    torch.testing.assert_close(fitted.images(frames.times[7:9]).images, frames.images[7:9], rtol=1e-3, atol=1e-4)


def test_phase_is_in_the_operator_as_in_its_right_hand_side(scan: tuple[KSpaceProblem, torch.Tensor]) -> None:
    """Where they differed the fit would have no solution: G must be that of maps times phase, as the target is."""
    problem = scan[0]
    solver = SubspaceInr(dataclasses.replace(SMALL, field=0.0))
    solver.start(problem)
    assert float((solver.phase - 1).abs().max()) > 1e-3
    plain = SubspaceInr(dataclasses.replace(SMALL, field=0.0))
    plain.start(problem)
    plain.normal.sensitivities = plain.normal.sensitivities * plain.phase.conj()
    bases = torch.randn_like(solver.target)
    expected = plain.normal(bases * solver.phase) * solver.phase.conj()
    torch.testing.assert_close(solver.normal(bases), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(solver.aligned, solver.target * solver.phase.conj())
