"""Non-uniform Fourier transform: engines chosen by name behind one differentiable operator."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recon_core.errors import DataError, MissingPartError
from recon_core.options import unknown_name

DEFAULT_TOLERANCE = 1e-4
_NUDFT_CHUNK = 1 << 22


class Engine(Protocol):
    """What an engine computes for fixed points, without scaling: sums with exp(−i2πk·r) and their adjoint."""

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[batch, (z,) y, x]`` to samples ``[batch, point]``."""
        ...

    def adjoint(self, samples: Tensor) -> Tensor:
        """Samples ``[batch, point]`` to images ``[batch, (z,) y, x]``."""
        ...


def _angles(points: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """2πk/N for every axis, in the image's axis order ((z,) y, x)."""
    return [(2 * math.pi / n) * points[:, axis] for n, axis in zip(shape, reversed(range(len(shape))), strict=True)]


class Nudft:
    """The exact sum, separable over axes: the oracle of the other engines, fast enough for small cases."""

    def __init__(self, points: Tensor, shape: tuple[int, ...], tolerance: float) -> None:
        self.shape = shape
        self.n_points = points.shape[0]
        grids = [torch.arange(n, device=points.device, dtype=torch.float64) - n // 2 for n in shape]
        self.factors = [
            torch.exp(-1j * angle.double()[:, None] * grid).to(torch.complex64)
            for angle, grid in zip(_angles(points, shape), grids, strict=True)
        ]

    def _chunks(self, batch: int) -> list[slice]:
        step = max(1, _NUDFT_CHUNK // (batch * self.shape[-1] * (self.shape[-2] if len(self.shape) == 3 else 1)))
        return [slice(i, i + step) for i in range(0, self.n_points, step)]

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return torch.cat([self._forward(images, part) for part in self._chunks(images.shape[0])], dim=1)

    def _forward(self, images: Tensor, part: slice) -> Tensor:
        first, *rest = [f[part] for f in self.factors]
        partial = torch.einsum("bm...,pm->bp...", images, first)
        for factor in rest:
            partial = torch.einsum("bpm...,pm->bp...", partial, factor)
        return partial

    def adjoint(self, samples: Tensor) -> Tensor:
        """See :class:`Engine`."""
        total = torch.zeros((samples.shape[0], *self.shape), dtype=samples.dtype, device=samples.device)
        for part in self._chunks(samples.shape[0]):
            factors = [f[part].conj() for f in self.factors]
            letters = "mno"[: len(factors)]
            terms = ",".join(f"p{letter}" for letter in letters)
            total = total + torch.einsum(f"bp,{terms}->b{letters}", samples[:, part], *factors)
        return total


def _threads(kind: int, batch: int) -> int:
    """Threads for a finufft plan whose results repeat bit for bit.

    Threads that spread one vector together (type 1) add in the order they happen to arrive; a thread a vector does not. finufft does the
    latter where every round has as many vectors as threads.
    """
    threads = torch.get_num_threads()
    return threads if kind == 2 else next(t for t in range(min(threads, batch), 0, -1) if batch % t == 0)


class Finufft:
    """finufft (CPU) or cufinufft (CUDA): plans kept per batch size, freed with the operator."""

    def __init__(self, points: Tensor, shape: tuple[int, ...], tolerance: float) -> None:
        self.shape = shape
        self.n_points = points.shape[0]
        self.tolerance = tolerance
        self.cuda = points.device.type == "cuda"
        self.library = importlib.import_module("cufinufft" if self.cuda else "finufft")
        angles = [a.to(torch.float32).contiguous() for a in _angles(points, shape)]
        # Points beyond one period are legal input; wrapped once here they stay accurate in float32.
        angles = [torch.remainder(a + math.pi, 2 * math.pi) - math.pi for a in angles]
        self.angles = angles if self.cuda else [a.numpy() for a in angles]
        self.plans: dict[tuple[int, int], Any] = {}

    def _plan(self, kind: int, batch: int) -> Any:
        if (kind, batch) not in self.plans:
            options: dict[str, Any] = {"isign": -1 if kind == 2 else 1, "dtype": "complex64", "eps": 0.3 * self.tolerance}
            if not self.cuda:
                options |= {"nthreads": _threads(kind, batch), "upsampfac": 1.25 if self.tolerance >= 1e-4 else 2.0}
            else:
                options |= {"gpu_device_id": torch.cuda.current_device()}
            plan = self.library.Plan(kind, self.shape, n_trans=batch, **options)
            plan.setpts(*self.angles)
            self.plans[kind, batch] = plan
        return self.plans[kind, batch]

    def _execute(self, kind: int, data: Tensor, out_shape: tuple[int, ...]) -> Tensor:
        batch = data.shape[0]
        if self.n_points == 0:
            return torch.zeros((batch, *out_shape), dtype=torch.complex64, device=data.device)
        given = data.to(torch.complex64).contiguous()
        plan = self._plan(kind, batch)
        squeeze = given[0] if batch == 1 else given
        if self.cuda:
            out = torch.empty((batch, *out_shape), dtype=torch.complex64, device=data.device)
            plan.execute(squeeze.detach(), out=out[0] if batch == 1 else out)
            return out
        result = plan.execute(squeeze.detach().numpy())
        return torch.from_numpy(np.ascontiguousarray(result)).reshape(batch, *out_shape)

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return self._execute(2, images, (self.n_points,))

    def adjoint(self, samples: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return self._execute(1, samples, self.shape)


class TorchKbNufft:
    """torchkbnufft: pure torch, runs on any device."""

    def __init__(self, points: Tensor, shape: tuple[int, ...], tolerance: float) -> None:
        library = importlib.import_module("torchkbnufft")
        self.shape = shape
        self.angles = torch.stack(_angles(points, shape)).to(torch.float32)
        width = 6 if tolerance >= 1e-4 else 8
        # Its interpolation table limits the accuracy: the default of 1024 entries stops near 1e-3.
        options = {"im_size": shape, "numpoints": width, "table_oversamp": 2**15, "dtype": torch.complex64, "device": points.device}
        self._forward = library.KbNufft(**options)
        self._adjoint = library.KbNufftAdjoint(**options)

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Engine`."""
        result: Tensor = self._forward(images[:, None], self.angles)
        return result[:, 0]

    def adjoint(self, samples: Tensor) -> Tensor:
        """See :class:`Engine`."""
        result: Tensor = self._adjoint(samples[:, None], self.angles)
        return result[:, 0]


class CartesianFft:
    """Samples on the Cartesian grid: one FFT and a gather, exact."""

    def __init__(self, points: Tensor, shape: tuple[int, ...], tolerance: float) -> None:
        self.shape = shape
        self.dims = tuple(range(-len(shape), 0))
        index = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
        for n, axis in zip(shape, reversed(range(len(shape))), strict=True):
            k = torch.round(points[:, axis])
            if points.shape[0] and float((points[:, axis] - k).abs().max()) > 1e-3:
                raise DataError("trajectory", "samples marked Cartesian lie off the grid", "Mark the problem as non-Cartesian.")
            index = index * n + torch.remainder(k.to(torch.int64) + n // 2, n)
        self.index = index

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`Engine`."""
        shifted = torch.fft.ifftshift(images, dim=self.dims)
        spectrum = torch.fft.fftshift(torch.fft.fftn(shifted, dim=self.dims), dim=self.dims)
        return spectrum.flatten(1)[:, self.index]

    def adjoint(self, samples: Tensor) -> Tensor:
        """See :class:`Engine`."""
        grid = torch.zeros((samples.shape[0], math.prod(self.shape)), dtype=samples.dtype, device=samples.device)
        grid = grid.index_add(1, self.index, samples).reshape(-1, *self.shape)
        image = torch.fft.ifftn(torch.fft.ifftshift(grid, dim=self.dims), dim=self.dims, norm="forward")
        return torch.fft.fftshift(image, dim=self.dims)


_ENGINES: dict[str, tuple[Callable[[Tensor, tuple[int, ...], float], Engine], str | None, str]] = {
    "finufft": (Finufft, "finufft", "cpu"),
    "cufinufft": (Finufft, "cufinufft", "cuda"),
    "torchkbnufft": (TorchKbNufft, "torchkbnufft", "any"),
    "nudft": (Nudft, None, "any"),
}


def engines() -> dict[str, str]:
    """Name of every engine to "" where it can be used here, else the reason and its cure."""
    found = {}
    for name, (_, module, device) in _ENGINES.items():
        if module is not None and importlib.util.find_spec(module) is None:
            found[name] = f"not installed: pip install {module}"
        elif device == "cuda" and not torch.cuda.is_available():
            found[name] = "no CUDA device: use finufft on the CPU"
        else:
            found[name] = ""
    return found


def resolve_engine(name: str, device: torch.device | str) -> str:
    """The engine that ``name`` means on ``device``: ``auto`` picks the fastest usable one.

    Raises:
        SettingError: unknown name.
        MissingPartError: the engine asked for cannot be used, with the cure.
    """
    kind = torch.device(device).type
    usable = engines()
    if name == "auto":
        order = ["cufinufft", "torchkbnufft", "nudft"] if kind == "cuda" else ["finufft", "torchkbnufft", "nudft"]
        return next(e for e in order if usable[e] == "")
    if name not in _ENGINES:
        raise unknown_name("engine", name, ["auto", *_ENGINES])
    if usable[name]:
        raise MissingPartError("engine", f"{name} cannot be used", usable[name][0].upper() + usable[name][1:] + ".")
    wanted = _ENGINES[name][2]
    if wanted not in ("any", kind):
        raise MissingPartError("engine", f"{name} does not run on {kind}", f"Use engine=auto or device={wanted}.")
    return name


class _Transform(torch.autograd.Function):
    """A linear map whose derivative is its adjoint."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.pair = (transpose, apply)
        return apply(data)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Transform.apply(gradients[0], *ctx.pair), None, None


class Nufft:
    """Images to samples at fixed points, unitary on the Cartesian grid; gradient = adjoint.

    Args:
        points: float32 ``[point, axis]``, cycles per field of view, axes (kx, ky(, kz)).
        shape: image shape ``((nz,) ny, nx)``.
        engine: ``auto``, ``finufft``, ``cufinufft``, ``torchkbnufft`` or ``nudft``.
        tolerance: asked relative accuracy.
        cartesian: the points lie on the Cartesian grid; an FFT replaces the engine, exactly.

    Raises:
        SettingError: unknown engine.
        MissingPartError: the engine is not installed or does not run on this device.
        DataError: points and shape disagree.
    """

    def __init__(
        self,
        points: Tensor,
        shape: tuple[int, ...],
        engine: str = "auto",
        tolerance: float = DEFAULT_TOLERANCE,
        cartesian: bool = False,
    ) -> None:
        if points.ndim != 2 or points.shape[1] != len(shape):
            raise DataError("points", f"shape {tuple(points.shape)} for an image of shape {shape}", "Give [point, axis].")
        self.engine = "fft" if cartesian else resolve_engine(engine, points.device)
        make = CartesianFft if cartesian else _ENGINES[self.engine][0]
        self.shape = tuple(shape)
        self.n_points = points.shape[0]
        self.scale = 1 / math.sqrt(math.prod(shape))
        self._engine = make(points, self.shape, tolerance)

    def __repr__(self) -> str:
        return f"Nufft({self.shape} -> {self.n_points} points, engine={self.engine})"

    def _forward(self, images: Tensor) -> Tensor:
        batch = images.shape[: images.ndim - len(self.shape)]
        samples = self._engine.forward(images.reshape(math.prod(batch), *self.shape)) * self.scale
        return samples.reshape(*batch, self.n_points)

    def _adjoint(self, samples: Tensor) -> Tensor:
        batch = samples.shape[:-1]
        images = self._engine.adjoint(samples.reshape(math.prod(batch), self.n_points)) * self.scale
        return images.reshape(*batch, *self.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[..., (z,) y, x]`` to samples ``[..., point]``."""
        out: Tensor = _Transform.apply(images, self._forward, self._adjoint)
        return out

    def adjoint(self, samples: Tensor) -> Tensor:
        """Samples ``[..., point]`` to images ``[..., (z,) y, x]``."""
        out: Tensor = _Transform.apply(samples, self._adjoint, self._forward)
        return out
