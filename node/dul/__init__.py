"""The DICOM upper layer for TCP/IP (PS3.8), as acceptor: PDUs, state machine, negotiation. Knows no DIMSE."""
