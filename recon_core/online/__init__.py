"""Reconstruction while the scan runs: frames measured one by one, tracked against a model that is refined beside."""
