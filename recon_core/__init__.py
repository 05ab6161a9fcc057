"""Reconstruction: operators, calibration, fields and solvers; knows no files and no wire."""
