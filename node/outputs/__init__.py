"""The DICOM objects that go back to the PACS, built purely: no clock, no randomness, no network."""
