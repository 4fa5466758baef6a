"""The upper layer without a socket: the state machine line by line, PDUs from bytes, what is negotiated."""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from pynetdicom import AE
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context

from node.dul.machine import TABLE, Event, State
from node.dul.negotiation import acceptance, in_force, refusal
from node.dul.pdu import (
    AnsweredContext,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    InvalidPdu,
    ProposedContext,
    Role,
    encode_accept,
    read_request,
)
from node.offer import STORAGE_COMMITMENT, VERIFICATION, offer

CT, MADE_UP = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
APPLICATION = "1.2.840.10008.3.1.1.1"
OURS = {state.value for state in State}
NEVER_OURS = {"Evt1", "Evt2", "Evt11"}  # a requestor's, and a release that we would ask for


class TestStateMachine:
    def test_every_field_of_table_9_10_that_concerns_an_acceptor(self) -> None:
        """Against the table of pynetdicom, which was checked against PS3.8 itself."""
        known = {
            key: action
            for key, action in TRANSITION_TABLE.items()
            if key[1] in OURS and key[0] not in NEVER_OURS and key != ("Evt15", "Sta13")
        }
        ours = {(event.value, state.value): action.value for (event, state), (action, _) in TABLE.items()}
        assert ours == {key: action for key, action in known.items() if key in ours}
        missing = {key for key in known if key not in ours}
        assert missing <= {("Evt15", "Sta4"), ("Evt7", "Sta5")}

    @pytest.mark.parametrize(
        ("action", "state"),
        [
            ("AE-5", "Sta2"), ("AE-7", "Sta6"), ("AE-8", "Sta13"), ("DT-1", "Sta6"), ("DT-2", "Sta6"),
            ("AR-2", "Sta8"), ("AR-4", "Sta13"), ("AR-5", "Sta1"), ("AR-7", "Sta8"), ("AA-1", "Sta13"),
            ("AA-2", "Sta1"), ("AA-3", "Sta1"), ("AA-4", "Sta1"), ("AA-5", "Sta1"), ("AA-6", "Sta13"),
            ("AA-7", "Sta13"), ("AA-8", "Sta13"),
        ],
    )  # fmt: skip
    def test_the_state_that_each_action_leads_to(self, action: str, state: str) -> None:
        """PS3.8 Tables 9-6 to 9-9."""
        assert {to.value for did, to in TABLE.values() if did.value == action} == {state}

    def test_whatever_a_peer_sends_has_an_answer_in_every_state(self) -> None:
        from_peer = (
            Event.ASSOCIATE_AC, Event.ASSOCIATE_RJ, Event.ASSOCIATE_RQ, Event.DATA, Event.RELEASE_RQ,
            Event.RELEASE_RP, Event.ABORTED, Event.CLOSED, Event.INVALID,
        )  # fmt: skip
        for state in set(State) - {State.IDLE}:
            assert all((event, state) in TABLE for event in from_peer)


def asked(*contexts: tuple[str, list[str]], **more: object) -> bytes:
    """An A-ASSOCIATE-RQ as pynetdicom encodes it, without its header."""
    wish = A_ASSOCIATE()
    wish.application_context_name = APPLICATION
    wish.calling_ae_title, wish.called_ae_title = "CT1", "ICHNODE"
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = AE().implementation_class_uid
    wish.user_information = [length, implementation, *more.get("items", [])]  # type: ignore[misc]
    wish.presentation_context_definition_list = [build_context(*context) for context in contexts]
    for number, context in enumerate(wish.presentation_context_definition_list):
        context.context_id = 2 * number + 1
    return A_ASSOCIATE_RQ(wish).encode()[6:]


class TestPdus:
    def test_a_request_is_read_as_it_was_meant(self) -> None:
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = STORAGE_COMMITMENT, False, True
        identity = UserIdentityNegotiation()
        identity.user_identity_type, identity.primary_field = 1, b"somebody"
        read = read_request(
            asked((CT, [EXPLICIT, IMPLICIT]), (VERIFICATION, [IMPLICIT]), items=[role, identity])
        )
        assert (read.calling_ae, read.called_ae, read.maximum_length) == ("CT1", "ICHNODE", 16382)
        assert read.application_context == APPLICATION and read.protocol_version == 1
        assert read.contexts == (
            ProposedContext(1, CT, (EXPLICIT, IMPLICIT)),
            ProposedContext(3, VERIFICATION, (IMPLICIT,)),
        )
        assert read.roles == (Role(STORAGE_COMMITMENT, False, True),)

    def test_an_ae_title_ends_where_a_string_of_c_does(self) -> None:
        whole = asked((CT, [EXPLICIT]))
        assert whole.count(b"CT1".ljust(16)) == 1
        read = read_request(whole.replace(b"CT1".ljust(16), b"CT1\0junk".ljust(16)))
        assert (read.calling_ae, read.called_ae) == ("CT1", "ICHNODE")

    def test_no_prefix_of_a_request_is_anything_but_refused_or_a_smaller_request(self) -> None:
        whole = asked((CT, [EXPLICIT]))
        for length in range(len(whole)):
            try:
                assert len(read_request(whole[:length]).contexts) <= 1
            except InvalidPdu:
                continue

    @seed(20261121)
    @settings(max_examples=300, deadline=None, database=None)
    @given(st.data())
    def test_noise_in_a_request_is_refused_in_words_or_read(self, data: st.DataObject) -> None:
        whole = bytearray(asked((CT, [EXPLICIT, IMPLICIT]), (VERIFICATION, [IMPLICIT])))
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(whole) - 1))
            whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        try:
            read = read_request(bytes(whole))
        except InvalidPdu as error:
            assert str(error)
        else:
            answer = acceptance(read, offer())
            assert set(in_force(read, answer)) <= {context.id for context in read.contexts}
            A_ASSOCIATE_AC().decode(encode_accept(answer, read))

    @pytest.mark.parametrize("ids", [(1, 1), (2,), (0,)])
    def test_context_ids_are_odd_and_there_once(self, ids: tuple[int, ...]) -> None:
        whole = bytearray(asked(*[(CT, [EXPLICIT])] * len(ids)))
        for number, had in zip(ids, (1, 3), strict=False):
            whole[whole.index(b"\x20\x00\x00", 68) + 4 if had == 1 else whole.rindex(b"\x20\x00\x00") + 4] = (
                number
            )
        with pytest.raises(InvalidPdu):
            read_request(bytes(whole))

    def test_an_acceptance_reads_at_the_peer_as_it_was_meant(self) -> None:
        request = AssociateRequest(1, "ICHNODE", "CT1", APPLICATION, ())
        contexts = (AnsweredContext(1, 0, EXPLICIT), AnsweredContext(3, 3, IMPLICIT))
        roles = (Role(STORAGE_COMMITMENT, False, True),)
        pdu = A_ASSOCIATE_AC()
        pdu.decode(encode_accept(AssociateAccept(contexts, 131072, "1.2.3", "ICHNODE", roles), request))
        assert [(c.context_id, c.result) for c in pdu.presentation_context] == [(1, 0), (3, 3)]
        assert pdu.presentation_context[0].transfer_syntax == EXPLICIT
        assert pdu.user_information.maximum_length == 131072
        assert pdu.user_information.implementation_class_uid == "1.2.3"
        (role,) = pdu.user_information.role_selection.values()
        assert (role.scu_role, role.scp_role) == (0, 1)
        assert pdu.calling_ae_title.strip() == "CT1"


class TestNegotiation:
    def answers(self, *contexts: ProposedContext, **more: object) -> AssociateAccept:
        fields = {
            "protocol_version": 1,
            "called_ae": "A",
            "calling_ae": "B",
            "application_context": APPLICATION,
        }
        return acceptance(AssociateRequest(contexts=contexts, **(fields | more)), offer())  # type: ignore[arg-type]

    def test_the_peers_first_choice_is_taken(self) -> None:
        answer = self.answers(ProposedContext(1, CT, (MADE_UP, IMPLICIT, EXPLICIT)))
        assert answer.contexts == (AnsweredContext(1, 0, IMPLICIT),)

    def test_what_is_not_supported_is_told_apart(self) -> None:
        """PS3.8 Table 9-18."""
        answer = self.answers(
            ProposedContext(1, MADE_UP, (EXPLICIT,)),
            ProposedContext(3, CT, (MADE_UP,)),
            ProposedContext(5, CT, ()),
        )
        assert [context.result for context in answer.contexts] == [3, 4, 4]

    @pytest.mark.parametrize(("scu", "scp"), [(False, True), (True, True), (True, False)])
    def test_only_the_committing_peer_may_be_scp(self, scu: bool, scp: bool) -> None:
        contexts = (ProposedContext(1, STORAGE_COMMITMENT, (IMPLICIT,)), ProposedContext(3, CT, (IMPLICIT,)))
        answer = self.answers(*contexts, roles=(Role(STORAGE_COMMITMENT, scu, scp), Role(CT, scu, scp)))
        assert answer.roles == (Role(STORAGE_COMMITMENT, False, scp),)

    @pytest.mark.parametrize(
        ("version", "application", "rejected"),
        [
            (1, APPLICATION, None),
            (3, APPLICATION, None),
            (2, APPLICATION, (1, 2, 2)),
            (1, MADE_UP, (1, 1, 2)),
        ],
    )
    def test_whom_nobody_could_talk_to(
        self, version: int, application: str, rejected: tuple[int, ...]
    ) -> None:
        """PS3.8 Table 9-21."""
        request = AssociateRequest(version, "A", "B", application, ())
        assert refusal(request) == (AssociateReject(*rejected) if rejected else None)
