"""Edits pictures by the deterministic map between noise and picture; see each module."""
