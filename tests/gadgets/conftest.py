"""Synthetic scans whose k-space is written analytically: Gaussian blobs at known patient positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import ismrmrd
import numpy as np
import pytest

HEADER = """<?xml version="1.0" encoding="ascii"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation>{channels}</acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
 <encoding>
  <encodedSpace>{encoded}</encodedSpace>
  <reconSpace>{recon}</reconSpace>
  <encodingLimits>{limits}</encodingLimits>
  <trajectory>{trajectory}</trajectory>{description}
 </encoding>
 <sequenceParameters>{sequence}</sequenceParameters>
</ismrmrdHeader>"""


def _axes(values: Sequence[float]) -> str:
    return "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", values, strict=True))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What a header says, axes (x, y, z), lengths in mm."""

    encoded_matrix: tuple[int, int, int] = (32, 32, 1)
    encoded_fov: tuple[float, float, float] = (320.0, 320.0, 8.0)
    matrix: tuple[int, int, int] = (32, 32, 1)
    fov: tuple[float, float, float] = (320.0, 320.0, 8.0)
    trajectory: str = "radial"
    channels: int | None = 3
    limits: str = ""
    description: str = ""
    sequence: str = "<TR>3.0</TR><TE>1.5</TE>"

    def xml(self) -> str:
        space = "<matrixSize>{}</matrixSize><fieldOfView_mm>{}</fieldOfView_mm>"
        return HEADER.format(
            channels="" if self.channels is None else f"<receiverChannels>{self.channels}</receiverChannels>",
            encoded=space.format(_axes(self.encoded_matrix), _axes(self.encoded_fov)),
            recon=space.format(_axes(self.matrix), _axes(self.fov)),
            limits=self.limits,
            trajectory=self.trajectory,
            description=self.description,
            sequence=self.sequence,
        )


@dataclasses.dataclass(frozen=True)
class Blob:
    """A Gaussian at an LPS point (mm)."""

    point: tuple[float, float, float]
    width: float
    amplitude: float


@dataclasses.dataclass(frozen=True)
class Slice:
    """Position of a slice's centre (LPS, mm) and its directions."""

    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    read: tuple[float, float, float] = (1.0, 0.0, 0.0)
    phase: tuple[float, float, float] = (0.0, 1.0, 0.0)
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0)


BLOBS = (Blob((0.0, 0.0, 0.0), 30.0, 1.0),)


class Signal:
    """k-space of blobs seen by coils whose sensitivity is 1 + 0.6·exp(i2π q·r): smooth, and analytic."""

    def __init__(self, where: Slice, blobs: Sequence[Blob], channels: int, reach: float) -> None:
        angles = 2 * np.pi * np.arange(channels) / channels
        self.q = 0.5 / reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self.where = where
        self.blobs = blobs

    def __call__(self, k: np.ndarray) -> np.ndarray:
        """complex64 ``[coil, ...]`` at k ``[..., 2 or 3]`` in cycles/mm along read, phase (and slice) direction."""
        coils = []
        for number, q in enumerate(self.q):
            shift = np.concatenate([q, np.zeros(k.shape[-1] - 2)])
            coils.append((self._object(k) + 0.6 * self._object(k - shift)) * np.exp(0.7j * number))
        return np.stack(coils).astype(np.complex64)

    def _object(self, k: np.ndarray) -> np.ndarray:
        total = np.zeros(k.shape[:-1], dtype=np.complex128)
        axes = np.array([self.where.read, self.where.phase, self.where.normal])[: k.shape[-1]]
        for blob in self.blobs:
            offset = axes @ (np.array(blob.point) - np.array(self.where.position))
            decay = np.exp(-2 * (np.pi * blob.width) ** 2 * np.square(k).sum(axis=-1))
            total += blob.amplitude * 2 * np.pi * blob.width**2 * decay * np.exp(-2j * np.pi * (k @ offset))
        return total


class ScanMaker:
    """Makes acquisitions; everything a test does not name is plain."""

    Protocol = Protocol
    Blob = Blob
    Slice = Slice

    @staticmethod
    def acquisition(data: np.ndarray, traj: np.ndarray | None = None, *, flags: Sequence[int] = (), **fields: Any) -> ismrmrd.Acquisition:
        counters = {name: fields.pop(name) for name in list(fields) if hasattr(ismrmrd.EncodingCounters, name)}
        stored = None if traj is None else np.ascontiguousarray(traj, dtype=np.float32)
        made = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, dtype=np.complex64), stored, **fields)
        for name, value in counters.items():
            setattr(made.idx, name, int(value))
        for flag in flags:
            made.set_flag(flag)
        return made

    @classmethod
    def non_cartesian(
        cls,
        k: np.ndarray,
        protocol: Protocol,
        where: Slice | None = None,
        blobs: Sequence[Blob] = BLOBS,
        noise: float = 0.02,
        seed: int = 0,
        **fields: Any,
    ) -> list[ismrmrd.Acquisition]:
        """Readouts along k ``[readout, sample, axis]`` in cycles/mm; noise as a share of the largest sample."""
        where = Slice() if where is None else where
        samples = cls.noisy(Signal(where, blobs, protocol.channels or 1, max(protocol.fov))(k), noise, seed)
        per_pixel = np.array(protocol.encoded_fov[: k.shape[-1]]) / np.array(protocol.encoded_matrix[: k.shape[-1]])
        return [
            cls.acquisition(
                samples[:, row],
                k[row] * per_pixel,
                **{**cls.geometry(where), "acquisition_time_stamp": row, "kspace_encode_step_1": row, "scan_counter": row, **fields},
            )
            for row in range(len(k))
        ]

    @classmethod
    def cartesian(
        cls,
        protocol: Protocol,
        where: Slice | None = None,
        blobs: Sequence[Blob] = BLOBS,
        noise: float = 0.02,
        seed: int = 0,
        **fields: Any,
    ) -> list[ismrmrd.Acquisition]:
        """All phase-encoding lines of one slice, k = 0 at N//2."""
        where = Slice() if where is None else where
        n_x, n_y, _ = protocol.encoded_matrix
        k_x = (np.arange(n_x) - n_x // 2) / protocol.encoded_fov[0]
        k_y = (np.arange(n_y) - n_y // 2) / protocol.encoded_fov[1]
        k = np.stack(np.broadcast_arrays(k_x[None, :], k_y[:, None]), axis=-1)
        samples = cls.noisy(Signal(where, blobs, protocol.channels or 1, max(protocol.fov))(k), noise, seed)
        return [
            cls.acquisition(
                samples[:, row],
                **{
                    **cls.geometry(where),
                    "center_sample": n_x // 2,
                    "acquisition_time_stamp": row,
                    "kspace_encode_step_1": row,
                    **fields,
                },
            )
            for row in range(n_y)
        ]

    @staticmethod
    def noisy(samples: np.ndarray, noise: float, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        level = noise * np.abs(samples).max() / np.sqrt(2)
        return samples + level * (random.standard_normal(samples.shape) + 1j * random.standard_normal(samples.shape))

    @staticmethod
    def geometry(where: Slice) -> dict[str, Any]:
        return {"position": where.position, "read_dir": where.read, "phase_dir": where.phase, "slice_dir": where.normal}

    @staticmethod
    def spokes(n: int, samples: int, edge: Sequence[float]) -> np.ndarray:
        """Golden-angle spokes ``[spoke, sample, 2]`` in cycles/mm to an elliptic edge, through k = 0 at samples//2."""
        angle = np.pi * (np.sqrt(5) - 1) / 2 * np.arange(n)
        radius = (np.arange(samples) - samples // 2) / (samples / 2)
        directions = np.stack([np.cos(angle) * edge[0], np.sin(angle) * edge[1]], axis=-1)
        return radius[None, :, None] * directions[:, None, :]

    @staticmethod
    def spiral(arms: int, samples: int, edge: Sequence[float], fov: float) -> np.ndarray:
        """Archimedean arms ``[arm, sample, 2]`` in cycles/mm that fill k-space for ``fov`` mm."""
        share = np.sqrt(np.linspace(0, 1, samples))
        arm = share * np.exp(2j * np.pi * share * max(edge) * fov / arms)
        turned = arm[None, :] * np.exp(2j * np.pi * np.arange(arms) / arms)[:, None]
        return np.stack([turned.real * edge[0], turned.imag * edge[1]], axis=-1)

    @classmethod
    def radial_scan(cls, protocol: Protocol | None = None, n: int = 24, **options: Any) -> tuple[str, list[ismrmrd.Acquisition]]:
        """A small ordinary scan: header text and readouts."""
        protocol = Protocol() if protocol is None else protocol
        edge = [0.5 * n_pixels / length for n_pixels, length in zip(protocol.matrix[:2], protocol.fov[:2], strict=True)]
        return protocol.xml(), cls.non_cartesian(cls.spokes(n, 2 * protocol.matrix[0], edge), protocol, **options)


@pytest.fixture(scope="session")
def scans() -> type[ScanMaker]:
    """Maker of synthetic scans."""
    return ScanMaker


@pytest.fixture
def heard() -> tuple[list[str], Callable[[str], None]]:
    """Lines reported, and the function that gathers them."""
    lines: list[str] = []
    return lines, lines.append
