"""Who may do what in the console: two roles, the greater of which may do all the lesser may."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    VIEWER = "viewer"  # sees studies and their images, acknowledges, agrees or disagrees
    ADMIN = "admin"  # also retries, cancels, pauses, and reads the audit trail

    def may(self, needed: Role) -> bool:
        """Whether this role is enough where `needed` is asked for."""
        return self is Role.ADMIN or needed is Role.VIEWER


def lesser(one: Role, other: Role) -> Role:
    """What a token of role `one` may do for a user of role `other`."""
    return Role.ADMIN if one is other is Role.ADMIN else Role.VIEWER
