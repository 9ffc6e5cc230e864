"""Single-file modules from the installed sources, for repositories that carry their own code.

The loaders of diffusers and transformers fetch one code file per component. The exporter therefore
copies everything that a module imports from the package into that file. The source text and its
order stay the same, with three rules:

- The module itself is kept whole. Imported modules contribute only the definitions that it needs.
- Functions, methods and base classes that need a tool of the package ([`TOOLS`]: conversion of
  original files, pushing) are left out. So are statements that run at import, such as class
  registration. Any other import inside a function is replaced by the imported definitions.
- Classes that live in another file of the repository are replaced by stand-ins: their base classes.
"""

import ast
import builtins
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from var_hf import __version__

PACKAGE = "var_hf"

#: Modules that an exported file does without: a function that imports one of them is left out.
TOOLS = tuple(
    f"{PACKAGE}.{name}"
    for name in ("conversion", "hub", "stored", "pipelines.likelihood", "pipelines.classification")
)

# The project's LICENSE. MIT requires it in every copy of a substantial part.
LICENSE = """\
MIT License

Copyright (c) 2026 The var-hf authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@dataclass
class _Module:
    """A parsed source file of the package.

    Attributes:
        name: Full name of the module.
        lines: Its lines.
        docstring: Its docstring.
        definitions: Its top-level definitions, in order, each with the names that it defines.
        inside: Its imports from the package, also those inside functions: name to module.
        outside: Its other imports: name to the import that provides it.
    """

    name: str
    lines: list[str]
    docstring: str
    definitions: list[tuple[tuple[str, ...], ast.stmt]] = field(default_factory=list)
    inside: dict[str, str] = field(default_factory=dict)
    outside: dict[str, "_Import"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Import:
    """One imported name: ``import module as name``, or ``from module import original as name``."""

    module: str
    original: str | None
    name: str

    def statement(self, imports: Iterable["_Import"]) -> str:
        """The statement for some imports from this module."""
        if self.original is None:
            return f"import {self.module}" + (
                f" as {self.name}" if self.name != self.module else ""
            )
        imports = sorted(imports, key=lambda i: _isort_key(str(i.original)))
        names = [str(i.original) for i in imports if i.original == i.name]
        lines = [
            f"from {self.module} import {i.original} as {i.name}"
            for i in imports
            if i.original != i.name
        ]
        if names:
            line = f"from {self.module} import {', '.join(names)}"
            if len(line) > 100:
                line = (
                    f"from {self.module} import (\n" + "".join(f"    {n},\n" for n in names) + ")"
                )
            lines.insert(0, line)
        return "\n".join(lines)


def single_file(
    module: str,
    stand_ins: Mapping[str, str] | None = None,
    absent: Iterable[str] = (),
    *,
    constants: Mapping[str, str] | None = None,
    tools: Collection[str] = TOOLS,
) -> str:
    """Return the source of one module as a file that needs nothing else of the package.

    Args:
        module: Full name, such as ``"var_hf.modeling_var"``.
        stand_ins: Imported names of the package, each with the class that replaces it:
            ``{"VARModel": "transformers.PreTrainedModel"}``.
        absent: Imported names of the package that are not available. Code that uses them is left
            out.
        constants: Module constants of the package with the texts that the file gives them.
        tools: Modules that the file does without.

    Returns:
        The source text: licence, version, docstring, imports, code.

    Raises:
        ValueError: The module is not part of this package, or the exported code needs a name that
            no file provides. The latter is a bug in this package.
    """
    exporter = _Exporter(dict(stand_ins or {}), set(absent), dict(constants or {}), tuple(tools))
    return exporter.export(module)


class _Exporter:
    def __init__(
        self,
        stand_ins: dict[str, str],
        absent: set[str],
        constants: dict[str, str],
        tools: tuple[str, ...],
    ):
        self.stand_ins, self.absent, self.constants = stand_ins, absent, constants
        self.tools = tools
        self.modules: dict[str, _Module] = {}
        # Innermost modules first, each in its own order.
        self.kept: list[tuple[_Module, ast.stmt]] = []
        self.imports: set[_Import] = set()
        self.provided: dict[str, str] = {}  # name to the module that defines it

    def export(self, name: str) -> str:
        module = self.module(name)
        self.collect(module, {name for names, _ in module.definitions for name in names})
        sources = dict.fromkeys(module.name for module, _ in self.kept)
        parts: list[str] = []
        previous: ast.stmt | None = None
        for owner, statement in self.kept:
            together = _is_constant(previous) and _is_constant(statement)  # constants in a row
            parts += ["\n" if together else "\n\n\n", self.source(owner, statement)]
            previous = statement
        body = "".join(parts[1:])
        header = _comment(
            f"Generated by var-hf {__version__} from {', '.join(sources)}. To change it, change "
            f"those.\n\n{LICENSE}"
        )
        gap = "\n\n" if _is_constant(self.kept[0][1]) else "\n\n\n"
        text = f'{header}\n"""{module.docstring}"""\n\n{self.import_lines()}{gap}{body}\n'
        _check_names(text, name)
        return text

    def module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _read(name, self.tools)
        return self.modules[name]

    def collect(self, module: _Module, wanted: set[str]) -> None:
        """Keep all definitions that `wanted` needs: imported modules first, then this one."""
        needed, todo = set[str](), set(wanted)
        statements = {name: node for names, node in module.definitions for name in names}
        while todo:
            name = todo.pop()
            needed.add(name)
            if name in statements and not self.is_left_out(module, statements[name]):
                todo |= (
                    self.used_names(module, statements[name]) & {*statements, *module.inside}
                ) - needed
        wanted_of: dict[str, set[str]] = {}
        for name, origin in module.inside.items():
            if name in needed and name in self.stand_ins:
                library, original = self.stand_ins[name].rsplit(".", 1)
                self.imports.add(_Import(library, original, original))
            elif name in needed and name not in self.absent:
                wanted_of.setdefault(origin, set()).add(name)
        for origin, names_wanted in wanted_of.items():
            self.collect(self.module(origin), names_wanted)
        for names, node in module.definitions:
            if (
                not needed.isdisjoint(names)
                and not self.is_left_out(module, node)
                and self.provided.get(names[0]) != module.name
            ):
                if clash := [n for n in names if n in self.provided]:
                    raise ValueError(
                        f"{clash[0]!r} is defined in {self.provided[clash[0]]} and {module.name}."
                    )
                self.provided |= dict.fromkeys(names, module.name)
                self.kept.append((module, node))
                used = self.used_names(module, node)
                self.imports |= {module.outside[name] for name in used & set(module.outside)}

    # Omissions

    def needs_the_package(self, module: _Module, node: ast.AST) -> bool:
        """Check whether a function imports a tool of the package or uses a missing name."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom) and _is_tool(
                _inside(inner, module.name), self.tools
            ):
                return True
            if (
                isinstance(inner, ast.Name)
                and inner.id in self.absent
                and inner.id in module.inside
            ):
                return True
        return False

    def is_left_out(self, module: _Module, node: ast.stmt) -> bool:
        return isinstance(node, ast.FunctionDef) and self.needs_the_package(module, node)

    def members_left_out(self, module: _Module, node: ast.ClassDef) -> list[ast.stmt]:
        left_out = [member for member in node.body if self.needs_the_package(module, member)]
        for member in left_out:
            if getattr(member, "name", "").startswith("__"):
                raise ValueError(
                    f"The code of {module.name} cannot stand alone: {node.name}."
                    f"{member.name} needs the package."  # type: ignore[attr-defined]
                )
        return left_out

    def used_names(self, module: _Module, node: ast.stmt) -> set[str]:
        if isinstance(node, ast.ClassDef):
            left_out = self.members_left_out(module, node)
            parts: list[ast.AST] = [member for member in node.body if member not in left_out]
            parts += [*node.bases, *node.keywords, *node.decorator_list]
        else:
            parts = [node]
        names = {
            inner.id for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Name)
        }
        return names - self.absent

    # Text

    def source(self, module: _Module, node: ast.stmt) -> str:
        """Return the text of a definition with its comment and without left-out members."""
        first, last = _span(node, module.lines)
        gone: set[int] = set()
        edits: list[tuple[int, int, int, str]] = []  # line, start, end, new text
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in self.constants:
            text = json.dumps(self.constants[ast.unparse(node.target)])
            assert node.value is not None  # the constant to replace
            start, end = node.value.col_offset, node.value.end_col_offset or 0
            edits.append((node.value.lineno - 1, start, end, text))
        if isinstance(node, ast.ClassDef):
            for member in self.members_left_out(module, node):
                start, end = _span(member, module.lines)
                while start > first and not module.lines[start - 1].strip():
                    start -= 1
                gone |= set(range(start, end))
            edits += self.base_edits(node)
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom) and _inside(inner, module.name):
                gone |= set(range(inner.lineno - 1, inner.end_lineno or inner.lineno))
                if not module.lines[inner.end_lineno or inner.lineno].strip():  # the gap below
                    gone.add(inner.end_lineno or inner.lineno)
            if isinstance(inner, ast.Name) and inner.id in self.stand_ins:
                new = self.stand_ins[inner.id].rsplit(".", 1)[1]
                edits.append(
                    (inner.lineno - 1, inner.col_offset, inner.col_offset + len(inner.id), new)
                )
        lines = list(module.lines)
        for line, start, end, new in sorted(set(edits), reverse=True):
            lines[line] = lines[line][:start] + new + lines[line][end:]
        return "\n".join(lines[i] for i in range(first, last) if i not in gone).rstrip()

    def base_edits(self, node: ast.ClassDef) -> list[tuple[int, int, int, str]]:
        kept = [
            base
            for base in node.bases
            if not (isinstance(base, ast.Name) and base.id in self.absent)
        ]
        if len(kept) == len(node.bases):
            return []
        start, end = node.bases[0], node.bases[-1]
        assert start.lineno == end.end_lineno  # our class headers are one line
        text = ", ".join(ast.unparse(base) for base in kept)
        return [(start.lineno - 1, start.col_offset, end.end_col_offset or 0, text)]

    def import_lines(self) -> str:
        """The imports in the usual order: the standard library, then the others.

        Raises:
            ValueError: Two imports give the same name to different things.
        """
        origins: dict[str, _Import] = {}
        for imported in self.imports:
            other = origins.setdefault(imported.name.split(".")[0], imported)
            if imported != other and not (imported.original is None and other.original is None):
                raise ValueError(
                    f"{imported.name!r} is imported from {imported.module} and {other.module}."
                )
        # Keys: outside the standard library, "from" form, module.
        lines: dict[tuple[bool, bool, str], str] = {}
        for imported in self.imports:
            foreign = imported.module.split(".")[0] not in sys.stdlib_module_names
            if imported.original is None:
                lines[foreign, False, imported.module] = imported.statement([imported])
            else:
                same = [i for i in self.imports if i.original and i.module == imported.module]
                lines[foreign, True, imported.module] = imported.statement(same)
        keys = sorted(lines, key=lambda key: (key[0], key[1], key[2].lower()))
        blocks = [
            "\n".join(lines[key] for key in keys if key[0] == foreign) for foreign in (False, True)
        ]
        return "\n\n".join(block for block in blocks if block)


def _read(name: str, tools: tuple[str, ...]) -> _Module:
    """Parse a source file of the package."""
    if name.split(".")[0] != PACKAGE:
        raise ValueError(f"{name} is not a module of {PACKAGE}.")
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    tree = ast.parse(text)
    module = _Module(name, text.splitlines(), ast.get_docstring(tree, clean=False) or "")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            origin = _inside(node, name)
            for alias in node.names:
                if origin:
                    module.inside[alias.asname or alias.name] = origin
                else:
                    imported = _Import(str(node.module), alias.name, alias.asname or alias.name)
                    module.outside[imported.name] = imported
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imported = _Import(alias.name, None, alias.asname or alias.name)
                module.outside[imported.name.split(".")[0]] = imported
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            module.definitions.append(((node.name,), node))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = tuple(target.id for target in targets if isinstance(target, ast.Name))
            if names != ("__all__",):
                module.definitions.append((names, node))
        # Imports inside functions, which the exported file replaces by the definitions.
        for inner in ast.walk(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else ():
            if not isinstance(inner, ast.ImportFrom):
                continue
            origin = _inside(inner, name)
            if origin and not _is_tool(origin, tools):
                module.inside |= {alias.asname or alias.name: origin for alias in inner.names}
    return module


def _is_tool(name: str | None, tools: tuple[str, ...]) -> bool:
    """Check whether a module is one of the tools or lies in one."""
    return any(name == tool or str(name).startswith(f"{tool}.") for tool in tools)


def _inside(node: ast.ImportFrom, importer: str) -> str | None:
    """Return the module of this package that an import names, or ``None``."""
    if node.level:
        package = importer.rsplit(".", node.level)[0]
        return f"{package}.{node.module}" if node.module else package
    if node.module and node.module.split(".")[0] == PACKAGE:
        return node.module
    return None


def _span(node: ast.stmt, lines: list[str]) -> tuple[int, int]:
    """Return first line and end of a statement with its decorators and the comment above it."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first, node.end_lineno or node.lineno


def _is_constant(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Assign | ast.AnnAssign)


def _isort_key(name: str) -> tuple[int, str]:
    """Sort constants first, then classes, then functions, each without regard to case."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name.lower()


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.rstrip().splitlines())


def _check_names(text: str, name: str) -> None:
    """Raise a ``ValueError`` if the text uses an undefined name, which would fail at run time."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    defined = set(dir(builtins)) | {"__name__", "__file__"}
    bound: tuple[tuple[type, Callable[[ast.AST], Iterable[str]]], ...] = (
        (ast.ClassDef, lambda node: [node.name]),  # type: ignore[attr-defined]
        (ast.FunctionDef, lambda node: [node.name]),  # type: ignore[attr-defined]
        (ast.arg, lambda node: [node.arg]),  # type: ignore[attr-defined]
        (ast.alias, lambda node: [(node.asname or node.name).split(".")[0]]),  # type: ignore[attr-defined]
        (ast.ExceptHandler, lambda node: [node.name or ""]),  # type: ignore[attr-defined]
    )
    for node in nodes:
        for kind, names in bound:
            if isinstance(node, kind):
                defined |= set(names(node))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    used = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    if missing := used - defined:
        raise ValueError(
            f"The code of {name} cannot stand alone: it needs {', '.join(sorted(missing))}. Import "
            "it inside the function that uses it."
        )
