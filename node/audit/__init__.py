"""DICOM Audit Messages: what they say, how syslog carries them, and the loop that sends them."""
