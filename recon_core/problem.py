"""What a solver gets and what it gives: checked, frozen records without input or output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.signal_models import ParameterMap, Protocol


@dataclasses.dataclass(frozen=True, eq=False)
class KSpaceProblem:
    """Readouts of one dynamic scan (one slice or one volume), sorted into frames.

    Units, axes and signs: ``docs/conventions.md``.

    Attributes:
        samples: complex64 ``[coil, readout, sample]``, whitened.
        trajectory: float32 ``[readout, sample, axis]``, cycles per reconstructed field of view, axes (kx, ky(, kz)).
        frames: for every frame the int64 indices of its readouts; windows may overlap.
        readout_times: float64 ``[readout]``, seconds.
        frame_times: float64 ``[frame]``, seconds.
        shape: image shape ``((nz,) ny, nx)``.
        weights: float32 ``[readout, sample]``, density compensation over *all* readouts (a sample's share of k-space
            area in units of 1/FOV², normalised by calibration); zero excludes a sample. None until calibrated.
        mask: bool ``[readout, sample]``, False for samples beyond the reconstructed resolution or discarded. None: all used.
        sensitivities: complex64 ``[coil, (z,) y, x]``, unit root-sum-of-squares; None until calibrated.
        cartesian: the samples lie on the Cartesian grid of ``shape`` (integer k).
        field_of_view: mm, ``((z,) y, x)``.
        sample_times: float64 ``[sample]``, seconds from a readout's passage through k = 0; None: off-resonance is not known of.
        field_map: float32 ``[(z,) y, x]``, off-resonance in Hz, or ``[frame, (z,) y, x]``; None: on resonance.
        protocol: of a multi-contrast scan: a frame is then a contrast, and ``frame_times`` are contrast numbers. None: a dynamic scan.
    """

    samples: Tensor
    trajectory: Tensor
    frames: tuple[Tensor, ...]
    readout_times: Tensor
    frame_times: Tensor
    shape: tuple[int, ...]
    weights: Tensor | None = None
    mask: Tensor | None = None
    sensitivities: Tensor | None = None
    cartesian: bool = False
    field_of_view: tuple[float, ...] | None = None
    sample_times: Tensor | None = None
    field_map: Tensor | None = None
    protocol: Protocol | None = None

    def __post_init__(self) -> None:
        """Check shapes, types and finiteness.

        Raises:
            DataError: names the field at fault.
        """
        if self.samples.ndim != 3 or self.samples.dtype != torch.complex64:
            raise DataError("samples", f"{self.samples.dtype} {tuple(self.samples.shape)}", "Give complex64 [coil, readout, sample].")
        _, n_readouts, n_samples = self.samples.shape
        dim = len(self.shape)
        if dim not in (2, 3) or min(self.shape) < 2:
            raise DataError("shape", f"{self.shape}", "Give ((nz,) ny, nx) with at least 2 pixels an axis.")
        _expect("trajectory", self.trajectory, (n_readouts, n_samples, dim), torch.float32)
        _expect("readout_times", self.readout_times, (n_readouts,), torch.float64)
        _expect("frame_times", self.frame_times, (len(self.frames),), torch.float64)
        if not self.frames:
            raise DataError("frames", "no frame at all", "Send at least one readout, or lower readouts_per_frame.")
        for number, readouts in enumerate(self.frames):
            if readouts.ndim != 1 or readouts.dtype != torch.int64:
                raise DataError(f"frames[{number}]", f"{readouts.dtype} {tuple(readouts.shape)}", "Give a list of int64 indices.")
            if readouts.numel() and (int(readouts.min()) < 0 or int(readouts.max()) >= n_readouts):
                raise DataError(f"frames[{number}]", f"a readout outside 0..{n_readouts - 1}", "Index the readouts of samples.")
        if self.weights is not None:
            _expect("weights", self.weights, (n_readouts, n_samples), torch.float32)
        if self.mask is not None:
            _expect("mask", self.mask, (n_readouts, n_samples), torch.bool)
        if self.sensitivities is not None:
            _expect("sensitivities", self.sensitivities, (self.samples.shape[0], *self.shape), torch.complex64)
        if self.protocol is not None and self.protocol.contrasts != len(self.frames):
            raise DataError("frames", f"{len(self.frames)} of a protocol with {self.protocol.contrasts} contrasts", "Give one a contrast.")
        if self.sample_times is not None:
            _expect("sample_times", self.sample_times, (n_samples,), torch.float64)
        if self.field_map is not None:
            frames = (len(self.frames),) if self.field_map.ndim > dim else ()
            _expect("field_map", self.field_map, (*frames, *self.shape), torch.float32)
            if self.sample_times is None:
                raise DataError("sample_times", "missing, while there is a field map", "Give the time of every sample of a readout.")
        for name in ("samples", "trajectory", "weights", "sensitivities", "sample_times", "field_map"):
            array = getattr(self, name)
            if array is not None and not bool(torch.isfinite(torch.view_as_real(array) if array.is_complex() else array).all()):
                raise DataError(name, "NaN or Inf", "Repair or leave out the readouts concerned.")

    @property
    def n_coils(self) -> int:
        """Number of (virtual) coils."""
        return self.samples.shape[0]

    @property
    def n_readouts(self) -> int:
        """Number of readouts."""
        return self.samples.shape[1]

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.frames)

    @property
    def dim(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """Where the samples lie."""
        return self.samples.device

    def replace(self, **changes: object) -> KSpaceProblem:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> KSpaceProblem:
        """The same problem on another device (times stay on the CPU)."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor) and f.name not in ("readout_times", "frame_times", "sample_times")
        }
        return self.replace(frames=tuple(f.to(device) for f in self.frames), **moved)

    def at_shape(self, shape: tuple[int, ...]) -> KSpaceProblem:
        """The same scan on another matrix over the same field of view; samples beyond its resolution are left out.

        Samples stay as they are (noise of unit variance), so images scale by ``sqrt(old pixels / new pixels)``.
        """
        half = torch.tensor([n / 2 for n in reversed(shape)], device=self.device)
        inside = ((self.trajectory >= -half) & (self.trajectory <= half - (0.5 if self.cartesian else 0.0))).all(dim=-1)
        mask = inside if self.mask is None else inside & self.mask
        field_map = None if self.field_map is None else resampled(self.field_map, shape)
        return self.replace(shape=tuple(shape), mask=mask, weights=None, sensitivities=None, field_map=field_map)

    def keep_readouts(self, keep: Tensor) -> KSpaceProblem:
        """Only the readouts whose entry in ``keep`` (bool ``[readout]``) is True; frame count and times stay.

        A frame can end up with no readout: solvers interpolate it in time.
        """
        index = torch.nonzero(keep, as_tuple=True)[0]
        new_number = torch.full((self.n_readouts,), -1, dtype=torch.int64, device=keep.device)
        new_number[index] = torch.arange(index.numel(), device=keep.device)
        kept = [new_number[f] for f in self.frames]
        return self.replace(
            samples=self.samples[:, index],
            trajectory=self.trajectory[index],
            readout_times=self.readout_times[index.cpu()],
            frames=tuple(f[f >= 0] for f in kept),
            weights=None if self.weights is None else self.weights[index],
            mask=None if self.mask is None else self.mask[index],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSeries:
    """A reconstructed series.

    Attributes:
        images: complex64 ``[frame, (z,) y, x]``.
        times: float64 ``[frame]``, seconds.
        latents: float32 ``[frame, dimension]`` or None; the manifold coordinates a method learned.
        notes: what a reader of the images must know (replaced engine, chosen λ, …), one short sentence each.
        maps: tissue parameters, where the method gives them.
    """

    images: Tensor
    times: Tensor
    latents: Tensor | None = None
    notes: Sequence[str] = ()
    maps: tuple[ParameterMap, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes and finiteness.

        Raises:
            DataError: names the field at fault.
        """
        if self.images.ndim not in (3, 4) or self.images.dtype != torch.complex64:
            raise DataError("images", f"{self.images.dtype} {tuple(self.images.shape)}", "Give complex64 [frame, (z,) y, x].")
        _expect("times", self.times, (self.images.shape[0],), torch.float64)
        if not bool(torch.isfinite(torch.view_as_real(self.images)).all()):
            raise DataError("images", "NaN or Inf", "The fit diverged: lower the learning rate or raise the regularisation.")


def _expect(name: str, array: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(array.shape) != shape or array.dtype != dtype:
        raise DataError(name, f"{array.dtype} {tuple(array.shape)}", f"Give {dtype} of shape {shape}.")


def resampled(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Smooth maps ``[..., (z,) y, x]`` on another matrix over the same field of view, by linear interpolation between pixel centres."""
    for axis, n in zip(range(-len(shape), 0), shape, strict=True):
        old = maps.shape[axis]
        place = ((torch.arange(n, dtype=torch.float64) - n // 2) * (old / n) + old // 2).clamp(0, old - 1)
        below = place.floor().long().clamp_max(old - 2)
        part = (place - below).to(maps.dtype).to(maps.device).reshape(-1, *[1] * (-axis - 1))
        low, high = (maps.index_select(axis, index.to(maps.device)) for index in (below, below + 1))
        maps = low + part * (high - low)
    return maps
