"""Whether an association can be, and with which presentation contexts. Whom to let in is not asked here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from node.dul.pdu import (
    APPLICATION_CONTEXT_NAME,
    AnsweredContext,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    ProposedContext,
    Role,
)

ACCEPTANCE, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 3, 4  # PS3.8 Table 9-18

# PS3.8 Table 9-21: result (1 for good), source (1 user, 2 ACSE), reason
VERSION_NOT_SUPPORTED = AssociateReject(1, 2, 2)
APPLICATION_CONTEXT_NOT_SUPPORTED = AssociateReject(1, 1, 2)


@dataclass(frozen=True)
class Context:
    """A presentation context that is in force."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class Offer:
    """What the node accepts."""

    syntaxes: Mapping[str, Collection[str]]
    """Transfer syntaxes by abstract syntax."""
    peer_is_scp: frozenset[str]
    """Abstract syntaxes of which the requestor may be the SCP, as in storage commitment."""
    maximum_length: int
    implementation_class_uid: str
    implementation_version: str


def refusal(request: AssociateRequest) -> AssociateReject | None:
    """Why nobody could talk to this peer (PS3.8 9.3.4); None when one can."""
    if not request.protocol_version & 1:
        return VERSION_NOT_SUPPORTED
    if request.application_context != APPLICATION_CONTEXT_NAME:
        return APPLICATION_CONTEXT_NOT_SUPPORTED
    return None


def acceptance(request: AssociateRequest, offer: Offer) -> AssociateAccept:
    """Each context with the first of the peer's transfer syntaxes that is supported."""
    proposed = {context.abstract_syntax for context in request.contexts}
    return AssociateAccept(
        tuple(_answer(context, offer) for context in request.contexts),
        offer.maximum_length,
        offer.implementation_class_uid,
        offer.implementation_version,
        tuple(
            Role(
                role.sop_class_uid, False, role.scp
            )  # 0 is answered to what was not proposed (PS3.7 D.3.3.4)
            for role in request.roles
            if role.sop_class_uid in offer.peer_is_scp and role.sop_class_uid in proposed
        ),
    )


def in_force(request: AssociateRequest, accept: AssociateAccept) -> dict[int, Context]:
    """The accepted presentation contexts by their ID."""
    abstract = {context.id: context.abstract_syntax for context in request.contexts}
    return {
        answer.id: Context(abstract[answer.id], answer.transfer_syntax)
        for answer in accept.contexts
        if answer.result == ACCEPTANCE
    }


def _answer(context: ProposedContext, offer: Offer) -> AnsweredContext:
    supported = offer.syntaxes.get(context.abstract_syntax)
    first = context.transfer_syntaxes[0] if context.transfer_syntaxes else ""
    if supported is None:
        return AnsweredContext(context.id, ABSTRACT_SYNTAX_NOT_SUPPORTED, first)
    for syntax in context.transfer_syntaxes:
        if syntax in supported:
            return AnsweredContext(context.id, ACCEPTANCE, syntax)
    return AnsweredContext(context.id, TRANSFER_SYNTAXES_NOT_SUPPORTED, first)
