"""The served layers' weights, held by one process and mapped by the workers: see manifest.py."""

from __future__ import annotations
