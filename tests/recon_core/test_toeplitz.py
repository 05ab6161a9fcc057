"""Normal operators as convolutions: against the NUFFT pair and against the exact sum."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from recon_core.operators import blocks, subspace_normal, toeplitz
from recon_core.operators.fourier import prepared_transform, transform_by_torch
from recon_core.operators.nufft import Nufft
from recon_core.operators.subspace_normal import FrameSubspaceNormal, SubspaceNormal, subspace_form, subspace_kernel
from recon_core.operators.toeplitz import ToeplitzNormal, dirichlet, ifft_crop, pad_fft, point_spread_spectra, point_spread_spectrum

GOLDEN = math.pi * (math.sqrt(5) - 1) / 2
CASES = [
    ("radial", (18, 25)),
    ("radial", (31, 16)),
    ("spiral", (17, 15)),
    ("spiral", (12, 20)),
    ("cartesian", (14, 9)),
    ("radial3d", (7, 12, 9)),
    ("random", (8, 5, 6)),
]


def points_of(kind: str, shape: tuple[int, ...]) -> Tensor:
    """float32 ``[point, axis]``, cycles per field of view."""
    sizes = torch.tensor(shape[::-1], dtype=torch.float32)
    if kind == "radial":
        angle = (torch.arange(9) * GOLDEN)[:, None]
        radius = torch.arange(40) / 40 - 0.5
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(0, 1) * sizes
    if kind == "spiral":
        u = torch.linspace(0, 1, 120)
        turn = 30 * u + (torch.arange(3) * 2.0944)[:, None]
        return torch.stack([0.5 * u * turn.cos(), 0.5 * u * turn.sin()], dim=-1).flatten(0, 1) * sizes
    if kind == "cartesian":
        lines = torch.tensor([-5, -2, -1, 0, 0, 1, 4], dtype=torch.float32)
        x = torch.arange(shape[1], dtype=torch.float32) - shape[1] // 2
        return torch.stack(torch.meshgrid(x, lines, indexing="xy"), dim=-1).flatten(0, 1)
    if kind == "radial3d":
        direction = torch.randn(40, 1, 3)
        radius = (torch.arange(16) / 32)[:, None]
        return (direction / direction.norm(dim=-1, keepdim=True) * radius).flatten(0, 1) * sizes
    return (torch.rand(200, len(shape)) - 0.5) * sizes


def exact_matrix(points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The signal equation of docs/conventions.md as a complex128 matrix ``[point, pixel]``."""
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape]
    position = torch.stack([r.flatten() for r in torch.meshgrid(*axes, indexing="ij")])
    return torch.exp(-2j * torch.pi * (points.double() @ position.flip(0))) / math.sqrt(math.prod(shape))


def relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def maps_of(coils: int, shape: tuple[int, ...]) -> Tensor:
    maps = torch.randn(coils, *shape, dtype=torch.complex64)
    return maps / maps.abs().square().sum(0).sqrt()


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_convolution_is_the_exact_normal_operator(kind: str, shape: tuple[int, ...]) -> None:
    points = points_of(kind, shape)
    weights = torch.rand(points.shape[0]) + 0.1
    spectrum = point_spread_spectrum(points, weights, shape)
    assert spectrum.dtype == torch.float32
    assert spectrum.shape == tuple(2 * n for n in shape)
    image = torch.randn(1, *shape, dtype=torch.complex64)
    result = ToeplitzNormal(spectrum[None], torch.ones(1, *shape, dtype=torch.complex64))(image)[0]
    matrix = exact_matrix(points, shape)
    expected = (matrix.conj().T @ (weights * (matrix @ image.flatten().to(torch.complex128)))).reshape(shape)
    assert relative(result, expected) < 1e-4
    nufft = Nufft(points, shape)
    assert relative(result, nufft.adjoint(weights * nufft.forward(image[0]))) < 2e-4


@pytest.mark.parametrize("engine", ["torchkbnufft", "nudft"])
def test_other_engines_give_the_same_spectrum(engine: str) -> None:
    shape = (13, 10)
    points = points_of("radial", shape)
    weights = torch.rand(points.shape[0])
    expected = point_spread_spectrum(points, weights, shape, "finufft", 1e-6)
    assert relative(point_spread_spectrum(points, weights, shape, engine), expected) < 2e-4


@pytest.mark.parametrize("shape", [(10, 13), (6, 5, 8)])
def test_self_adjoint_and_not_negative(shape: tuple[int, ...]) -> None:
    points = points_of("random", shape)
    spectra = torch.stack([point_spread_spectrum(points[i::2], torch.rand(points[i::2].shape[0]), shape) for i in range(2)])
    normal = ToeplitzNormal(spectra, maps_of(3, shape))
    x, y = (torch.randn(2, *shape, dtype=torch.complex64) for _ in range(2))
    left, right = torch.vdot(normal(x).flatten(), y.flatten()), torch.vdot(x.flatten(), normal(y).flatten())
    assert abs(left - right) < 1e-5 * float(normal(x).norm() * y.norm())
    energy = torch.vdot(x.flatten(), normal(x).flatten())
    assert float(energy.real) > 0
    assert abs(float(energy.imag)) < 1e-5 * float(energy.real)


@pytest.mark.parametrize("shape", [(18, 25), (7, 12, 9)])
def test_spectra_of_frames_are_those_of_each(shape: tuple[int, ...]) -> None:
    """Whatever the number of threads, to the last bit."""
    points = [points_of("random", shape)[:count] for count in (200, 120, 0, 7)]
    weights = [torch.rand(len(p)) for p in points]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(point_spread_spectra(points, weights, shape))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)
    for spectrum, p, w in zip(results[0], points, weights, strict=True):
        torch.testing.assert_close(spectrum, point_spread_spectrum(p, w, shape))


def test_frames_and_slices_keep_apart() -> None:
    """Frame t is convolved with spectrum t, with every coil's map before and its conjugate after."""
    shape = (11, 8)
    points = [points_of("radial", shape)[i * 120 : (i + 1) * 120] for i in range(3)]
    spectra = torch.stack([point_spread_spectrum(p, torch.ones(120), shape) for p in points])
    maps = maps_of(2, shape)
    images = torch.randn(3, *shape, dtype=torch.complex64)
    result = ToeplitzNormal(spectra, maps)(images)
    for t, p in enumerate(points):
        nufft = Nufft(p, shape)
        expected = (maps.conj() * nufft.adjoint(nufft.forward(maps * images[t]))).sum(0)
        assert relative(result[t], expected) < 2e-4
    part = ToeplitzNormal(spectra, maps)(images[1:], slice(1, 3))
    torch.testing.assert_close(part, result[1:])
    with pytest.raises(RuntimeError):
        ToeplitzNormal(spectra[:2], maps)(images)


@pytest.mark.parametrize("shape", [(10, 7), (5, 6, 4), (3, 256), (3, 8, 16)])
def test_empty_lines_left_out_change_nothing(shape, monkeypatch) -> None:
    """As on grids beyond the cache; the last two get room whose planes are no whole pages apart."""
    spectra, maps = torch.rand(6, *(2 * n for n in shape)), maps_of(2, shape)
    normal, images = ToeplitzNormal(spectra, maps), torch.randn(6, *shape, dtype=torch.complex64)
    whole = normal(images)
    calls = []
    monkeypatch.setattr(toeplitz, "IN_CACHE", 10)

    def prepare(source: Tensor, target: Tensor, axes: Sequence[int], inverse: bool = False) -> Callable[[], object]:
        calls.append(tuple(axes))
        return prepared_transform(source, target, axes, inverse)

    monkeypatch.setattr(toeplitz, "prepared_transform", prepare)
    torch.testing.assert_close(normal(images), whole)
    assert {len(axes) for axes in calls} == {1}
    assert toeplitz._room(images, 6, spectra.shape[1:]).stride(1) % 512


@pytest.mark.parametrize("form", [SubspaceNormal, FrameSubspaceNormal])
@pytest.mark.parametrize("shape", [(9, 12), (5, 6, 4)])
def test_subspace_form_is_the_sum_over_frames(shape: tuple[int, ...], form) -> None:
    """Σ_t V_kt Eₜᴴ Eₜ Σ_l V_lt U_l, frame by frame through the exact matrix."""
    rank, frames, coils = 3, 5, 2
    maps = maps_of(coils, shape)
    temporal = torch.randn(rank, frames)
    bases = torch.randn(rank, *shape, dtype=torch.complex64)
    points = [points_of("random", shape)[t * 40 : (t + 1) * 40] for t in range(frames)]
    weights = torch.rand(frames, 40) + 0.1
    spectra = torch.stack([point_spread_spectrum(p, w, shape) for p, w in zip(points, weights, strict=True)])
    normal = form(spectra, maps, temporal)
    result = normal(bases)
    expected = torch.zeros(rank, *shape, dtype=torch.complex128)
    for t in range(frames):
        matrix = exact_matrix(points[t], shape)
        image = (temporal[:, t].reshape(-1, *[1] * len(shape)) * bases).sum(0)
        for coil in maps:
            samples = matrix @ (coil * image).flatten().to(torch.complex128)
            back = coil.conj() * (matrix.conj().T @ (weights[t] * samples)).reshape(shape)
            expected += temporal[:, t].reshape(-1, *[1] * len(shape)) * back
    assert relative(result, expected) < 1e-4
    other = torch.randn_like(bases)
    left, right = torch.vdot(result.flatten(), other.flatten()), torch.vdot(bases.flatten(), normal(other).flatten())
    assert abs(left - right) < 1e-5 * float(result.norm() * other.norm())


def test_subspace_with_the_identity_is_frame_wise() -> None:
    shape = (8, 7)
    spectra = torch.stack([point_spread_spectrum(points_of("random", shape), torch.rand(200), shape) for _ in range(3)])
    maps = maps_of(2, shape)
    images = torch.randn(3, *shape, dtype=torch.complex64)
    torch.testing.assert_close(SubspaceNormal(spectra, maps, torch.eye(3))(images), ToeplitzNormal(spectra, maps)(images))


@pytest.mark.parametrize(("rank", "frames", "form"), [(4, 4, FrameSubspaceNormal), (4, 5, FrameSubspaceNormal), (4, 6, SubspaceNormal)])
def test_of_few_frames_the_frames_are_convolved(rank, frames, form) -> None:
    assert type(subspace_form(torch.rand(frames, 12, 18), maps_of(2, (6, 9)), torch.randn(rank, frames))) is form


@pytest.mark.parametrize("form", [SubspaceNormal, FrameSubspaceNormal, lambda spectra, maps, _: ToeplitzNormal(spectra[:3], maps)])
def test_other_sensitivities_take_their_place(form) -> None:
    shape, rank = (6, 9), 3
    spectra, maps, temporal = torch.rand(4, 12, 18), maps_of(2, shape), torch.randn(rank, 4)
    bases = torch.randn(rank, *shape, dtype=torch.complex64)
    turned = maps * torch.exp(3j * torch.rand(shape))
    normal = form(spectra, maps, temporal)
    before = normal(bases)
    normal.sensitivities = turned
    after = normal(bases)
    assert relative(after, before) > 0.1
    torch.testing.assert_close(after, form(spectra, turned, temporal)(bases))


@pytest.mark.parametrize("doubled", [(6, 10), (4, 6, 10)])
def test_kernel_has_its_lines_along_the_first_axis(doubled: tuple[int, ...]) -> None:
    spectra, temporal = torch.randn(4, *doubled), torch.randn(2, 4)
    lines = spectra.reshape(4, doubled[0], -1)
    torch.testing.assert_close(subspace_kernel(spectra, temporal), torch.einsum("kt,lt,tpq->qpkl", temporal, temporal, lines))


@pytest.mark.parametrize("shape", [(9, 12), (3, 5, 4)])
def test_images_do_not_depend_on_threads_nor_on_coils_at_a_time(shape, monkeypatch) -> None:
    spectra, maps, temporal = torch.rand(6, *(2 * n for n in shape)), maps_of(5, shape), torch.randn(4, 6)
    normal, bases = SubspaceNormal(spectra, maps, temporal), torch.randn(4, *shape, dtype=torch.complex64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(normal(bases).clone())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)
    monkeypatch.setattr(subspace_normal, "_MIXED_VALUES", 4 * 2 * math.prod(shape))
    torch.testing.assert_close(normal(bases), results[0].clone())


@pytest.mark.parametrize("shape", [(9, 12), (3, 5, 4)])
def test_all_at_once_as_on_a_gpu_gives_the_same(shape, monkeypatch) -> None:
    spectra, maps, temporal = torch.rand(6, *(2 * n for n in shape)), maps_of(5, shape), torch.randn(4, 6)
    normals = SubspaceNormal(spectra, maps, temporal), ToeplitzNormal(spectra, maps)
    given = [torch.randn(count, *shape, dtype=torch.complex64) for count in (4, 6)]
    expected = [normal(images) for normal, images in zip(normals, given, strict=True)]
    for module in (blocks, subspace_normal, toeplitz):
        monkeypatch.setattr(module, "through_cache", lambda _: False)
    for module in (subspace_normal, toeplitz):
        monkeypatch.setattr(module, "prepared_transform", functools.partial(functools.partial, transform_by_torch))
    for normal, images, wanted in zip(normals, given, expected, strict=True):
        torch.testing.assert_close(normal(images), wanted)


@pytest.mark.parametrize("shape", [(6, 9), (3, 4, 5)])
def test_padded_transform_and_its_inverse(shape: tuple[int, ...]) -> None:
    dim = len(shape)
    images = torch.randn(2, *shape, dtype=torch.complex64)
    expected = torch.fft.fftn(images, s=[2 * n for n in shape], dim=tuple(range(-dim, 0)))
    torch.testing.assert_close(pad_fft(images, dim), expected)
    torch.testing.assert_close(ifft_crop(pad_fft(images, dim), dim), images)


@pytest.mark.parametrize("n", [7, 96])
def test_the_dirichlet_kernel_is_its_sum_at_the_pole_too(n):
    """Points on the grid, beside it by one unit of single precision, halfway, and at both ends."""
    at = torch.tensor([0.0, 3.0, 3.0000002, 2.9999998, 0.5, -0.5, 1e-6, -1e-8, -n, n, n - 0.5, n - 1e-5])
    points = torch.cat([at, (2 * torch.rand(50, generator=torch.Generator().manual_seed(0)) - 1) * n])
    steps, grid = torch.arange(1 - n, n, dtype=torch.float64), torch.arange(2 * n, dtype=torch.float64)
    angle = math.pi / n * (grid[:, None] - points.double()[:, None, None]) * steps
    torch.testing.assert_close(dirichlet(points, n).double(), angle.cos().sum(-1), rtol=0, atol=4e-7 * (2 * n - 1))
