"""An extension of griffe: cross-references written for Python's help (``:class:`~a.B```) are code on the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|exc|obj):`~?(?:[\w.]*\.)?(\w+)`")


class PlainRoles(griffe.Extension):
    """Turns the roles of reStructuredText into inline code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
