"""What the node offers its peers: SOP classes, transfer syntaxes, roles. One list for every receiver."""

from __future__ import annotations

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dul.limits import MAXIMUM_PDU_BYTES
from node.dul.negotiation import Offer

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSLESS = (
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
)
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
TRANSFER_SYNTAXES: tuple[UID, ...] = (*NATIVE, *LOSSLESS, *LOSSY)


VERIFICATION, STORAGE_COMMITMENT = str(Verification), str(StorageCommitmentPushModel)
PLAIN_SYNTAXES = NATIVE
"""Of the SOP classes that store nothing."""
ANALYSED = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_STORAGE = [c.abstract_syntax for c in AllStoragePresentationContexts if c.abstract_syntax]
STORED = tuple(dict.fromkeys(map(str, (*ANALYSED, *_STORAGE))))


def offer() -> Offer:
    """For the negotiation of an association."""
    stored = frozenset(map(str, TRANSFER_SYNTAXES))
    plain = frozenset(map(str, PLAIN_SYNTAXES))
    return Offer(
        {VERIFICATION: plain, STORAGE_COMMITMENT: plain, **dict.fromkeys(STORED, stored)},
        frozenset({STORAGE_COMMITMENT}),
        MAXIMUM_PDU_BYTES,
        IMPLEMENTATION_CLASS_UID,
        IMPLEMENTATION_VERSION_NAME,
    )
