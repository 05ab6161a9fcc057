"""A head with realistic relaxation times, and multi-contrast k-space of it without inverse crime.

The object lives on a grid at least twice as fine as the image in every direction, with edges softened over about one image pixel and
texture inside the tissues; its k-space is computed there and cut to what the protocol encodes, coil by coil, with correlated noise.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon_core.errors import DataError
from recon_core.phantoms.coils import LoopArray
from recon_core.phantoms.settings import RelaxometrySettings as RelaxometrySettings
from recon_core.signal_models import Protocol, SignalModel, draw_tissues, signal_model

PHANTOM_VERSION = "head 1"
_NOISE_SAMPLES = 4096
_COMPONENTS = 64
_COMPONENT_ERROR = 1e-4
_CHUNK = 1 << 15

# Proton density, T1, T2, T2* (s) at 3 T, rounded from the literature's ranges.
_TISSUES = {
    "scalp": (0.85, 0.40, 0.060, 0.028),
    "csf": (1.00, 4.00, 1.500, 0.180),
    "grey": (0.82, 1.45, 0.095, 0.055),
    "white": (0.70, 0.85, 0.070, 0.048),
    "deep": (0.78, 1.15, 0.068, 0.033),
    "lesion": (0.88, 1.70, 0.140, 0.090),
    "vessel": (0.95, 1.75, 0.120, 0.040),
}
CAPS = {"T1": 3.5, "T2": 0.2, "T2star": 0.1}
"""Values above are cut before scoring (LoREIN), in seconds."""


@dataclasses.dataclass(frozen=True, eq=False)
class RelaxometryScan:
    """A simulated scan and its truth.

    Attributes:
        settings: as asked.
        protocol: what was played out.
        samples: complex64 ``[coil, line, x]``, k = 0 at index N//2, noise included.
        place: int64 ``[line, 2]``, kz and ky of every line, from 0.
        contrast: int64 ``[line]``.
        noise: complex64 ``[coil, sample]``, of the same covariance.
        truth: float32 maps ``[z, y, x]`` by name; PD includes the coils' whitened root-sum-of-squares, phase is not among them.
        brain: bool ``[z, y, x]``, where maps are scored.
        sensitivities: complex64 ``[coil, z, y, x]``, whitened.
        images: complex64 ``[contrast, z, y, x]`` of chosen contrasts, object times whitened root-sum-of-squares.
        imaged: int64, the numbers of those contrasts.
    """

    settings: RelaxometrySettings
    protocol: Protocol
    samples: NDArray[np.complex64]
    place: NDArray[np.int64]
    contrast: NDArray[np.int64]
    noise: NDArray[np.complex64]
    truth: dict[str, NDArray[np.float32]]
    brain: NDArray[np.bool_]
    sensitivities: NDArray[np.complex64]
    images: NDArray[np.complex64]
    imaged: NDArray[np.int64]


def paper_protocol(name: str, echoes: int = 12, recoveries: int = 80) -> Protocol:
    """The protocols of LoREIN's two simulated data sets, or thinned out over the same range.

    Args:
        name: ``set1`` or ``set2``.
        echoes: of set1, spread over the paper's twelve.
        recoveries: of set2.
    """
    if name == "set1":
        angles = tuple(math.radians(a) for a in (5, 10, 20, 30, 40))
        step = 12 // echoes
        return Protocol("spoiled", tuple(1e-3 * (2.15 + 3.05 * step * n) for n in range(echoes)), 46e-3, angles)
    echo_times, preparations = (4.5e-3, 11.2e-3, 17.9e-3, 24.6e-3), (25e-3, 50e-3, 70e-3, 90e-3)
    return Protocol("t2_inversion", echo_times, 30e-3, (math.radians(10),), preparations, recoveries)


def complementary_masks(shape: tuple[int, ...], contrasts: int, acceleration: float, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Random phase-encoding places of every contrast, denser at the centre, complementary over contrasts.

    Every place is given a number of visits (at least one where the acceleration allows it), falling with |k|; its visits are spread over
    the contrasts evenly with a random start, and every contrast gets the same number of lines to within one.

    Args:
        shape: places along (z, y).
        contrasts: number of contrasts.
        acceleration: R.
        rng: source of the choice.

    Returns:
        For every contrast int64 ``[line]``, indices into the flattened places, ascending.
    """
    places = shape[0] * shape[1]
    per_contrast = places / acceleration
    lines = max(contrasts, round(per_contrast * contrasts))
    radius = np.hypot(*np.meshgrid(*[(np.arange(n) - n // 2) / max(1, n / 2) for n in shape], indexing="ij")).ravel()
    density = 1 / (0.15 + radius) ** 1.5
    # A little randomness, or all masks of a shape would favour the same places.
    visits = _visits(density * rng.uniform(0.8, 1.2, places), min(lines, places * contrasts), contrasts)
    counts = np.diff(np.round(np.linspace(0, lines, contrasts + 1)).astype(int))
    left = counts.astype(float)
    chosen: list[list[int]] = [[] for _ in range(contrasts)]
    # Places of many visits first: they are the hardest to spread.
    for place in np.argsort(-visits + rng.uniform(0, 0.5, places)):
        wanted = min(int(visits[place]), contrasts)
        if wanted == 0:
            continue
        # The contrasts with most lines still to give, in order of a comb with a random start.
        comb = np.floor((np.arange(wanted) + rng.uniform()) * contrasts / wanted).astype(int) % contrasts
        preferred = np.zeros(contrasts)
        preferred[comb] = 0.75
        for contrast in np.argsort(-(left + preferred + rng.uniform(0, 0.5, contrasts)))[:wanted]:
            chosen[contrast].append(int(place))
            left[contrast] -= 1
    # Where hardly more lines than contrasts are to give, the comb may leave one with none.
    for empty in (each for each in chosen if not each):
        most = max(chosen, key=len)
        if len(most) > 1:
            empty.append(most.pop())
    return [np.sort(np.array(each, dtype=np.int64)) for each in chosen]


def _visits(density: NDArray[np.float64], total: int, most: int) -> NDArray[np.int64]:
    """Whole visits a place near ``density``, at most ``most``, at least one each where the total allows it, that sum to ``total``."""
    least = 1 if total >= len(density) else 0
    low, high = 0.0, most / density.min()
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(middle * density, least, most).sum() < total:
            low = middle
        else:
            high = middle
    share = np.clip(high * density, least, most)
    base = np.floor(share)
    # The largest remainders take what rounding down has left.
    for place in np.argsort(base - share)[: total - int(base.sum())]:
        base[place] += 1
    return base.astype(np.int64)


def tissue_maps(shape: tuple[int, ...], field_of_view: tuple[float, ...], seed: int, pixel: float) -> dict[str, Tensor]:
    """The head on a grid: ``PD``, ``T1``, ``T2``, ``T2star``, ``off_resonance``, ``phase`` and ``brain`` ``[z, y, x]``.

    Args:
        shape: grid (z, y, x).
        field_of_view: mm (z, y, x).
        seed: of the texture.
        pixel: width over which edges are softened, mm.
    """
    z, y, x = (
        torch.from_numpy((np.arange(n) - n // 2) / n * length).to(torch.float32).reshape([-1 if a == b else 1 for b in range(3)])
        for a, (n, length) in enumerate(zip(shape, field_of_view, strict=True))
    )
    # In a frame of unit head: 80 mm half width, 98 mm half length, 90 mm half height; the slab lies about its middle.
    u, v, w = x / 80.0, y / 98.0, z / 90.0

    def inside(level: Tensor, half_width: float) -> Tensor:
        """Soft membership of level < 1; the half width gives the level's slope per mm."""
        return torch.sigmoid((1 - level) * half_width * 4 / pixel)

    def ball(cu: float, cv: float, cw: float, au: float, av: float, aw: float) -> Tensor:
        level = torch.sqrt(((u - cu) / au) ** 2 + ((v - cv) / av) ** 2 + ((w - cw) / aw) ** 2 + 1e-6)
        return inside(level, 85.0 * min(au, av))

    angle = torch.atan2(v, u)
    folds = 0.035 * torch.sin(17 * angle + 9 * w) + 0.02 * torch.sin(29 * angle - 14 * w + 1.0)
    radius = torch.sqrt(u**2 + v**2 + w**2 + 1e-6)
    layers = [
        ("scalp", inside(radius / 1.0, 85.0)),
        ("csf", inside(radius / 0.88, 75.0)),
        ("grey", inside(radius / (0.83 + folds), 70.0)),
        ("white", inside(radius / (0.73 + 2.2 * folds), 62.0)),
        ("deep", ball(-0.24, 0.02, 0.0, 0.13, 0.22, 0.4) + ball(0.24, 0.02, 0.0, 0.13, 0.22, 0.4)),
        ("csf", ball(-0.1, -0.12, 0.0, 0.065, 0.3, 0.35) + ball(0.1, -0.12, 0.0, 0.065, 0.3, 0.35)),
        ("lesion", ball(0.36, -0.36, 0.05, 0.1, 0.08, 0.2)),
        ("vessel", ball(0.02, -0.52, 0.0, 0.045, 0.04, 2.0)),
    ]
    shapes = torch.broadcast_shapes(u.shape, v.shape, w.shape)
    logs = {name: torch.zeros(shapes) for name in ("PD", "T1", "T2", "T2star")}
    for name, values in zip(logs, _TISSUES["scalp"], strict=True):
        logs[name] += math.log(values)
    for tissue, part in layers[1:]:
        for (_, field), value in zip(logs.items(), _TISSUES[tissue], strict=True):
            field += part.clamp(max=1) * (math.log(value) - field)
    generator = torch.Generator().manual_seed(seed)
    for name, strength in (("PD", 0.02), ("T1", 0.05), ("T2", 0.05), ("T2star", 0.06)):
        logs[name] += strength * _texture(x, y, z, generator)
    maps = {name: field.exp() for name, field in logs.items()}
    maps["T2star"] = torch.minimum(maps["T2star"], maps["T2"])
    head = layers[0][1].expand(shapes)
    # The excited slab ends before the field of view does.
    slab = torch.sigmoid((0.45 * field_of_view[0] - z.abs()) / (0.02 * field_of_view[0]))
    maps["PD"] = maps["PD"] * head * (head > 0.02) * slab
    sinus = torch.exp(-(u**2 + (v + 0.85) ** 2) / 0.12)
    maps["off_resonance"] = (38 * sinus - 10 * u * v + 8 * torch.sin(2.2 * v + w) - 6).expand(shapes).clone()
    maps["phase"] = (0.9 * u - 0.6 * v + 0.5 * u * v + 0.3 * w).expand(shapes).clone()
    maps["brain"] = ((layers[1][1] * slab).expand(shapes) > 0.8).to(torch.float32)
    return maps


def _texture(x: Tensor, y: Tensor, z: Tensor, generator: torch.Generator, waves: int = 24) -> Tensor:
    """Smooth random texture of about unit variance, the same in mm whatever the grid: plane waves of 12 to 60 mm."""
    total = torch.zeros(torch.broadcast_shapes(x.shape, y.shape, z.shape))
    for _ in range(waves):
        draws = torch.rand(4, generator=generator)
        length = 12 * 5 ** float(draws[0])
        heading, tilt = 2 * math.pi * float(draws[1]), 0.5 * (float(draws[2]) - 0.5)
        k = 2 * math.pi / length
        phase = k * (math.cos(heading) * x + math.sin(heading) * y + tilt * z) + 2 * math.pi * float(draws[3])
        total += torch.cos(phase)
    return total * math.sqrt(2 / waves)


def _values(model: SignalModel, maps: dict[str, Tensor], at: Tensor) -> dict[str, Tensor]:
    fixed = {"B": lambda: torch.full((int(at.sum()),), -0.93), "R2star": lambda: 1 / maps["T2star"][at]}
    return {p.name: fixed[p.name]() if p.name in fixed else maps[p.name][at] for p in model.parameters}


def _signal_components(model: SignalModel, values: dict[str, Tensor]) -> Tensor:
    """Temporal components that hold the phantom's own signals to :data:`_COMPONENT_ERROR`: numerical compression, far beyond any K.

    Raises:
        DataError: they do not.
    """
    count = next(iter(values.values())).shape[0]
    some = torch.linspace(0, count - 1, min(count, 2500)).to(torch.int64)
    own = {name: v[some].double() for name, v in values.items()}
    wide = draw_tissues(model.parameters, 1500, 60.0, 1)
    signals = model.signal({name: torch.cat([own[name], wide[name]]) for name in own})
    _, vectors = torch.linalg.eigh(signals @ signals.conj().T)
    basis = vectors.flip(1)[:, : min(_COMPONENTS, vectors.shape[0])].to(torch.complex64)
    check = model.signal({name: v[some].float() for name, v in values.items()})
    lost = check - basis @ (basis.conj().T @ check)
    error = float(torch.linalg.vector_norm(lost) / torch.linalg.vector_norm(check))
    if error > _COMPONENT_ERROR:
        raise DataError("phantom", f"{basis.shape[1]} temporal components leave {error:.2g} of the signal", "Raise their number.")
    return basis


def _cut(spectrum: Tensor, matrix: tuple[int, ...]) -> Tensor:
    """The central part of centred k-space ``[..., z, y, x]``."""
    for axis, n in enumerate(matrix, start=-3):
        spectrum = spectrum.narrow(axis, spectrum.shape[axis] // 2 - n // 2, n)
    return spectrum


def _centred_fft(image: Tensor) -> Tensor:
    dims = (-3, -2, -1)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, dim=dims), dim=dims, norm="ortho"), dim=dims)


def _components(model: SignalModel, maps: dict[str, Tensor], basis: Tensor) -> Tensor:
    """The object's images in every temporal component, complex64 ``[component, fine z, fine y, fine x]``."""
    at = torch.nonzero(maps["PD"].flatten() > 0)[:, 0]
    values = _values(model, maps, maps["PD"] > 0)
    amplitude = torch.polar(maps["PD"].flatten()[at], maps["phase"].flatten()[at])
    components = torch.zeros((basis.shape[1], maps["PD"].numel()), dtype=torch.complex64)
    for start in range(0, at.shape[0], _CHUNK):
        part = slice(start, start + _CHUNK)
        components[:, at[part]] = amplitude[part] * model.project({name: v[part] for name, v in values.items()}, basis)
    return components.unflatten(1, maps["PD"].shape)


def _lines(components: Tensor, coils: list[Tensor], basis: Tensor, masks: list[NDArray[np.int64]], matrix: tuple[int, ...]) -> Tensor:
    """What the coils see of every contrast's lines, one coil after the other: spectra of all of them would take gigabytes.

    Returns:
        complex64 ``[coil, line, x]``, contrast by contrast, k = 0 at index N//2.
    """
    out = torch.empty((len(coils), sum(len(mask) for mask in masks), matrix[2]), dtype=torch.complex64)
    for seen, field in zip(out, coils, strict=True):
        spectra = torch.stack([_cut(_centred_fft(component * field), matrix).flatten(0, 1) for component in components])
        first = 0
        for row, mask in zip(basis, masks, strict=True):
            seen[first : first + len(mask)] = torch.tensordot(row, spectra[:, torch.from_numpy(mask)], dims=1)
            first += len(mask)
    return out


def simulate(settings: RelaxometrySettings, protocol: Protocol | None = None) -> RelaxometryScan:
    """Simulate a scan.

    Args:
        settings: matrix, coils, acceleration, noise.
        protocol: what is played out; None: the paper's of ``settings.protocol``.
    """
    rng = np.random.default_rng(settings.seed)
    protocol = protocol or paper_protocol(settings.protocol, settings.echoes, settings.recoveries)
    model = signal_model(protocol)
    matrix, fov = settings.matrix, settings.field_of_view
    fine = tuple(settings.detail * n for n in matrix)
    pixel = max(length / n for n, length in zip(matrix[1:], fov[1:], strict=True))
    maps = tissue_maps(fine, fov, settings.seed, pixel)
    array = LoopArray(settings.coils, (98.0, 80.0), (fov[1], fov[2]), rng)
    covariance = array.noise_covariance(rng)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    coils = [torch.from_numpy(each) for each in _coil_maps(array, fine, fov)]
    basis = _signal_components(model, _values(model, maps, maps["PD"] > 0))
    components = _components(model, maps, basis)
    masks = complementary_masks(matrix[:2], protocol.contrasts, settings.acceleration, rng)
    contrast = np.repeat(np.arange(protocol.contrasts), [len(m) for m in masks])
    flat = np.concatenate(masks)
    lines = _lines(components, coils, basis, masks, matrix)
    # Noise against the mean magnitude of the brightest contrast, both in one fully sampled image of unit-norm coils.
    rss = np.sqrt((np.abs(np.einsum("ab,b...->a...", whitening, _coil_maps(array, matrix, fov))) ** 2).sum(0))
    # An image pixel of an orthonormal transform on the coarse grid holds √detail³ times the fine grid's value.
    gain = settings.detail**1.5
    coarse = tissue_maps(matrix, fov, settings.seed, pixel)
    brain = coarse["brain"].numpy() > 0
    strongest = float(components.reshape(len(components), -1)[:, maps["brain"].flatten() > 0].abs().square().sum(0).mean().sqrt())
    signal = gain * strongest / math.sqrt(protocol.contrasts) * float(rss[brain].mean())
    sigma = signal / settings.snr
    root = np.linalg.cholesky(covariance) * sigma

    def noise(count: int) -> NDArray[np.complex128]:
        white = rng.standard_normal((2, settings.coils, count)) / math.sqrt(2)
        out: NDArray[np.complex128] = root @ (white[0] + 1j * white[1])
        return out

    samples = lines.numpy() + noise(lines.shape[1] * lines.shape[2]).reshape(lines.shape)
    imaged = np.unique(np.linspace(0, protocol.contrasts - 1, 12).astype(np.int64))
    images = _reference_images(components, basis[torch.from_numpy(imaged)], rss, matrix) / sigma
    truth = {p.name: coarse[p.name].numpy() for p in model.parameters if p.name in coarse}
    truth["PD"] = (coarse["PD"].numpy() * rss).astype(np.float32)
    if "R2star" in (p.name for p in model.parameters):
        truth["R2star"] = (1 / coarse["T2star"]).numpy()
    return RelaxometryScan(
        settings=settings,
        protocol=protocol,
        samples=samples.astype(np.complex64),
        place=np.stack(np.divmod(flat, matrix[1]), axis=1),
        contrast=contrast,
        noise=noise(_NOISE_SAMPLES).astype(np.complex64),
        truth=truth,
        brain=brain,
        sensitivities=np.einsum("ab,b...->a...", whitening, _coil_maps(array, matrix, fov)).astype(np.complex64),
        images=images.astype(np.complex64),
        imaged=imaged,
    )


def _reference_images(components: Tensor, rows: Tensor, rss: NDArray[np.float64], matrix: tuple[int, ...]) -> NDArray[np.complex64]:
    """Noise-free fully sampled images of some contrasts, times the root-sum-of-squares of the whitened coils."""
    out = []
    dims = (-3, -2, -1)
    for row in rows:
        spectrum = _cut(_centred_fft(torch.tensordot(row, components, dims=1)), matrix)
        image = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=dims), dim=dims, norm="ortho"), dim=dims)
        out.append(image.numpy() * rss)
    return np.stack(out).astype(np.complex64)


def _coil_maps(array: LoopArray, shape: tuple[int, ...], field_of_view: tuple[float, ...]) -> NDArray[np.complex64]:
    """Sensitivities complex64 ``[coil, z, y, x]``."""
    z, y, x = ((np.arange(n) - n // 2) / n * length for n, length in zip(shape, field_of_view, strict=True))
    return np.stack([array.maps(y, x, height) for height in z], axis=1)
