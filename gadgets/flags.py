"""What kind of readout an acquisition is, from its flags."""

from __future__ import annotations

import enum

import ismrmrd


class Kind(enum.Enum):
    """What a readout is for; the value is how it is called in messages."""

    IMAGING = "imaging"
    NOISE = "noise"
    CALIBRATION = "parallel-imaging calibration"
    NAVIGATOR = "navigator"
    PHASE_CORRECTION = "phase correction"
    PHASE_STABILISATION = "phase stabilisation"
    FEEDBACK = "feedback"
    DUMMY = "dummy"
    COIL_CORRECTION = "surface-coil correction"


# In order of precedence: a noise readout that is also marked as a navigator is noise.
_FLAGS: tuple[tuple[int, Kind], ...] = (
    (ismrmrd.ACQ_IS_NOISE_MEASUREMENT, Kind.NOISE),
    (ismrmrd.ACQ_IS_DUMMYSCAN_DATA, Kind.DUMMY),
    (ismrmrd.ACQ_IS_NAVIGATION_DATA, Kind.NAVIGATOR),
    (ismrmrd.ACQ_IS_PHASECORR_DATA, Kind.PHASE_CORRECTION),
    (ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE, Kind.PHASE_STABILISATION),
    (ismrmrd.ACQ_IS_PHASE_STABILIZATION, Kind.PHASE_STABILISATION),
    (ismrmrd.ACQ_IS_HPFEEDBACK_DATA, Kind.FEEDBACK),
    (ismrmrd.ACQ_IS_RTFEEDBACK_DATA, Kind.FEEDBACK),
    (ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA, Kind.COIL_CORRECTION),
)


def kind(acquisition: ismrmrd.Acquisition | ismrmrd.AcquisitionHeader) -> Kind:
    """The kind of a readout.

    Calibration lines that are also imaging lines (``ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING``) are imaging.
    """
    for flag, meaning in _FLAGS:
        if acquisition.is_flag_set(flag):
            return meaning
    if acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) and not acquisition.is_flag_set(
        ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
    ):
        return Kind.CALIBRATION
    return Kind.IMAGING


def is_reversed(acquisition: ismrmrd.Acquisition | ismrmrd.AcquisitionHeader) -> bool:
    """The readout runs against ``read_dir`` (the odd lines of an echo train)."""
    return bool(acquisition.is_flag_set(ismrmrd.ACQ_IS_REVERSE))
