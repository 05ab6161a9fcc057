"""Data term of multi-contrast Cartesian volumes on a temporal subspace.

After a transform along the fully sampled readout every x is a small problem of its own over the phase-encoded axes (y, or y and z). There

    ½ Σ_t ‖M_t F S Σ_k Φ_tk U_k − y_t‖²  =  Σ_κ [ ½ ⟨û_κ, G_κ û_κ⟩ − Re⟨û_κ, b_κ⟩ ] + ½‖y‖²,   û = F S U,

with one K×K matrix G_κ = Σ_t Φ̄_tk Φ_tl over the contrasts that visited phase-encoding place κ: K·C small transforms an evaluation
whatever the number of contrasts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from recon_core.errors import DataError
from recon_core.problem import KSpaceProblem

# Complex numbers of one chunk of û. Above 32 MiB glibc maps fresh pages for every tensor, which the kernel clears: twice as slow.
_CHUNK = 1 << 21


@dataclasses.dataclass(frozen=True, eq=False)
class HybridSamples:
    """Samples after the transform along the readout.

    Attributes:
        samples: complex64 ``[coil, readout, x]``, x in FFT order (0 first).
        place: int64 ``[readout]``, index of (kz·)ky in the flattened phase-encoded grid, FFT order.
        contrast: int64 ``[readout]``.
        shape: image shape ``((nz,) ny, nx)``.
    """

    samples: Tensor
    place: Tensor
    contrast: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, problem: KSpaceProblem) -> HybridSamples:
        """Transform a problem's readouts.

        Raises:
            DataError: the readouts are not whole Cartesian lines of the image's grid.
        """
        cure = "Send whole Cartesian lines; reconstruct at the header's matrix."
        n_x = problem.shape[-1]
        if not problem.cartesian:
            raise DataError("trajectory", "samples off the Cartesian grid", cure)
        line = torch.arange(n_x, device=problem.device, dtype=torch.float32) - n_x // 2
        if problem.samples.shape[2] != n_x or not bool((problem.trajectory[..., 0] == line).all()):
            raise DataError("readouts", f"{problem.samples.shape[2]} samples along a matrix of {n_x}, or not every column", cure)
        used = torch.ones(problem.n_readouts, dtype=torch.bool, device=problem.device)
        if problem.mask is not None:
            used = problem.mask.all(dim=1)
            if bool((problem.mask.any(dim=1) != used).any()):
                raise DataError("readouts", "partly discarded lines", cure)
        contrast = torch.full((problem.n_readouts,), -1, dtype=torch.int64, device=problem.device)
        for number, readouts in enumerate(problem.frames):
            contrast[readouts] = number
        used = used & (contrast >= 0)
        place = torch.zeros(problem.n_readouts, dtype=torch.int64, device=problem.device)
        for axis in range(problem.dim - 1, 0, -1):
            n = problem.shape[problem.dim - 1 - axis]
            step = torch.remainder(problem.trajectory[:, 0, axis].round().to(torch.int64), n)
            place = place * n + step
        lines = torch.fft.ifft(torch.fft.ifftshift(problem.samples[:, used], dim=-1), norm="ortho")
        return cls(lines, place[used], contrast[used], problem.shape)

    def keep(self, chosen: Tensor) -> HybridSamples:
        """Some of the readouts, bool ``[readout]``."""
        return HybridSamples(self.samples[:, chosen], self.place[chosen], self.contrast[chosen], self.shape)

    @property
    def places(self) -> int:
        """Number of phase-encoding places."""
        return math.prod(self.shape[:-1])


class ContrastTerm:
    """The quadratic data term on bases U.

    Args:
        data: the readouts.
        basis: complex64 ``[contrast, K]``, Φ.

    Attributes:
        gram: complex64 ``[place, K, K]``.
        target: complex64 ``[place, K, coil, x]``.
        energy: ½‖y‖².
    """

    def __init__(self, data: HybridSamples, basis: Tensor) -> None:
        basis = basis.to(data.samples.device)
        self.shape = data.shape
        self.rank = basis.shape[1]
        rows = basis[data.contrast]
        n_coils, _, n_x = data.samples.shape
        self.gram = torch.zeros((data.places, self.rank, self.rank), dtype=torch.complex64, device=basis.device)
        self.gram.index_add_(0, data.place, rows.conj()[:, :, None] * rows[:, None, :])
        self.target = torch.zeros((data.places, self.rank, n_coils, n_x), dtype=torch.complex64, device=basis.device)
        order = torch.argsort(data.place, stable=True)
        for part in order.split(max(1, _CHUNK // (self.rank * n_coils * n_x))):
            lines = data.samples[:, part].transpose(0, 1)
            self.target.index_add_(0, data.place[part], rows[part].conj()[:, :, None, None] * lines[:, None])
        self.energy = 0.5 * float(data.samples.abs().square().sum(dtype=torch.float64))

    def _chunks(self, n_coils: int) -> Iterator[slice]:
        n_x = self.shape[-1]
        width = max(1, _CHUNK // (self.gram.shape[0] * self.rank * n_coils))
        return (slice(start, min(n_x, start + width)) for start in range(0, n_x, width))

    def _transform(self, images: Tensor, inverse: bool = False) -> Tensor:
        dims = tuple(range(-len(self.shape), -1))
        return (torch.fft.ifftn if inverse else torch.fft.fftn)(images, dim=dims, norm="ortho")

    def _spectrum(self, bases: Tensor, maps: Tensor) -> Tensor:
        """``F S U`` as ``[place, K, coil · x]``."""
        return self._coil_spectrum(bases[:, None] * maps[None])

    def _coil_spectrum(self, images: Tensor) -> Tensor:
        """``F`` of images ``[K, coil, …]`` as ``[place, K, coil · x]``."""
        return self._transform(images).flatten(2, -2).permute(2, 0, 1, 3).flatten(2)

    def cost(self, bases: Tensor, maps: Tensor) -> Tensor:
        """The data term of all x at once, differentiable; the constant included, so that it is ½‖residual‖².

        Args:
            bases: complex64 ``[K, (z,) y, x]``.
            maps: complex64 ``[coil, (z,) y, x]``.
        """
        return self._part(self._shift(bases), self._shift(maps), slice(None)) + self.energy

    def _part(self, bases: Tensor, maps: Tensor, part: slice) -> Tensor:
        spectrum = self._spectrum(bases, maps)
        target = self.target[..., part].flatten(2)
        return (spectrum.conj() * (0.5 * torch.bmm(self.gram, spectrum) - target)).real.sum()

    def cost_and_gradients(self, bases: Tensor, maps: Tensor, of_maps: bool = True) -> tuple[float, Tensor, Tensor | None]:
        """Value and gradients (torch's: of the real cost by conjugate variables) chunk by chunk, for volumes whose û would not fit.

        Args:
            bases: complex64 ``[K, (z,) y, x]``.
            maps: complex64 ``[coil, (z,) y, x]``.
            of_maps: whether the maps' gradient is wanted.
        """
        u, s = self._shift(bases.detach()), self._shift(maps.detach())
        grad_u, grad_s = torch.zeros_like(u), torch.zeros_like(s) if of_maps else None
        total = self.energy
        for part in self._chunks(maps.shape[0]):
            u_part, s_part = u[..., part], s[..., part]
            spectrum = self._spectrum(u_part, s_part)
            target = self.target[..., part].flatten(2)
            product = torch.bmm(self.gram, spectrum)
            total += float((spectrum.conj() * (0.5 * product - target)).real.sum(dtype=torch.float64))
            back = self._back(product - target, s_part.shape)
            grad_u[..., part] = (s_part.conj()[None] * back).sum(1)
            if grad_s is not None:
                grad_s[..., part] = (u_part.conj()[:, None] * back).sum(0)
        return total, self._unshift(grad_u), None if grad_s is None else self._unshift(grad_s)

    def _back(self, spectrum: Tensor, maps_shape: torch.Size) -> Tensor:
        """``[place, K, coil · x]`` to ``[K, coil, (z,) y, x]``."""
        n_coils, width = maps_shape[0], maps_shape[-1]
        grid = spectrum.reshape(-1, self.rank, n_coils, width).permute(1, 2, 0, 3)
        return self._transform(grid.reshape(self.rank, n_coils, *self.shape[:-1], width), inverse=True)

    def curvature(self, bases: Tensor, maps: Tensor, d_bases: Tensor, d_maps: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Gauss-Newton product of the data term as a function of bases and maps: ``Eᴴ G E`` along a direction, E the derivative of F S U.

        Args:
            bases: complex64 ``[K, (z,) y, x]``.
            maps: complex64 ``[coil, (z,) y, x]``.
            d_bases: direction of the bases.
            d_maps: direction of the maps; None: they stand still.

        Returns:
            Parts that belong to the bases and to the maps (None where these stand still).
        """
        u, s, du = self._shift(bases), self._shift(maps), self._shift(d_bases)
        ds = None if d_maps is None else self._shift(d_maps)
        of_u, of_s = torch.empty_like(u), None if ds is None else torch.empty_like(s)
        for part in self._chunks(maps.shape[0]):
            s_part = s[..., part]
            images = du[..., part][:, None] * s_part[None]
            if ds is not None:
                images = images + u[..., part][:, None] * ds[..., part][None]
            back = self._back(torch.bmm(self.gram, self._coil_spectrum(images)), s_part.shape)
            of_u[..., part] = (s_part.conj()[None] * back).sum(1)
            if of_s is not None:
                of_s[..., part] = (u[..., part].conj()[:, None] * back).sum(0)
        return self._unshift(of_u), None if of_s is None else self._unshift(of_s)

    def normal(self, bases: Tensor, maps: Tensor) -> Tensor:
        """``Sᴴ Fᴴ G F S U``."""
        u, s = self._shift(bases), self._shift(maps)
        out = torch.empty_like(u)
        for part in self._chunks(maps.shape[0]):
            s_part = s[..., part]
            back = self._back(torch.bmm(self.gram, self._spectrum(u[..., part], s_part)), s_part.shape)
            out[..., part] = (s_part.conj()[None] * back).sum(1)
        return self._unshift(out)

    def adjoint(self, maps: Tensor) -> Tensor:
        """``Sᴴ Fᴴ b``, the right-hand side, complex64 ``[K, (z,) y, x]``."""
        s = self._shift(maps)
        out = torch.empty((self.rank, *self.shape), dtype=torch.complex64, device=maps.device)
        for part in self._chunks(maps.shape[0]):
            s_part = s[..., part]
            out[..., part] = (s_part.conj()[None] * self._back(self.target[..., part].flatten(2), s_part.shape)).sum(1)
        return self._unshift(out)

    def _shift(self, images: Tensor) -> Tensor:
        return torch.fft.ifftshift(images, dim=tuple(range(-len(self.shape), 0)))

    def _unshift(self, images: Tensor) -> Tensor:
        return torch.fft.fftshift(images, dim=tuple(range(-len(self.shape), 0)))


def exact_cost(data: HybridSamples, images: Tensor, maps: Tensor, contrasts: Tensor) -> Tensor:
    """``½ Σ_t ‖M_t F S m_t − y_t‖²`` over some contrasts, contrast by contrast: the full sum that the subspace form stands in for.

    Args:
        data: the readouts.
        images: complex64 ``[contrast of the list, (z,) y, x]``.
        maps: complex64 ``[coil, (z,) y, x]``.
        contrasts: int64, numbers of the contrasts in ``images``.
    """
    dim = len(data.shape)
    shifted = torch.fft.ifftshift(maps, dim=tuple(range(-dim, 0)))
    total = torch.zeros((), device=images.device)
    for image, contrast in zip(images, contrasts.tolist(), strict=True):
        chosen = data.contrast == contrast
        weighted = shifted * torch.fft.ifftshift(image, dim=tuple(range(-dim, 0)))
        spectrum = torch.fft.fftn(weighted, dim=tuple(range(-dim, -1)), norm="ortho").reshape(maps.shape[0], data.places, -1)
        total = total + 0.5 * (spectrum[:, data.place[chosen]] - data.samples[:, chosen]).abs().square().sum()
    return total
