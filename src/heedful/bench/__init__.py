"""Measurements: what steering costs in time and memory, and the slow implementation it is held against."""
