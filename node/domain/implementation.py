"""Who we say we are in associations and files (PS3.7 D.3.3.2, PS3.10 7.1). Changes with no release."""

from __future__ import annotations

IMPLEMENTATION_CLASS_UID = "2.25.302043790172249692526321623266752743501"
IMPLEMENTATION_VERSION_NAME = "ICHNODE"
