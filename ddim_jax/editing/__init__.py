"""Edits with the deterministic map between noise and image: see each module."""
