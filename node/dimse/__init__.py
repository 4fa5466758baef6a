"""DIMSE (PS3.7) as performing user: command sets, and messages put together of fragments. Stores nothing."""
