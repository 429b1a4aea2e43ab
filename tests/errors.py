"""Expected errors: the message must name the value, the rule and the way out."""

import re

import pytest


def rejects(kind, *parts):
    """Expects an error whose message holds all of the parts, in any order."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts))
