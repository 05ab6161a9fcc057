"""Maps and coils together: the gradient, descent, what comes back from exact data, and the coils' own gain."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from recon_core.calibration.signal_subspace import signal_subspace
from recon_core.operators.contrasts import ContrastTerm, HybridSamples
from recon_core.parameter_fit import ParameterFit, fit_parameters
from recon_core.problem import KSpaceProblem
from recon_core.signal_models import Protocol, signal_model
from recon_core.solvers.joint_maps import JointMaps, JointWeights, conjugate_gradients

SHAPE = (3, 14, 12)
PROTOCOL = Protocol("spoiled", (2e-3, 8e-3, 20e-3), 46e-3, tuple(math.radians(a) for a in (5, 15, 40)))
MODEL = signal_model(PROTOCOL)


def truth() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Two tissues side by side, a smooth phase and field, three smooth coils of unit root-sum-of-squares."""
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    right = (x > 0.1).float()
    values = {
        "T1": (0.8 + 0.7 * right).flatten(),
        "T2star": (0.05 - 0.02 * right).flatten(),
        "off_resonance": (8 * y - 5 * x).flatten(),
    }
    amplitude = torch.polar(100 * (1 - 0.3 * right), 0.4 * x + 0.2 * z).flatten()
    coils = torch.stack(
        [torch.polar(torch.exp(-((x - a) ** 2) - (y - b) ** 2), a * x + b * y) for a, b in ((-1, 0.3), (0.9, 0.8), (0.2, -1))]
    )
    return values, amplitude, coils / coils.abs().square().sum(0).sqrt()


@pytest.fixture(scope="module")
def term() -> ContrastTerm:
    """A third of all lines, noise of unit variance left out."""
    values, amplitude, coils = truth()
    images = (amplitude * MODEL.signal(values)).reshape(-1, *SHAPE)
    dims = (-3, -2, -1)
    spectra = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(images[:, None] * coils, dim=dims), dim=dims, norm="ortho"), dim=dims)
    generator = torch.Generator().manual_seed(0)
    nz, ny, nx = SHAPE
    taken = torch.nonzero(torch.rand(PROTOCOL.contrasts, nz, ny, generator=generator) < 0.35)
    k = torch.zeros(len(taken), nx, 3)
    k[..., 0] = torch.arange(nx) - nx // 2
    k[..., 1] = (taken[:, 2] - ny // 2)[:, None]
    k[..., 2] = (taken[:, 1] - nz // 2)[:, None]
    problem = KSpaceProblem(
        torch.stack([spectra[t, :, z, y] for t, z, y in taken.tolist()], dim=1),
        k,
        tuple(torch.nonzero(taken[:, 0] == t)[:, 0] for t in range(PROTOCOL.contrasts)),
        torch.arange(len(taken), dtype=torch.float64),
        torch.arange(PROTOCOL.contrasts, dtype=torch.float64),
        SHAPE,
        cartesian=True,
        protocol=PROTOCOL,
    )
    return ContrastTerm(HybridSamples.of(problem), signal_subspace(PROTOCOL, 9).basis)


def started(term: ContrastTerm, weights: JointWeights, off: float, coil_error: float) -> JointMaps:
    """Parameters off by a factor, coils by a smooth modulation."""
    values, amplitude, coils = truth()
    _, y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    wrong = coils * (1 + coil_error * torch.stack([x, -y, 1j * x + y]))
    wrong = wrong / wrong.abs().square().sum(0).sqrt()
    basis = signal_subspace(PROTOCOL, 9).basis
    joint = JointMaps(MODEL, basis, term, wrong, (60.0, 220.0, 200.0), weights)
    shifted = {"T1": values["T1"] * (1 + off), "T2star": values["T2star"] * (1 - off), "off_resonance": values["off_resonance"] + 10 * off}
    fit = ParameterFit(shifted, amplitude, torch.zeros_like(values["T1"]))
    joint.start(fit, (amplitude * MODEL.project(shifted, basis)).reshape(-1, *SHAPE), 0.05)
    return joint


def errors(joint: JointMaps) -> dict[str, float]:
    values, amplitude, coils = truth()
    found, size = joint.values()
    out = {name: float((found[name] / values[name] - 1).abs().median()) for name in ("T1", "T2star")}
    out["PD"] = float((size.abs() / amplitude.abs() - 1).abs().median())
    turn = (joint.sensitivities.conj() * coils).sum(0)
    aligned = joint.sensitivities * turn / turn.abs()
    return out | {"coils": float(torch.linalg.vector_norm(aligned - coils) / torch.linalg.vector_norm(coils))}


def test_exact_data_give_parameters_and_coils_back(term):
    joint = started(term, JointWeights(1e-3, 1e-3, 1e-6), 0.25, 0.3)
    before = errors(joint)
    costs = []
    for _ in range(8):
        if not joint.step(10):
            break
        costs.append(joint.cost)
    after = errors(joint)
    assert costs == sorted(costs, reverse=True)
    assert before["T1"] > 0.2
    assert before["coils"] > 0.06
    # The wrong coils' modulation jumps at the edge of the field of view; what a smooth correction cannot follow stays.
    assert max(after[name] for name in ("T1", "T2star", "PD")) < 0.05
    assert after["coils"] < 0.5 * before["coils"]
    torch.testing.assert_close(joint.sensitivities.abs().square().sum(0), torch.ones(SHAPE), atol=1e-4, rtol=0)


def test_steps_end_where_the_objective_has_settled(term):
    # The prior's share of the objective cannot vanish as the misfit of exact data does.
    joint = started(term, JointWeights(100.0, 1.0, 1e-3), 0.1, 0.05)
    going_on = [joint.step(10) for _ in range(20)]
    assert going_on[0]
    assert not going_on[-1]
    settled = joint.cost
    joint.step(10)
    assert 0.97 * settled < joint.cost <= settled


def test_other_weights_go_on_from_the_same_place(term):
    joint = started(term, JointWeights(1.0, 1.0, 1e-3), 0.1, 0.05)
    joint.step(6)
    point, maps = joint.point.clone(), joint.sensitivities.clone()
    other = joint.with_weights(JointWeights(100.0, 1.0, 1e-3))
    assert torch.equal(other.point, point)
    other.step(6)
    # The first one stays as it was, with its own weights.
    assert torch.equal(joint.point, point)
    assert torch.equal(joint.sensitivities, maps)
    assert joint.weights.variation == 1.0
    assert other._prior(other.point)[0] / 100 < joint._prior(joint.point)[0]


def test_coils_that_stand_still_leave_their_error_in_the_maps(term):
    moved, still = (started(term, JointWeights(1e-3, 1e-3, 1e-6), 0.1, 0.3) for _ in range(2))
    for _ in range(4):
        moved.step(10)
        still.step(10, coils=False)
    assert errors(still)["T1"] > 3 * errors(moved)["T1"]
    assert errors(still)["coils"] > 0.06


def test_the_step_follows_the_objectives_own_gradient(term):
    """A step against a numerical derivative: along the direction found, the objective falls as its gradient says."""
    joint = started(term, JointWeights(2.0, 3.0, 1e-3), 0.1, 0.1)
    seen: dict[str, Any] = {}

    def keep(step, coils, cost):
        seen.update(step=step, cost=cost)
        return False

    joint._move = keep  # type: ignore[method-assign]
    joint.step(6, coils=False)
    here, step = joint.point, seen["step"]

    def objective(share: float) -> float:
        point = here + share * step
        misfit = term.cost_and_gradients(joint._signal(point).reshape(-1, *SHAPE), joint.sensitivities, of_maps=False)[0]
        return misfit + joint._prior(point)[0]

    assert objective(0) == pytest.approx(seen["cost"], rel=1e-6)
    slope = (objective(0.02) - objective(-0.02)) / 0.04
    # Conjugate gradients from zero: ⟨step, −gradient⟩ = ⟨step, H step⟩ > 0 after any number of iterations; the model predicts the fall.
    assert slope < 0
    assert objective(0.5) < objective(0)
    assert objective(1.0) < objective(0) + 0.25 * slope


def test_weights_hold_back(term):
    """More variation weight, less contrast between the tissues."""
    rough, flat = (started(term, JointWeights(weight, 10.0, 1e-3), 0.1, 0.0) for weight in (0.1, 1e5))
    for joint in (rough, flat):
        for _ in range(3):
            joint.step(8, coils=False)
    spread = [joint.values()[0]["T1"].log().std() for joint in (rough, flat)]
    assert spread[1] < 0.93 * spread[0]


DECAY = Protocol("decay", (4e-3, 9e-3, 15e-3))


def decayed(strength: float, rate: float, negative: bool = False) -> tuple[JointMaps, torch.Tensor]:
    """Three echoes of water (1 /s) about a square of 40 /s, fully sampled, one coil; noise scatters a voxel's rate by 9 /s."""
    n = 32
    rates = torch.ones(n, n)
    rates[12:20, 12:20] = 40
    generator = torch.Generator().manual_seed(4)
    model = signal_model(DECAY, negative)
    y = torch.linspace(-1, 1, n)[:, None].expand(n, n)
    inside = torch.zeros(n, n, dtype=torch.bool)
    inside[3:-3, 3:-3] = True
    values = {"R2star": rates.flatten(), "off_resonance": (5 * y).flatten()}
    images = (14.0 * inside.flatten() * model.signal(values)).reshape(3, n, n)
    images = images + torch.randn(images.shape, dtype=torch.complex64, generator=generator) * math.sqrt(2)
    spectra = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(images, dim=(-2, -1)), dim=(-2, -1), norm="ortho"), dim=(-2, -1))
    k = torch.zeros(3 * n, n, 2)
    k[..., 0] = torch.arange(n) - n // 2
    k[..., 1] = (torch.arange(n) - n // 2).repeat(3)[:, None]
    times, frames = torch.arange(3 * n, dtype=torch.float64), tuple(torch.arange(n) + n * t for t in range(3))
    echoes = torch.arange(3, dtype=torch.float64)
    problem = KSpaceProblem(spectra.reshape(1, -1, n), k, frames, times, echoes, (n, n), cartesian=True, protocol=DECAY)
    basis = signal_subspace(DECAY, 3).basis
    term = ContrastTerm(HybridSamples.of(problem), basis)
    ones = torch.ones(1, n, n, dtype=torch.complex64)
    joint = JointMaps(model, basis, term, ones, (200.0, 200.0), JointWeights(strength, 10.0, 1e-3, rate))
    bases = term.adjoint(ones)
    joint.start(fit_parameters(model, bases.flatten(1), basis), bases, 0.2)
    for _ in range(8):
        joint.step(8, coils=False)
    return joint, inside


def test_a_rate_has_a_weight_of_its_own():
    """Water's rate is smoothed far below its noise, the square's edge stays, and the amplitude's weight does not pull on the rate."""
    found = {weight: decayed(weight, 1.0)[0].values()[0]["R2star"].reshape(32, 32) for weight in (0.3, 10.0)}
    for rate in found.values():
        assert float(rate.min()) >= 0
        assert float(rate[5:10, 5:-5].std()) < 3
        assert float(rate[13:19, 13:19].mean()) > 20
    water = [float(rate[5:10, 5:-5].mean()) for rate in found.values()]
    assert abs(water[0] - water[1]) < 0.5
    joint, inside = decayed(1.0, 0.0, negative=True)
    scattered = joint.values()[0]["R2star"].reshape(32, 32)
    assert float(scattered[5:10, 5:-5].std()) > 5
    assert float((scattered[inside] < 0).float().mean()) > 0.2
    assert 0.6 < joint.rate_noise < 1.3


def test_values_at_a_bound_stand_still_and_leave_it_inwards():
    joint, _ = decayed(1.0, 0.0)
    at_bound = joint.point[0] <= joint.low[0]
    assert 0.1 < float(at_bound.float().mean()) < 0.7
    downhill = torch.ones_like(joint.point)
    assert bool((joint._free(-downhill) == 1).all())
    held = joint._free(downhill) == 0
    assert torch.equal(held[0], at_bound)
    assert not bool(held[-2:].any())


def test_conjugate_gradients_solve_a_small_system():
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(7, 7, generator=generator)
    system, right = root @ root.T + 0.5 * torch.eye(7), torch.randn(7, generator=generator)
    x, none = conjugate_gradients(lambda v, _: (system @ v, None), lambda v, _: (v / system.diagonal(), None), (right, None), 30)
    assert none is None
    torch.testing.assert_close(x, torch.linalg.solve(system, right), rtol=1e-3, atol=1e-3)
