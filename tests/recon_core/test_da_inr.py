"""DA-INR: deformation and canonical space, features, and images between frames and between pixels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recon_core.calibration import calibrate
from recon_core.encodings.hash_grid import HashGrid, HashGridLayout
from recon_core.encodings.image_features import MultiScaleGradients
from recon_core.errors import DataError, MissingPartError, SettingError
from recon_core.fields.deformation import DeformationField, DeformationSizes
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import NoSettings
from recon_core.solvers.da_inr import DaInr, DaInrSettings
from recon_core.solvers.gridding import Gridding

LAYOUT = HashGridLayout(2, levels=3, features=2, log2_table=9, base=4, growth=1.6)
SMALL: dict[str, Any] = {"levels": 4, "width": 12, "depth": 2, "log2_table": 10, "base_resolution": 4, "time_octaves": 2, "steps": 8}


def field(features: int = 2, sees: bool = True) -> DeformationField:
    made = DeformationField(LAYOUT, DeformationSizes(10, 2, 4, 3, features, sees), seed=1)
    made.encoding.params.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    return made


def solver(problem: KSpaceProblem, **changes: Any) -> DaInr:
    made = DaInr(DaInrSettings(**{**SMALL, **changes}), engine="finufft")
    made.start(problem)
    return made


@pytest.fixture(scope="module")
def scan(toy: ModuleType) -> KSpaceProblem:
    return calibrate(toy.toy_problem(n_frames=8, shape=(22, 18), coils=2, per_frame=5, noise=0.01)[0], 2)[0]


def test_deformation_starts_as_none_and_stays_inside() -> None:
    made, points, times = field(), torch.rand(9, 2), torch.tensor([0.1, 0.8])
    encoded = made.encoded(points, times)
    assert encoded.shape == (2, 9, 2 * 2 * 4 + 2 * 3)
    torch.testing.assert_close(made.displaced(points, encoded), points.expand(2, -1, -1))
    torch.nn.init.constant_(made.deformation[-1].bias, 0.4)
    moved = made.displaced(points, encoded)
    torch.testing.assert_close(moved, (points + 0.4).clamp_max(1).expand(2, -1, -1))


def test_signal_is_the_canonical_networks_at_the_displaced_point() -> None:
    made, points, times = field(sees=False), torch.rand(9, 2), torch.tensor([0.1, 0.8])
    torch.nn.init.normal_(made.deformation[-1].weight, std=0.2)
    features = torch.randn(2, 9, 2)
    place = made.displaced(points, made.encoded(points, times))
    seen = torch.cat([made.encoding(place.reshape(-1, 2)).reshape(2, 9, -1), features], dim=2)
    torch.testing.assert_close(torch.view_as_real(made(points, times, features)), made.canonical(seen))


def test_gradient_reaches_the_displacement_through_the_hash_grid() -> None:
    """Against finite differences, away from the grid's lines."""
    grid = HashGrid(LAYOUT, seed=2)
    grid.params.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    points = torch.tensor([[0.31, 0.62], [0.77, 0.15]], requires_grad=True)
    weights = torch.randn(2, 6)
    (grid(points) * weights).sum().backward()
    step = 1e-3
    for point in range(2):
        for axis in range(2):
            shift = torch.zeros(2, 2)
            shift[point, axis] = step
            with torch.no_grad():
                change = float(((grid(points + shift) - grid(points - shift)) * weights).sum()) / (2 * step)
            assert float(points.grad[point, axis]) == pytest.approx(change, rel=1e-2, abs=1e-2)


def test_loss_is_l1_and_relative_to_the_samples(scan: KSpaceProblem) -> None:
    made = solver(scan, batch_frames=8)
    made.update()
    made.field.canonical[-1].weight.data.zero_()
    made.field.canonical[-1].bias.data.zero_()
    assert made._backward(list(range(8))) == pytest.approx(1.0, rel=1e-4)
    image = torch.randn(22, 18, dtype=torch.complex64)
    residual = torch.view_as_real(made.frames.residual(image, 3)).abs().sum()
    assert float(made._misfit(image, 3)) == pytest.approx(float(residual) / made.frames.magnitude, rel=1e-5)


def test_features_are_those_of_the_gridded_frames(scan: KSpaceProblem) -> None:
    made = solver(scan)
    gridded = Gridding(NoSettings(), engine="finufft")
    gridded.start(scan)
    gridded.update()
    expected = MultiScaleGradients()(gridded.images().images.abs() / made.frames.scale)
    torch.testing.assert_close(made.image_features, expected, rtol=1e-3, atol=1e-4)
    assert "fixed multi-scale gradients, not MDSR" in made.images().notes[0]
    bare = solver(scan, extractor="none")
    assert bare.image_features.shape == (8, 0, 22, 18)
    assert bare.images().notes == ("no image features",)


def test_octaves_in_time_and_features_are_chosen_one_after_the_other(scan: KSpaceProblem) -> None:
    """The paper's octaves are tried only where more of them helped, and nothing that was set."""
    asked = DaInrSettings()
    first = DaInr.candidates(asked, scan)
    assert [(made.time_octaves, made.extractor) for made in first] == [(4, "gradients"), (2, "gradients")]
    for best, last in ((first[0], [6]), (first[1], [])):
        (bare,) = DaInr.refinements(best, asked, first, None)
        assert (bare.time_octaves, bare.extractor) == (best.time_octaves, "none")
        more = DaInr.refinements(bare, asked, [*first, bare], None)
        assert [made.time_octaves for made in more] == last
        assert all(made.extractor == "none" and DaInr.refinements(made, asked, [*first, bare, made], None) == [] for made in more)
    given = DaInrSettings(time_octaves=3, extractor="mdsr")
    assert DaInr.candidates(given, scan) == [given]
    assert DaInr.refinements(given, given, [given], None) == []


def test_octaves_of_space_end_where_the_matrix_does(scan: KSpaceProblem) -> None:
    """The largest of 22 pixels: 1 … 2⁴ half cycles, for 2⁵ would be more than 11 cycles."""
    assert solver(scan).field.sizes.space_octaves == 5
    assert solver(scan, space_octaves=3).field.sizes.space_octaves == 3


def test_features_of_a_frame_without_data_are_its_neighbours(scan: KSpaceProblem) -> None:
    keep = torch.ones(scan.n_readouts, dtype=torch.bool)
    keep[scan.frames[3]] = False
    keep[scan.frames[7]] = False
    features = solver(scan.keep_readouts(keep)).image_features
    torch.testing.assert_close(features[3], (features[2] + features[4]) / 2)
    torch.testing.assert_close(features[7], features[6])


def test_mdsr_by_file(scan: KSpaceProblem, tmp_path: Path, toy_mdsr: dict[str, torch.Tensor]) -> None:
    with pytest.raises(SettingError, match="weights_file"):
        solver(scan, extractor="mdsr")
    with pytest.raises(MissingPartError, match="does not exist"):
        solver(scan, extractor="mdsr", weights_file=str(tmp_path / "absent.pt"))
    for content in (b"", b"not weights", b"\x80"):
        (tmp_path / "text.pt").write_bytes(content)
        with pytest.raises(DataError, match=r"weights_file: .*cannot be read"):
            solver(scan, extractor="mdsr", weights_file=str(tmp_path / "text.pt"))
    torch.save(toy_mdsr, tmp_path / "mdsr.pt")
    made = solver(scan, extractor="mdsr", weights_file=str(tmp_path / "mdsr.pt"))
    assert made.image_features.shape == (8, 4, 22, 18)
    made.update()
    assert made.images().notes == ()


@pytest.fixture
def toy_mdsr() -> dict[str, torch.Tensor]:
    from recon_core.encodings.image_features import Mdsr

    return Mdsr(4, 2, 1).state_dict()


def test_a_finer_matrix_shows_the_same_object(scan: KSpaceProblem) -> None:
    """Spatial interpolation: every second pixel of the doubled matrix is one of the series' own; between them is the network's."""
    made = solver(scan, steps=30, learning_rate=1e-2, band_limit=False)
    while not made.done:
        made.update()
    series, fine = made.images().images, made.enlarged((44, 36)).images
    assert fine.shape == (8, 44, 36)
    torch.testing.assert_close(fine[:, ::2, ::2], series, rtol=1e-3, atol=1e-4 * float(series.abs().max()))
    same = made.enlarged((22, 18))
    assert torch.equal(same.images, series)
    assert same.notes == made.images().notes
    odd = made.enlarged((33, 27), scan.frame_times[2:3] + 1e-3).images
    assert odd.shape == (1, 33, 27)
    # The centre lies on pixel N//2 of either matrix.
    torch.testing.assert_close(
        made.enlarged((33, 27)).images[:, 16, 13], series[:, 11, 9], rtol=1e-3, atol=1e-4 * float(series.abs().max())
    )
