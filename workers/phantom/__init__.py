"""Synthetic non-contrast head CT with exact bleed masks, for demo, tests and pretraining: never a patient.

Images are canonical: row 0 anterior, column 0 patient right (x grows to patient left, y to
posterior: DICOM LPS), slices ordered feet to head. A seed gives the same volume every time.
"""

from workers.phantom.head import Head
from workers.phantom.render import FIELD_MM, PhantomVolume, render, volume

__all__ = ["FIELD_MM", "Head", "PhantomVolume", "render", "volume"]
