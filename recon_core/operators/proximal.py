"""Proximal maps of total variation, by fast gradient projection on the dual (Beck and Teboulle, IEEE Trans Image Process 2009;18:2419)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recon_core.operators.blocks import image_wise

# Complex numbers of the dual that are worked on at once, within the processor's cache.
_CHUNK = 1 << 20


def squared_magnitude(images: Tensor) -> Tensor:
    """``|z|²``, several times as fast as by ``abs`` or a sum over the parts."""
    real, imaginary = images.real, images.imag
    return torch.mul(real, real).addcmul_(imaginary, imaginary)


def finite_differences(images: Tensor) -> Tensor:
    """Forward differences of images ``[image, (z,) y, x]`` along every spatial axis, zero at the far edge: ``[axis, image, …]``."""
    out = torch.zeros((images.ndim - 1, *images.shape), dtype=images.dtype, device=images.device)
    for axis in range(1, images.ndim):
        n = images.shape[axis] - 1
        torch.sub(images.narrow(axis, 1, n), images.narrow(axis, 0, n), out=out[axis - 1].narrow(axis, 0, n))
    return out


def finite_differences_adjoint(field: Tensor) -> Tensor:
    """Adjoint of :func:`finite_differences`: ``[axis, image, …]`` to ``[image, …]``."""
    out = torch.zeros_like(field[0])
    for axis, part in enumerate(field, start=1):
        n = part.shape[axis] - 1
        inner = part.narrow(axis, 0, n)
        out.narrow(axis, 0, n).sub_(inner)
        out.narrow(axis, 1, n).add_(inner)
    return out


class SpatialTv:
    """Proximal map of ``Σ_k λ_k ‖∇u_k‖₁`` (isotropic, complex), its dual kept warm between calls.

    Args:
        shape: of the images, ``[image, (z,) y, x]``.
        iterations: dual steps a call; few suffice where the calls follow each other closely.
        device: of the images.
    """

    def __init__(self, shape: torch.Size | tuple[int, ...], iterations: int, device: torch.device | str = "cpu") -> None:
        self.iterations = iterations
        self.dim = len(shape) - 1
        self.dual = torch.zeros((self.dim, *shape), dtype=torch.complex64, device=device)

    def __call__(self, images: Tensor, thresholds: Tensor) -> Tensor:
        """Apply with thresholds float32 ``[image]`` (0 leaves an image as it is)."""
        limit = thresholds.reshape(-1, *[1] * self.dim).clamp_min(1e-30)
        out = torch.empty_like(images)
        each = max(1, _CHUNK // (self.dim * images[0].numel()))
        for part in (slice(start, start + each) for start in range(0, images.shape[0], each)):
            out[part], self.dual[:, part] = self._of_images(images[part], self.dual[:, part], limit[part])
        return out

    def _of_images(self, images: Tensor, dual: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        ahead, momentum = dual, 1.0
        for _ in range(self.iterations):
            point = finite_differences_adjoint(ahead).neg_().add_(images)
            new = finite_differences(point).mul_(1 / (4 * self.dim)).add_(ahead)
            size = squared_magnitude(new).sum(0).sqrt_()
            new.mul_(torch.div(limit, size, out=size).clamp_max_(1))
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            weight = 1 + (momentum - 1) / following
            ahead = new if weight == 1 else torch.view_as_complex(torch.lerp(torch.view_as_real(dual), torch.view_as_real(new), weight))
            dual, momentum = new, following
        return finite_differences_adjoint(dual).neg_().add_(images), dual


class TemporalTv:
    """Proximal map of ``λ Σ_t |u_{t+1} − u_t|`` of a series ``[frame, …]``, its dual kept warm between calls.

    Real and imaginary parts lie beside each other: magnitudes of complex arrays cost several times as much.
    """

    def __init__(self, shape: torch.Size | tuple[int, ...], iterations: int, device: torch.device | str = "cpu") -> None:
        self.iterations = iterations
        self.dual = torch.zeros((shape[0] - 1, *shape[1:], 2), dtype=torch.float32, device=device)

    @staticmethod
    def _minus_adjoint(series: Tensor, dual: Tensor) -> Tensor:
        out = series.clone()
        out[:-1].add_(dual)
        out[1:].sub_(dual)
        return out

    def __call__(self, series: Tensor, threshold: float) -> Tensor:
        """Apply with one threshold; a series of one frame comes back as it is."""
        if series.shape[0] < 2 or threshold <= 0:
            return series
        parts = torch.view_as_real(series)
        dual, ahead, momentum = self.dual, self.dual, 1.0
        for _ in range(self.iterations):
            point = self._minus_adjoint(parts, ahead)
            new = torch.sub(point[1:], point[:-1]).mul_(0.25).add_(ahead)
            size = squared_magnitude(torch.view_as_complex(new)).sqrt_()
            torch.view_as_complex(new).mul_(torch.div(threshold, size, out=size).clamp_max_(1))
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = torch.lerp(dual, new, 1 + (momentum - 1) / following)
            dual, momentum = new, following
        self.dual = dual
        return torch.view_as_complex(self._minus_adjoint(parts, dual))


class Fista:
    """Accelerated proximal gradient with adaptive restart (O'Donoghue and Candès, Found Comput Math 2015;15:715); the caller steps.

    Args:
        start: first iterate.

    Attributes:
        x: the iterate.
        ahead: where the next step sets out: ``x + pull · (x − the one before)``.
    """

    def __init__(self, start: Tensor) -> None:
        self.x = start
        self.ahead = start
        self.momentum = 1.0
        self.pull = 0.0

    def accept(self, new: Tensor) -> None:
        """Take the proximal point found from :attr:`ahead` and extrapolate; restart where the momentum points uphill."""
        following = (1 + math.sqrt(1 + 4 * self.momentum**2)) / 2
        if product_of_differences(self.ahead, new, new, self.x) > 0:
            self.restart(new)
            return
        self.pull = (self.momentum - 1) / following
        self.ahead, self.momentum, self.x = torch.lerp(self.x, new, 1 + self.pull), following, new

    def restart(self, x: Tensor) -> None:
        """Go on from ``x`` without momentum."""
        self.x, self.ahead, self.momentum, self.pull = x, x, 1.0, 0.0


def real_product(a: Tensor, b: Tensor) -> float:
    """``Re⟨a, b⟩`` of complex tensors ``[image, …]``; sums of images, which each one core makes, are added in double precision."""
    return _sum_of_images(lambda some: torch.view_as_real(a[some]) * torch.view_as_real(b[some]), a)


def product_of_differences(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> float:
    """``Re⟨a − b, c − d⟩`` of complex tensors ``[image, …]``, summed as in :func:`real_product`."""
    return _sum_of_images(lambda some: torch.view_as_real(a[some] - b[some]) * torch.view_as_real(c[some] - d[some]), a)


def _sum_of_images(values: Callable[[slice], Tensor], like: Tensor) -> float:
    sums = torch.empty(len(like), device=like.device)

    def work(some: slice) -> None:
        sums[some] = values(some).flatten(1).sum(1)

    image_wise(work, like)
    return float(sums.sum(dtype=torch.float64))


def largest_eigenvalue(operator: object, start: Tensor, iterations: int = 12) -> float:
    """Largest eigenvalue of a positive operator by power iteration from ``start``, a few per cent below at worst."""
    x, value = start, 0.0
    for _ in range(iterations):
        x = operator(x)  # type: ignore[operator]
        value = float(torch.linalg.vector_norm(x))
        if value == 0.0:
            return 0.0
        x = x / value
    return value
