"""Kinds of readouts."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest

from gadgets.flags import Kind, is_reversed, kind


def readout(*flags: int) -> ismrmrd.Acquisition:
    made = ismrmrd.Acquisition.from_array(np.zeros((1, 4), dtype=np.complex64))
    for flag in flags:
        made.set_flag(flag)
    return made


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), Kind.IMAGING),
        ((ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_LAST_IN_MEASUREMENT), Kind.IMAGING),
        ((ismrmrd.ACQ_IS_NOISE_MEASUREMENT,), Kind.NOISE),
        ((ismrmrd.ACQ_IS_NAVIGATION_DATA,), Kind.NAVIGATOR),
        ((ismrmrd.ACQ_IS_PHASECORR_DATA,), Kind.PHASE_CORRECTION),
        ((ismrmrd.ACQ_IS_DUMMYSCAN_DATA,), Kind.DUMMY),
        ((ismrmrd.ACQ_IS_RTFEEDBACK_DATA,), Kind.FEEDBACK),
        ((ismrmrd.ACQ_IS_HPFEEDBACK_DATA,), Kind.FEEDBACK),
        ((ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,), Kind.COIL_CORRECTION),
        ((ismrmrd.ACQ_IS_PHASE_STABILIZATION,), Kind.PHASE_STABILISATION),
        ((ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,), Kind.PHASE_STABILISATION),
        ((ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,), Kind.CALIBRATION),
        ((ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING,), Kind.IMAGING),
        ((ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING), Kind.IMAGING),
        ((ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_NOISE_MEASUREMENT), Kind.NOISE),
        ((ismrmrd.ACQ_IS_REVERSE, ismrmrd.ACQ_USER1), Kind.IMAGING),
    ],
)
def test_kind(flags, expected):
    assert kind(readout(*flags)) is expected
    assert kind(readout(*flags).getHead()) is expected


def test_flags_are_counted_from_one():
    # Bit 18 of the header is flag 19, noise: a mask made with 1 << 19 would call it parallel calibration.
    made = readout()
    made.flags = 1 << 18
    assert kind(made) is Kind.NOISE


def test_reversed():
    assert is_reversed(readout(ismrmrd.ACQ_IS_REVERSE))
    assert not is_reversed(readout())
