"""Mutation testing of the failure tables, which mutmut leaves alone: it changes functions only.

Removes one rule, status, word, phrase or option at a time, and prints those that no test notices.
"""
# ruff: noqa: INP001, S102, T201 - a script

from __future__ import annotations

import ast
import importlib
import io
import os
import sys
import types
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "resilient_imagen.providers"
TABLES = ("classification", "google_errors", "openai_errors", "error_body")
TESTS = ("tests/providers/test_failure_tables.py",)


def removals(node: ast.AST) -> Iterator[str]:
    """Remove one part of the node after the other; yield its text while it is missing."""
    lists: list[list[Any]] = []
    if isinstance(node, ast.Tuple | ast.Set):
        lists = [node.elts]
    elif isinstance(node, ast.Dict):
        lists = [node.keys, node.values]
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called == "words":
            node.args = [ast.Constant(word) for word in ast.literal_eval(node.args[0]).split()]
            node.func = ast.Name("joined_words", ast.Load())
        if called in {"words", "says"} and len(node.args) > 1:
            lists = [node.args]
        elif called == "ClassificationRule":
            lists = [node.keywords]
    for position, part in enumerate(list(lists[0]) if lists else []):
        if isinstance(part, ast.keyword) and part.arg not in {"account_wide", "keep_hint"}:
            continue
        removed = [each.pop(position) for each in lists]
        yield ast.unparse(part)
        for each, kept in zip(lists, removed, strict=True):
            each.insert(position, kept)


def mutants(tree: ast.Module) -> Iterator[str]:
    """Change the tables of a module in every way; yield what is missing while it is."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            if ast.unparse(statement).startswith("__all__"):
                continue
            for node in ast.walk(statement.value):
                for removed in removals(node):
                    yield f"{statement.lineno}: {removed}"


def survives(name: str, tree: ast.Module) -> bool:
    """Run the tests in a child that imports the changed module."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    status = 1
    try:
        module: Any = types.ModuleType(f"{PACKAGE}.{name}")
        module.joined_words = lambda *words: frozenset(words)
        sys.modules[module.__name__] = module
        exec(compile(ast.fix_missing_locations(tree), name, "exec"), module.__dict__)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            arguments = ["-x", "-q", "-n0", "-pno:cacheprovider", "-Wignore:Module already"]
            status = int(pytest.main([*arguments, *TESTS]))
    finally:
        os._exit(status)


for heavy in ("google.genai.errors", "openai", "hypothesis"):
    importlib.import_module(heavy)  # once, not in each child
total = survivors = 0
for name in TABLES:
    tree = ast.parse(Path(*PACKAGE.split("."), f"{name}.py").read_text())
    if not survives(name, tree):
        sys.exit(f"{name}: the tests fail without a change")
    for removed in mutants(tree):
        total += 1
        if survives(name, tree):
            survivors += 1
            print(f"    {name}:{removed}", flush=True)
print(f"tables: {total} parts, {survivors} of them can be removed unnoticed")
