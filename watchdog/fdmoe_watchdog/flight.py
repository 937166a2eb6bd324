"""The flight record of a worker that failed: the beat page, explained in words, and what was known around it.

record      makes the document (flight_record)
explain     its verdict (flight_verdict)
save        writes it before anything is killed; append adds what can only be had afterwards (flight_store)
stored, read, parse      for whoever reads them
"""

from __future__ import annotations

from fdmoe_watchdog.flight_record import Record, launch_context, record
from fdmoe_watchdog.flight_store import RecordError, append, parse, read, save, sequence, stored
from fdmoe_watchdog.flight_verdict import explain

__all__ = [
    "Record",
    "RecordError",
    "append",
    "explain",
    "launch_context",
    "parse",
    "read",
    "record",
    "save",
    "sequence",
    "stored",
]
