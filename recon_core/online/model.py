"""The model behind provisional frames: started from the first second, refined on a sliding window while frames keep coming."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from recon_core.calibration.temporal_basis import joined_frames, low_resolution_series, orthonormal_rows, temporal_basis
from recon_core.errors import DataError
from recon_core.online.measured import FrameEncoder, MeasuredFrame
from recon_core.online.running import RunningSums
from recon_core.online.tracker import Model, coil_spectra, nearest, spectral_products
from recon_core.options import option
from recon_core.problem import KSpaceProblem
from recon_core.solvers.base import interpolate_frames
from recon_core.solvers.grasp_pro import GraspPro, GraspProSettings

_BASIS_STRENGTH, _BASIS_STEPS, _BASIS_COILS = 0.06, 12, 4
_NOISE_FRAMES = 64
_FIRST_POWER_STEPS = 2
_POWER_STEPS = 1
_MARGIN = 1.15


@dataclasses.dataclass(frozen=True)
class OnlineSettings:
    """Settings of the provisional model; the scan's own solver makes the final series."""

    rank: int = option(12, "Temporal components K of the provisional model.", low=1, high=64)
    start_rank: int = option(8, "The same until the model has settled: fewer are sooner there.", low=1, high=64)
    window: float = option(8.0, "Newest data that the provisional model is fitted to.", low=0.1, high=600.0, unit="s")
    forget: float = option(0.999, "Weight of a frame in the model's fit relative to the next one.", low=0.9, high=1.0)
    steps: int = option(4, "Proximal gradient steps on U in one refinement.", low=1, high=1000)
    start_steps: int = option(6, "Proximal gradient steps on U after a start.", low=1, high=1000)
    rebuild: int = option(3, "Refinements from one new estimate of the window's V to the next.", low=1, high=1000)
    every: int = option(64, "Frames from one refinement to the next where `late_frames=wait`; else as often as the machine can.", low=1)
    calibration: float = option(0.4, "Data that give coil compression, maps and density weights.", low=0.05, high=60.0, unit="s")
    start: float = option(2.0, "Data that give the first bases.", low=0.1, high=60.0, unit="s")
    settle: float = option(4.0, "Until there are so many data the model is started anew, from all of them.", low=0.1, high=60.0, unit="s")
    strength: float = option(2e-4, "Λ of spatial total variation, as of the subspace solvers.", low=0.0)
    residual: float = option(
        0.8, "Share of k-space covered by the newest readouts whose residual is gridded and added to an image; 0: none.", low=0.0, high=10.0
    )
    basis_width: int = option(24, "Matrix of the low-resolution series that gives V at a start.", low=8, high=128)
    basis_frames: int = option(
        160, "Frames of that series at most when the model settles; neighbouring ones are joined for it.", low=8, high=100_000
    )


class _Fit(GraspPro):
    """GRASP-Pro's step on a data term that is summed frame by frame; its momentum outlasts a change of the sums."""

    _direction: Tensor | None = None
    _mass: float = 1.0
    _value: float = 0.0

    def begin(self, bases: Tensor, singular: Tensor, sums: RunningSums) -> None:
        """Start from bases ``[K, (z,) y, x]``."""
        self._take(singular, sums)
        self._estimate(_FIRST_POWER_STEPS)
        self.bases = bases
        self._restart()

    def go_on(self, sums: RunningSums) -> None:
        """The same bases, with other frames in the sums."""
        self._take(self.singular, sums)

    def turn(self, move: Tensor, singular: Tensor, sums: RunningSums) -> None:
        """Other bases of the same series: V was taken to ``move V``, float64 ``[K, K]``."""
        self._take(singular, sums)
        self._estimate(_POWER_STEPS)
        taken = torch.linalg.inv(move).T.to(self.bases)
        self.fista.x, self.fista.ahead = (torch.tensordot(taken, each, dims=1) for each in (self.fista.x, self.fista.ahead))
        self.bases = self.fista.x

    def _take(self, singular: Tensor, sums: RunningSums) -> None:
        self.temporal, self.singular, self.normal, self.target = sums.temporal(), singular, sums.normal(), sums.target()
        # The Gram operator grows with the frames inside: so does the bound on its eigenvalues.
        self._mass = sums.largest_mass()
        self.lipschitz = _MARGIN * self._value * self._mass

    def _estimate(self, steps: int) -> None:
        """Largest eigenvalue by power iteration, from the direction found last."""
        # Like the eigenvector, the right-hand side is mostly k-space's centre, where samples lie densest.
        found = self._direction
        if found is None or found.shape != self.target.shape:
            found = self.target
        value = 0.0
        for _ in range(steps):
            found = self.normal(found)
            value = float(torch.linalg.vector_norm(found))
            found = found / max(value, 1e-30)
        self._direction = found
        self._value = value / max(self._mass, 1e-30)
        self.lipschitz = _MARGIN * value


def sliding_series(images: Tensor, readouts: list[int], width: int) -> Tensor:
    """Gridded frames at low resolution, each averaged with its neighbours: undersampled by little, and blurred in time by little.

    Neighbours weigh less the more readouts lie between, none beyond twice ``width`` of them (about what spokes need there); k-space is
    tapered by the root of a Hann window.

    Args:
        images: complex64 ``[frame, (z,) y, x]``, scaled as fully sampled ones.
        readouts: of every frame.
        width: pixels an axis, at most the images'.

    Returns:
        complex64 ``[frame, (z,) y, x]``, at most so wide.
    """
    dims = tuple(range(1, images.ndim))
    spectra = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(images, dim=dims), dim=dims, norm="ortho"), dim=dims)
    for axis in dims:
        n = spectra.shape[axis]
        kept = min(n, width)
        taper = torch.hann_window(kept + 2, periodic=False, device=images.device)[1:-1].sqrt()
        spectra = spectra.narrow(axis, n // 2 - kept // 2, kept) * taper.reshape(-1, *[1] * (images.ndim - 1 - axis))
    small = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectra, dim=dims), dim=dims, norm="ortho"), dim=dims)
    count = torch.tensor(readouts, dtype=torch.float32, device=images.device)
    centre = count.cumsum(0) - count / 2
    share = (1 - (centre[:, None] - centre).abs() / (2 * width)).clamp_min(0) * count
    share = share / share.sum(1, keepdim=True)
    return torch.tensordot(share.to(small.dtype), small, dims=1)


def gauge(bases: Tensor, temporal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same series ``Σ_k V_kt U_k`` with orthonormal rows V, by falling singular value.

    Args:
        bases: complex64 ``[K, (z,) y, x]``.
        temporal: float32 ``[K, frame]``.

    Returns:
        Bases, V, singular values float32 ``[K]``, and float64 ``[K, K]`` (CPU), which takes any V of the old bases to the new.
    """
    wide = temporal.double()
    scale = 1e-12 * wide.square().sum() / wide.shape[0]
    root = torch.linalg.cholesky(wide @ wide.T + scale * torch.eye(wide.shape[0], dtype=wide.dtype, device=wide.device))
    flat = torch.view_as_real(bases).reshape(bases.shape[0], -1).double()
    turned = root.T @ flat
    values, vectors = torch.linalg.eigh(turned @ turned.T)
    rotation = vectors.flip(1).T
    move = rotation @ torch.linalg.inv(root)
    mixed = (rotation @ turned).float().reshape(*bases.shape, 2)
    return torch.view_as_complex(mixed), (move @ wide).float(), values.flip(0).clamp_min(0).sqrt().float(), move.cpu()


def smooth_coefficients(normal: Tensor, target: Tensor, innovation: Tensor, noise: float, steps: list[int]) -> Tensor:
    """V of all frames of a window at once: ``Σ_t (V_tᵀA_tV_t − 2V_tᵀb_t)/σ² + Σ_t ½‖V_t − V_{t−1}‖²`` in Q⁻¹'s norm, minimised exactly.

    Block tridiagonal, solved by elimination forwards and substitution backwards.

    Args:
        normal: float64 ``[frame, K, K]``.
        target: float64 ``[frame, K]``.
        innovation: float64 ``[K, K]``, Q.
        noise: σ².
        steps: regular frames each frame stands for.

    Returns:
        float64 ``[frame, K]``.
    """
    n_frames, rank = target.shape
    eye = torch.eye(rank, dtype=torch.float64)
    tie = torch.linalg.inv(innovation + 1e-9 * innovation.trace() / rank * eye)
    gain = 2 / max(noise, 1e-12)
    factors, heads = torch.empty_like(normal), torch.empty_like(target)
    for t in range(n_frames):
        back = tie / steps[t] if t else torch.zeros_like(tie)
        ahead = tie / steps[t + 1] if t + 1 < n_frames else torch.zeros_like(tie)
        matrix = gain * normal[t] + back + ahead
        right = gain * target[t]
        if t:
            matrix = matrix - back @ factors[t - 1]
            right = right + back @ heads[t - 1]
        inverse = torch.linalg.inv(matrix + 1e-12 * matrix.trace() / rank * eye)
        factors[t], heads[t] = inverse @ ahead, inverse @ right
    out = heads.clone()
    for t in range(n_frames - 2, -1, -1):
        out[t] = heads[t] + factors[t] @ out[t + 1]
    return out


class OnlineModel:
    """Bases U of a sliding window of frames.

    Life: :meth:`start` once, then :meth:`take` frames as they were tracked and :meth:`refine` again and again; each gives a new
    :class:`Model`. Everything is deterministic in the order of the calls; no clock is read.

    Args:
        encoder: the frozen calibration.
        settings: of the provisional model.
        seed: of the eigenvalue estimate.
    """

    def __init__(self, encoder: FrameEncoder, settings: OnlineSettings, seed: int = 0) -> None:
        self.encoder = encoder
        self.settings = settings
        self.sums = RunningSums(encoder.sensitivities, settings.forget)
        self.refinements = 0
        self._since_start = 0
        self._fit = _Fit(GraspProSettings(rank=settings.rank, strength=settings.strength), engine=encoder.engine, seed=seed)
        self._model: Model | None = None
        # From every version's V to the next one's: float64 [K, K].
        self._moves: list[Tensor] = []

    def start(self, frames: list[MeasuredFrame], problem: KSpaceProblem | None = None) -> Model:
        """First bases; or new ones, from all frames so far, to which frames tracked since are carried over.

        Args:
            frames: measured with ``gridded``, in order of time.
            problem: the same frames, whitened, uncalibrated, where they suffice for the full rank: V comes from a series at low
                resolution with temporal total variation. None: fewer bases at once, from a sliding average.

        Raises:
            DataError: frames and problem differ in number.
        """
        settings = self.settings
        full = self._full_images(frames)
        if problem is None:
            small = sliding_series(full, [frame.readouts for frame in frames], settings.basis_width)
            rows, singular = temporal_basis(small, min(settings.rank, settings.start_rank))
        elif len(frames) == problem.n_frames:
            rows, singular = self._careful_basis(problem)
        else:
            raise DataError("frames", f"{len(frames)} measured of {problem.n_frames}", "Measure every frame of the problem.")
        self.sums = RunningSums(self.encoder.sensitivities, settings.forget)
        self.sums.add(frames, rows)
        self._since_start = 0
        # Several steps ahead of zero.
        gridded = torch.tensordot(rows.to(full.dtype), full, dims=1)
        self._fit.begin(gridded, singular, self.sums)
        old, made = self._model, self._publish(self._step(settings.start_steps))
        if old is not None:
            self._moves.append(nearest(old, made))
        return made

    def _careful_basis(self, problem: KSpaceProblem) -> tuple[Tensor, Tensor]:
        """V and singular values from a series at low resolution."""
        settings = self.settings
        coarse = joined_frames(problem, math.ceil(problem.n_frames / settings.basis_frames))
        series = low_resolution_series(coarse, settings.basis_width, _BASIS_STRENGTH, _BASIS_STEPS, _BASIS_COILS, self.encoder.engine)
        found, singular = temporal_basis(series, settings.rank)
        return orthonormal_rows(interpolate_frames(found.T, coarse.frame_times, problem.frame_times).T), singular

    def _full_images(self, frames: list[MeasuredFrame]) -> Tensor:
        """Gridding of every frame, scaled as a fully sampled image ``[frame, (z,) y, x]``."""
        images = []
        for frame in frames:
            assert frame.gridded is not None
            # Weights are shares of the start block's area: fewer readouts share the same area.
            images.append(frame.gridded * (self.encoder.start_readouts / frame.readouts))
        return torch.stack(images)

    def take(self, frames: list[MeasuredFrame], coefficients: Tensor, version: int) -> None:
        """Let tracked frames into the window, and old ones out of it.

        Args:
            frames: in order of time.
            coefficients: their V ``[frame, K]``.
            version: of the model against which they were tracked.
        """
        carried = coefficients.double()
        for move in self._moves[version - 1 :]:
            carried = carried @ move.T
        self.sums.add(frames, carried.T.float().to(self.encoder.sensitivities.device))
        newest = self.sums.entries[-1].frame.time
        old = sum(1 for entry in self.sums.entries if entry.frame.time < newest - self.settings.window)
        # A pause longer than the window must not leave it empty.
        self.sums.drop(min(old, len(self.sums) - 1))

    def refine(self) -> Model:
        """A few steps on U; every so often, and first after a start, V of the whole window is estimated anew before."""
        assert self._model is not None
        turned = self._since_start % self.settings.rebuild == 0
        self.refinements += 1
        self._since_start += 1
        move = torch.eye(self._model.rank, dtype=torch.float64)
        if turned:
            bases = self._model.bases
            frames = [entry.frame for entry in self.sums.entries]
            normal, target = self._model.grams(frames)
            steps = [frame.steps for frame in frames]
            found = smooth_coefficients(normal, target, self._model.innovation, self._model.noise, steps).T.float().to(bases.device)
            _, rows, singular, move = gauge(bases, found)
            self.sums.rebuild(rows)
            self._fit.turn(move, singular, self.sums)
        else:
            self._fit.go_on(self.sums)
        self._moves.append(move)
        return self._publish(self._step(self.settings.steps))

    def _step(self, steps: int) -> Tensor:
        fit = self._fit
        for _ in range(steps):
            fit.update()
        if not bool(torch.isfinite(torch.view_as_real(fit.bases)).all()):
            raise DataError("provisional model", "NaN or Inf in its bases", "Check the data's scale, or use mode=retrospective.")
        return fit.bases

    def _publish(self, bases: Tensor) -> Model:
        rows = self.sums.temporal().double().cpu()
        entries = list(self.sums.entries)
        steps = torch.tensor([float(entry.frame.steps) for entry in entries[1:]], dtype=torch.float64)
        change = (rows[:, 1:] - rows[:, :-1]) / steps.sqrt()
        innovation = change @ change.T / max(1, change.shape[1])
        spectra = coil_spectra(bases, self.encoder.sensitivities)
        model = Model(
            bases=bases,
            spectra=spectra,
            products=spectral_products(spectra),
            last=rows[:, -1],
            innovation=innovation,
            noise=1.0,
            time=entries[-1].frame.time,
            version=1 if self._model is None else self._model.version + 1,
        )
        self._model = dataclasses.replace(
            model, noise=_residual(model, [e.frame for e in entries[-_NOISE_FRAMES:]], rows[:, -_NOISE_FRAMES:])
        )
        return self._model


def _residual(model: Model, frames: list[MeasuredFrame], temporal: Tensor) -> float:
    """Weighted mean |residual|² of fitted frames."""
    normal, target = model.grams(frames)
    rows = temporal.T
    misfit = (
        sum(frame.energy for frame in frames) - 2 * float((rows * target).sum()) + float(torch.einsum("tk,tkl,tl->", rows, normal, rows))
    )
    return max(misfit / max(sum(frame.weight for frame in frames), 1e-30), 1e-6)
