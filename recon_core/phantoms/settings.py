"""What the simulators can be asked for; apart from them, so that a command line is built without their libraries."""

from __future__ import annotations

import dataclasses
import math

from recon_core.errors import SettingError
from recon_core.options import option


@dataclasses.dataclass(frozen=True)
class CardiacSettings:
    """What to simulate of :mod:`recon_core.phantoms.cardiac`."""

    matrix: tuple[int, int] = option((128, 128), "Pixels (ny, nx) of the reconstruction.", low=16, high=512)
    field_of_view: tuple[float, float] = option((320.0, 320.0), "Field of view (y, x).", low=50, high=1000, unit="mm")
    coils: int = option(8, "Receive coils.", low=1, high=128)
    frames: int = option(160, "Frames.", low=2, high=100000)
    readouts_per_frame: int = option(2, "Readouts (spokes or arms) in a frame; of Cartesian lines the mask decides.", low=1, high=4096)
    trajectory: str = option("radial", "Readouts.", choices=("radial", "spiral", "cartesian"))
    mask: str = option("random", "Cartesian lines: random and denser at the centre, or evenly spaced.", choices=("random", "uniform"))
    acceleration: float = option(4.0, "Lines of a full frame over acquired ones, outside the calibration lines.", low=1, high=64)
    calibration_lines: int = option(8, "Lines about the centre that every frame has.", low=0, high=512)
    timing: str = option("standard", "Beat and breath.", choices=("standard", "physiological"))
    repetition_time: float = option(3.0, "Time between readouts.", low=0.1, high=1000, unit="ms")
    interleaves: int | None = option(
        None, "Arms of a fully sampled spiral; auto: as many as end within 60 % of the repetition time.", low=1, high=1024
    )
    snr: float = option(35.0, "Mean signal of the chest over noise in one fully sampled image.", low=0.1, high=1e6)
    oversampling: int = option(2, "Samples per pixel along a spoke or line.", low=1, high=4)
    detail: int = option(3, "Pixels of the simulated object per reconstructed pixel, per axis.", low=2, high=8)
    seed: int = option(0, "Anatomy details, beats, breaths and noise.", low=0, high=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class SpeechSettings:
    """What to simulate of :mod:`recon_core.phantoms.speech`."""

    matrix: tuple[int, int] = option((84, 84), "Pixels (ny, nx) of the reconstruction.", low=16, high=512)
    field_of_view: tuple[float, float] = option((200.0, 200.0), "Field of view (y, x).", low=50, high=1000, unit="mm")
    coils: int = option(8, "Receive coils.", low=1, high=128)
    frames: int = option(600, "Frames.", low=2, high=100000)
    readouts_per_frame: int = option(1, "Arms in a frame.", low=1, high=4096)
    repetition_time: float = option(6.0, "Time between arms.", low=0.1, high=1000, unit="ms")
    interleaves: int | None = option(None, "Arms of a fully sampled spiral; auto: as many as end within `readout`.", low=1, high=1024)
    readout: float = option(2.6, "Longest arm.", low=0.1, high=100, unit="ms")
    off_resonance: float = option(0.0, "Largest off-resonance at the borders of air; 0: none.", low=0, high=2000, unit="Hz")
    snr: float = option(25.0, "Mean signal of the head over noise in one fully sampled image.", low=0.1, high=1e6)
    detail: int = option(3, "Pixels of the simulated object per reconstructed pixel, per axis.", low=2, high=8)
    seed: int = option(0, "Speaker, sounds and noise.", low=0, high=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class DceSettings:
    """What to simulate of :mod:`recon_core.phantoms.dce`."""

    matrix: tuple[int, int] = option((96, 96), "Pixels (ny, nx) of the reconstruction.", low=16, high=512)
    partitions: int = option(12, "Slices of the reconstruction.", low=2, high=256)
    field_of_view: tuple[float, float] = option((340.0, 340.0), "Field of view (y, x).", low=50, high=1000, unit="mm")
    thickness: float = option(8.0, "Thickness of a slice.", low=0.5, high=50, unit="mm")
    slice_oversampling: float = option(0.25, "Slices encoded beyond those reconstructed, as a share of them.", low=0.0, high=1.0)
    partial: float = option(1.0, "Share of the encoded partitions that is measured, from the far end of kz; 1: all.", low=0.55, high=1.0)
    order: str = option("linear", "Partitions within an angle.", choices=("linear", "centre_out"))
    coils: int = option(8, "Receive coils.", low=1, high=128)
    frames: int = option(150, "Frames.", low=2, high=100000)
    spokes_per_frame: int = option(2, "Angles in a frame, each with all its partitions.", low=1, high=4096)
    duration: float = option(60.0, "Length of the scan; angles are evenly spread over it.", low=1, high=3600, unit="s")
    repetition_time: float = option(4.0, "Time between the partitions of an angle.", low=0.1, high=1000, unit="ms")
    snr: float = option(25.0, "Mean signal of the body over noise in one fully sampled volume.", low=0.1, high=1e6)
    oversampling: int = option(2, "Samples per pixel along a spoke.", low=1, high=4)
    detail: int = option(2, "Voxels of the simulated object per reconstructed voxel, per axis.", low=2, high=8)
    seed: int = option(0, "Anatomy details, breaths, curves and noise.", low=0, high=2**31 - 1)

    @property
    def encoded(self) -> int:
        """Partitions of the encoded slab; k = 0 at ``encoded // 2``."""
        return self.partitions + round(self.slice_oversampling * self.partitions)

    @property
    def measured(self) -> range:
        """Encoded partitions that are measured."""
        return range(self.encoded - math.ceil(self.partial * self.encoded - 1e-9), self.encoded)


@dataclasses.dataclass(frozen=True)
class RelaxometrySettings:
    """What to simulate of :mod:`recon_core.phantoms.relaxometry`."""

    protocol: str = option("set1", "set1: flip angles × echoes; set2: T2 preparations × recoveries × echoes", choices=("set1", "set2"))
    echoes: int = option(6, "echoes of set1: 12 every 3.05 ms (paper), 6 every 6.10 ms, …", low=3, high=12)
    recoveries: int = option(80, "excitations after each preparation of set2 (paper: 80)", low=2, high=400)
    matrix: tuple[int, ...] = option((8, 64, 64), "pixels (z, y, x)", low=4)
    field_of_view: tuple[float, ...] = option((64.0, 220.0, 220.0), "mm (z, y, x)", low=10.0)
    coils: int = option(8, "receive coils", low=1, high=64)
    acceleration: float = option(12.0, "R: phase-encoding places times contrasts over lines measured", low=1.0)
    snr: float = option(40.0, "mean signal in the brightest contrast over noise of one fully sampled image", low=0.1)
    detail: int = option(2, "object pixels per image pixel in every direction", low=1, high=4)
    seed: int = option(0, "of anatomy details, masks and noise", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        """Check the axes.

        Raises:
            SettingError: not three of them, or a setting of the other protocol.
        """
        for name in ("matrix", "field_of_view"):
            if len(getattr(self, name)) != 3:
                raise SettingError(name, f"{len(getattr(self, name))} numbers", "Give three: z, y, x.")
        for name, owner in (("echoes", "set1"), ("recoveries", "set2")):
            default = type(self).__dataclass_fields__[name].default
            if self.protocol != owner and getattr(self, name) != default:
                raise SettingError(name, f"{getattr(self, name)} with protocol={self.protocol}", f"Leave it out: it is {owner}'s.")
