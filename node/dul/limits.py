"""Bounds on what a peer may send before anything is agreed on. Numbers alone."""

from __future__ import annotations

MAXIMUM_PDU_BYTES = 128 * 1024
"""Offered to the peer in the A-ASSOCIATE-AC; a larger size gains nothing measurable."""
LONGEST_PDU_BYTES = 1024 * 1024
"""A-ASSOCIATE-RQ PDUs have no negotiated limit; 128 presentation contexts come to some 100 KiB."""
