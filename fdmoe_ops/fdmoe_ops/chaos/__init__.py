"""Faults on purpose: what there is, and the day on which all of them are played."""
