"""Sweeps: many trainings that differ in a few settings, ending in one table (docs/sweeps.md)."""

from hamgan.sweeps.definition import Axis, Point, Sweep

__all__ = ["Axis", "Point", "Sweep"]
