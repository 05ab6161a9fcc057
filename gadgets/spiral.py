"""Spiral trajectories that a header only describes (``HargreavesVDS2000``).

The design of the fastest Archimedean spiral within gradient and slew limits: Lee JH, Hargreaves BA, Hu BS, Nishimura DG. Fast 3D imaging
using variable-density spiral trajectories. Magn Reson Med 2003;50:1276-1285. Here the field of view is constant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gadgets.header import TrajectoryDescription
from recon_core.errors import DataError
from recon_core.trajectories import GradientLimits, archimedean_angles

IDENTIFIER = "HargreavesVDS2000"
_MM = 10.0  # a cm
_MT_PER_M = 10.0  # a G/cm


@dataclasses.dataclass(frozen=True)
class SpiralDesign:
    """Parameters of the design, in the header's units.

    Attributes:
        interleaves: arms that fill k-space.
        dwell: seconds between samples.
        max_gradient: G/cm.
        max_slew: G/cm/s.
        field_of_view: cm.
        k_max: 1/cm, where the spiral ends.
    """

    interleaves: int
    dwell: float
    max_gradient: float
    max_slew: float
    field_of_view: float
    k_max: float

    @staticmethod
    def from_description(description: TrajectoryDescription) -> SpiralDesign:
        """Read the parameters of a header's trajectory description.

        Raises:
            DataError: a parameter is missing or not above zero.
        """
        longs, doubles = description.longs, description.doubles
        return SpiralDesign(
            interleaves=int(_positive(longs, "interleaves")),
            dwell=_positive(longs, "SamplingTime_ns") * 1e-9,
            max_gradient=_positive(doubles, "MaxGradient_G_per_cm"),
            max_slew=_positive(doubles, "MaxSlewRate_G_per_cm_per_s"),
            field_of_view=_positive(doubles, "FOVCoeff_1_cm"),
            k_max=_positive(doubles, "krmax_per_cm"),
        )


def _positive(parameters: Mapping[str, int] | Mapping[str, float], name: str) -> float:
    value = parameters.get(name)
    if value is None or value <= 0:
        problem = "it is missing" if value is None else f"{value}"
        raise DataError(
            f"trajectoryDescription.{name}", problem, f"{IDENTIFIER} needs it above 0; or store the trajectory in the readouts."
        )
    return value


def radii(design: SpiralDesign, n_samples: int) -> NDArray[np.float64]:
    """Distance from the centre of k-space at every sample of an arm.

    Args:
        design: limits and geometry.
        n_samples: samples asked for.

    Returns:
        float64 ``[sample]`` in 1/cm, from 0, at most ``n_samples`` long; shorter where the spiral reaches ``k_max`` before.
    """
    limits = GradientLimits(_MT_PER_M * design.max_gradient, 1e-3 * _MT_PER_M * design.max_slew)
    angles = archimedean_angles(_MM * design.field_of_view, design.k_max / _MM, design.interleaves, design.dwell, limits, n_samples)
    return design.interleaves / (2 * math.pi * design.field_of_view) * angles


def arms(design: SpiralDesign, indices: ArrayLike, n_samples: int) -> tuple[NDArray[np.float64], int]:
    """Trajectory of the arms with the given indices.

    Orientation as the Siemens-to-ISMRMRD converter and Gadgetron write it: arm 0 starts along −x, arm j is turned clockwise by
    2πj / interleaves.

    Args:
        design: limits and geometry.
        indices: arm of every readout, integers ``[readout]``.
        n_samples: samples of a readout.

    Returns:
        float64 ``[readout, sample, 2]`` in 1/cm and the number of samples that lie on the arm; the rest stays at its end.
    """
    r = radii(design, n_samples)
    on_arm = len(r)
    r = np.concatenate([r, np.full(n_samples - on_arm, r[-1])])
    arm = -r * np.exp(1j * 2 * math.pi * design.field_of_view / design.interleaves * r)
    turn = np.exp(-2j * math.pi * np.asarray(indices, dtype=np.float64) / design.interleaves)
    k = turn[:, None] * arm[None, :]
    return np.stack([k.real, k.imag], axis=-1), on_arm
