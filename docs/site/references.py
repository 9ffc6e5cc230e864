"""Turns the references in our docstrings, in the style of transformers, into links of the site.

[`VARModel`] and [`~VARPipeline.__call__`] become links if the name is on one of the pages; others
become plain code.
"""

import re
from typing import Any

import griffe

REFERENCE = re.compile(r"\[`~?(?P<name>[\w.]+)`\](?![\[(])")


def paths_by_name(package: griffe.Module) -> dict[str, str]:
    """Map the bare name of every class and function of a package to its full path."""
    paths: dict[str, str] = {}
    modules = [package]
    while modules:
        module = modules.pop()
        for name, member in module.members.items():
            if member.is_alias:
                continue
            if isinstance(member, griffe.Module):
                modules.append(member)
            elif isinstance(member, griffe.Class | griffe.Function):
                paths[name] = member.path
    return paths


class ReferencesExtension(griffe.Extension):
    """Rewrites the docstrings of a loaded package."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the references in all docstrings."""
        paths = paths_by_name(pkg)

        def link(reference: re.Match[str]) -> str:
            owner, dot, member = reference["name"].partition(".")
            path = paths.get(owner)
            shown = f"`{reference['name'].lstrip('.')}`"
            return f"[{shown}][{path}{dot}{member}]" if path else shown

        objects: list[griffe.Object] = [pkg]
        while objects:
            each = objects.pop()
            if each.docstring:
                each.docstring.value = REFERENCE.sub(link, each.docstring.value)
            objects += [member for member in each.members.values() if not member.is_alias]
