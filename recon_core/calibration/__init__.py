"""Calibration from the scan itself: noise, coils, density; nothing from outside the data."""

from recon_core.calibration.calibrate import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
