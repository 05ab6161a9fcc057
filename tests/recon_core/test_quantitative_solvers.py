"""What the solvers of multi-contrast protocols have in common, and what each promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from gadgets.bench.map_scans import whitened_problem
from recon_core.calibration import calibrate
from recon_core.calibration.signal_subspace import signal_subspace
from recon_core.errors import DataError, SettingError
from recon_core.fields.parameters import within
from recon_core.metrics import map_error
from recon_core.operators.contrasts import HybridSamples, exact_cost
from recon_core.options import build
from recon_core.phantoms.relaxometry import CAPS, RelaxometryScan, RelaxometrySettings, complementary_masks, simulate
from recon_core.problem import KSpaceProblem
from recon_core.reconstruct import ReconstructionSettings, reconstruct
from recon_core.signal_models import Protocol
from recon_core.solvers import registry
from recon_core.solvers.base import Solver
from recon_core.solvers.field_blocks import FieldBlocks
from recon_core.solvers.lorein import Lorein, LoreinSettings
from recon_core.solvers.lrt import SELECTED_STRENGTHS
from recon_core.solvers.quantitative import QuantitativeSolver

SMALL = {"levels": 5, "log2_table": 10, "channels": 8, "coil_start": "espirit"}
QUICK: dict[str, dict[str, Any]] = {
    "parameter_fit": {},
    "lrt": {"steps": 12, "strength": 0.05},
    "summit": {"steps": 6, **SMALL},
    "lorein": {"low_rank_steps": 10, "newton_steps": 2, "inner_steps": 4, "strength": 3.0},
    "zero_deepsub": {"epochs": 3, "blocks": 1, "channels": 8, "iterations": 5},
    "joint_maple": {"epochs": 3, "blocks": 1, "channels": 8, "iterations": 6},
}
FIELDS: dict[str, dict[str, Any]] = {
    "summit": {"steps": 6, **SMALL},
    "lorein": {"form": "fields", "steps": 6, "pretraining": 4, **SMALL},
}
EVERY = registry.quantitative_names()


@pytest.fixture(scope="module")
def scan() -> RelaxometryScan:
    size = {"matrix": (4, 20, 16), "field_of_view": (40.0, 220.0, 200.0), "coils": 4, "echoes": 4}
    return simulate(RelaxometrySettings(acceleration=4.0, snr=60.0, **size))


@pytest.fixture(scope="module")
def calibrated(scan) -> KSpaceProblem:
    return calibrate(whitened_problem(scan), 4)[0]


def made(name: str, seed: int = 0, **changes: Any) -> Solver[Any]:
    cls = registry.solver_class(name)
    return cls(build(cls.Settings, {**QUICK[name], **changes}), seed=seed)


def finished(name: str, problem: KSpaceProblem, seed: int = 0, **changes: Any) -> Solver[Any]:
    solver = made(name, seed, **changes)
    solver.start(problem)
    while not solver.done:
        solver.update()
    return solver


@pytest.mark.parametrize("name", EVERY)
def test_images_and_maps(name, calibrated):
    solver = finished(name, calibrated)
    assert solver.step == solver.total_steps
    everything = solver.images()
    assert everything.images.shape == (20, 4, 20, 16)
    some = solver.images(torch.tensor([3.0, 17.0], dtype=torch.float64))
    torch.testing.assert_close(some.images, everything.images[[3, 17]])
    maps = {m.name: m for m in solver.maps()}
    assert set(maps) == {"T1", "T2star", "off_resonance", "PD", "phase"}
    assert bool((maps["T1"].values >= 0).all())
    again = finished(name, calibrated)
    torch.testing.assert_close(again.images().images, everything.images, rtol=0, atol=0)
    with pytest.raises(DataError, match="contrast numbers"):
        solver.images(torch.tensor([2.5], dtype=torch.float64))
    with pytest.raises(DataError, match="protocol"):
        made(name).start(calibrated.replace(protocol=None))
    assert registry.solver_class(name).name == name
    assert name not in registry.names()


def test_each_method_beats_the_plainer_one(scan, calibrated):
    """Zero filling, total variation on bases, maps fitted to k-space: each has clearly smaller errors of every map than the one before."""
    errors = {}
    for name, changes in (
        ("parameter_fit", {}),
        ("lrt", {"steps": 40}),
        ("lorein", {"low_rank_steps": 30, "newton_steps": 6, "inner_steps": 8}),
    ):
        maps = {m.name: m.values.numpy() for m in finished(name, calibrated, **changes).maps()}
        errors[name] = np.array(
            [map_error(maps[n], scan.truth[n], scan.brain, CAPS.get(n), free_scale=n == "PD") for n in ("T1", "T2star", "PD")]
        )
    assert (errors["lrt"] < 0.8 * errors["parameter_fit"]).all()
    assert errors["lorein"][0] < 0.97 * errors["lrt"][0]
    assert (errors["lorein"][1:] < 0.85 * errors["lrt"][1:]).all()


@pytest.mark.parametrize(
    ("name", "changes"), [("zero_deepsub", {"epochs": 12, "channels": 16}), ("joint_maple", {"epochs": 30, "blocks": 2})]
)
def test_networks_trained_on_the_scan_beat_zero_filling(name, changes, scan, calibrated):
    """Images and maps; readouts kept for validation are predicted better than before training, and another seed keeps others."""
    plain, before, after = (
        finished("parameter_fit", calibrated),
        finished(name, calibrated, epochs=1),
        finished(name, calibrated, **changes),
    )

    def errors(solver: Any) -> np.ndarray:
        maps = {m.name: m.values.numpy() for m in solver.maps()}
        assert all(np.isfinite(m).all() for m in maps.values())
        return np.array([map_error(maps[n], scan.truth[n], scan.brain, CAPS.get(n), free_scale=n == "PD") for n in ("T1", "T2star", "PD")])

    assert (errors(after) < errors(plain)).all()
    assert errors(after)[1] < 0.8 * errors(plain)[1]
    assert after.best < before.best  # type: ignore[attr-defined]
    assert after.objective() is not None
    other = finished(name, calibrated, seed=1)
    assert not torch.equal(other.bases, finished(name, calibrated).bases)  # type: ignore[attr-defined]


def test_data_consistency_and_its_gradient(calibrated):
    """The derivative of a solved system is that of the solution."""
    solver: Any = made("zero_deepsub", iterations=200, rank=3)
    solver.start(calibrated)
    generator = torch.Generator().manual_seed(1)
    towards, ahead, slope = (torch.randn(solver.bases.shape, dtype=torch.complex64, generator=generator) for _ in range(3))
    weight = torch.tensor(0.3)

    def value(share: float, more: float = 0.0) -> float:
        found = solver._consistent(solver.term, towards + share * ahead, weight + more)
        return float((slope.conj() * found).real.sum())

    z, mu = towards.clone().requires_grad_(True), weight.clone().requires_grad_(True)
    (slope.conj() * solver._consistent(solver.term, z, mu)).real.sum().backward()
    assert float((z.grad.conj() * ahead).real.sum()) == pytest.approx((value(0.5) - value(-0.5)), rel=2e-3)
    assert float(mu.grad) == pytest.approx((value(0, 0.01) - value(0, -0.01)) / 0.02, rel=2e-2)


def test_held_out_readouts_choose_the_strength(scan):
    settings = ReconstructionSettings(solver="lrt", coils=4, device="cpu", holdout=0.1)
    result = reconstruct(whitened_problem(scan), settings, {"steps": 10}, times=torch.tensor([0.0, 5.0], dtype=torch.float64))
    tried = {t["settings"]["strength"]: t["held_out_error"] for t in result.report["tried"]}
    assert set(tried) == set(SELECTED_STRENGTHS)
    assert result.report["settings"]["strength"] == min(tried, key=tried.__getitem__)
    assert result.series.images.shape[0] == 2
    assert {m.name for m in result.series.maps} >= {"T1", "T2star", "PD"}
    with pytest.raises(DataError, match="for a multi-contrast protocol"):
        reconstruct(whitened_problem(scan).replace(protocol=None), ReconstructionSettings(solver="lrt", device="cpu"))


@pytest.mark.parametrize("name", registry.names())
def test_a_protocol_is_refused_by_methods_of_dynamic_scans(name, scan):
    """The order of contrasts is no time: neither latents nor smoothness along time mean anything there."""
    words = f"{name} is for a dynamic scan" if 3 in registry.solver_class(name).dims else f"{name} handles"
    with pytest.raises(DataError, match=words):
        reconstruct(whitened_problem(scan), ReconstructionSettings(solver=name, device="cpu"))


@pytest.mark.parametrize("name", ["summit", "lorein"])
def test_fields_fit_the_data_better_and_better(name, calibrated):
    solver = made(name, **{**FIELDS[name], "steps": 16}, table_learning_rate=2e-2, learning_rate=5e-3, parameter_start="constant")
    solver.start(calibrated)
    costs = []
    while not solver.done:
        solver.update()
        costs.append(dict(solver.parts))
    first = next(c for c in costs if "dc2" in c)
    assert costs[-1]["dc2"] < 0.85 * first["dc2"]
    assert np.isfinite([list(c.values())[-1] for c in costs]).all()
    assert {"wnnm", "prior", "dc2"} <= set(costs[-1])
    if name == "lorein":
        assert costs[-1]["dc1"] < 0.9 * costs[0]["dc1"]
        assert set(costs[0]) == {"dc1"}
    maps = solver.coils().detach()
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(maps.shape[1:]), atol=1e-3, rtol=0)


def test_summit_starts_at_the_zero_filled_fit_with_the_amplitude_that_predicts_best(calibrated):
    solver = made("summit")
    solver.start(calibrated)
    with torch.no_grad():
        images, maps = solver.parameters.projected(solver.basis)[0], solver.coils()
        costs = [float(solver.term.cost(factor * images, maps)) / solver.term.energy for factor in (0.9, 1.0, 1.1)]
    assert costs[1] < min(costs[0], costs[2])
    assert costs[1] < 0.5


def test_a_bound_lets_values_come_back():
    raw = torch.tensor([-2.0, -2.0, 0.5, 3.0, 3.0], requires_grad=True)
    pull = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    clamped = within(raw, -1.0, 1.0)
    assert clamped.tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]
    (clamped * pull).sum().backward()
    # Descent goes against the gradient: the first and the last would leave their bounds, the second and the fourth come back.
    assert raw.grad.tolist() == [0.0, -1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("phase", ["linear", "echo"])
def test_both_forms_of_the_parameter_blocks_data_term(phase, calibrated):
    """On the K×K form the data term misses only what lies outside span Φ, and its gradient points the same way."""
    costs, gradients = {}, {}
    for dc2 in ("subspace", "exact"):
        solver = made("summit", dc2=dc2, phase=phase, wnnm=0.0)
        solver.start(calibrated)
        parts: dict[str, float] = {}
        maps = solver.coils()
        loss = solver._parameter_terms(None, maps, parts)
        inside, outside = solver.parameters.projected(solver.basis)
        prior = outside / (inside.detach().abs().square().sum() + 1e-12)
        weights = [p for n, p in solver.parameters.named_parameters() if "encoding" not in n]
        found = torch.autograd.grad(loss - prior, weights, allow_unused=True)
        costs[dc2] = parts["dc2"]
        gradients[dc2] = torch.cat([g.flatten() for g in found if g is not None])
    assert costs["subspace"] == pytest.approx(costs["exact"], rel=0.02)
    cosine = torch.nn.functional.cosine_similarity(gradients["subspace"], gradients["exact"], dim=0)
    assert float(cosine) > 0.98
    ratio = torch.linalg.vector_norm(gradients["subspace"]) / torch.linalg.vector_norm(gradients["exact"])
    assert float(ratio) == pytest.approx(1, abs=0.1)


def test_exact_equals_subspace_where_the_basis_is_complete(calibrated):
    solver = made("summit", rank=20)
    solver.start(calibrated)
    assert solver.basis.shape == (20, 20)
    with torch.no_grad():
        inside, outside = solver.parameters.projected(solver.basis)
        exact = exact_cost(HybridSamples.of(calibrated), solver.parameters.series(), solver.coils(), torch.arange(20))
        assert float(solver.term.cost(inside, solver.coils())) == pytest.approx(float(exact), rel=1e-4)
        assert float(outside) < 1e-4 * float(inside.abs().square().sum())


def test_one_phase_an_echo(calibrated):
    with pytest.raises(SettingError, match="form=fields"):
        made("lorein", phase="echo").start(calibrated)
    maps = {m.name for m in finished("lorein", calibrated, **FIELDS["lorein"], phase="echo").maps()}
    assert maps == {"T1", "T2star", "PD", "phase"}


def test_pretraining_hands_on_its_fit(calibrated):
    solver = made("lorein", **{**FIELDS["lorein"], "pretraining": 12, "steps": 1}, learning_rate=5e-3)
    assert isinstance(solver, FieldBlocks)
    solver.start(calibrated)
    while not solver.done:
        solver.update()
    fitted = {m.name: m.values for m in QuantitativeSolver.maps(solver)}
    found = {m.name: m.values for m in solver.maps()}
    inside = (fitted["T1"] > 0) & (found["T1"] > 0)
    ratio = (found["T1"][inside] / fitted["T1"][inside]).log()
    assert float(ratio.abs().median()) < 0.4


def test_simulation_needs_three_axes():
    with pytest.raises(Exception, match="Give three"):
        RelaxometrySettings(matrix=(8, 8))
    basis = signal_subspace(simulate_protocol(), 3).basis
    assert basis.shape == (20, 3)


@pytest.mark.parametrize(("contrasts", "acceleration"), [(1280, 480.0), (1280, 160.0), (30, 27.0)])
def test_no_contrast_goes_without_a_line(contrasts, acceleration):
    """A chain refuses a protocol with a contrast that has no readout."""
    for seed in range(3):
        masks = complementary_masks((8, 64), contrasts, acceleration, np.random.default_rng(seed))
        assert min(len(mask) for mask in masks) >= 1
        assert sum(len(mask) for mask in masks) == round(8 * 64 / acceleration * contrasts)
        assert all(len(np.unique(mask)) == len(mask) for mask in masks)


def simulate_protocol():
    from recon_core.phantoms.relaxometry import paper_protocol

    protocol = paper_protocol("set1", 4)
    assert math.isclose(protocol.echo_times[-1], 29.6e-3)
    return protocol


def test_the_maps_weight_goes_up_while_that_helps_else_down(calibrated) -> None:
    def after(best: float, *tried: float) -> list[float | None]:
        found = Lorein.refinements(
            LoreinSettings(strength=best), LoreinSettings(), [LoreinSettings(strength=value) for value in tried], None
        )
        return [settings.strength for settings in found]

    assert [c.strength for c in Lorein.candidates(LoreinSettings(), calibrated)] == [3.0]
    assert after(3.0, 3.0) == [10.0]
    assert after(10.0, 3.0, 10.0) == [30.0]
    assert after(3.0, 3.0, 10.0) == [1.0]
    assert after(3.0, 3.0, 10.0, 1.0) == []
    assert after(1.0, 3.0, 10.0, 1.0) == [0.3]
    assert after(1000.0, 300.0, 1000.0) == []
    given = LoreinSettings(strength=5.0)
    assert Lorein.candidates(given, calibrated) == [given]
    assert Lorein.refinements(given, given, [given], None) == []


def test_a_rates_weight_is_chosen_after_the_others(calibrated) -> None:
    decay = calibrated.replace(protocol=Protocol("decay", tuple(0.004 + 0.003 * t for t in range(calibrated.n_frames))))
    (first,) = Lorein.candidates(LoreinSettings(), decay)
    assert (first.strength, first.rate_strength) == (3.0, 1.0)
    tried = [first]
    for strength, rate in ((10.0, 1.0), (1.0, 1.0), (3.0, 3.0), (3.0, 0.3)):
        (following,) = Lorein.refinements(first, LoreinSettings(), tried, None)
        assert (following.strength, following.rate_strength) == (strength, rate)
        tried.append(following)
    assert Lorein.refinements(first, LoreinSettings(), tried, None) == []
    given = LoreinSettings(rate_strength=2.0)
    assert Lorein.refinements(Lorein.candidates(given, decay)[0], given, [], decay)[0].strength == 10.0
    assert Lorein.candidates(LoreinSettings(), calibrated)[0].rate_strength is None
