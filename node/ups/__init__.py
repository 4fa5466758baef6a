"""Workitems that a reading worklist may ask for and take: the UPS Pull SOP class (PS3.4 Annex CC)."""
