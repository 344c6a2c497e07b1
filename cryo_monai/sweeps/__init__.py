"""Sweeps: a grid of trainings, run once each, and what they say together."""
