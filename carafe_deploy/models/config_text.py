"""mmdetection's Python config files read as data: parsed, never executed.

Read are assignments to names; literals; lists, tuples, sets and dicts; ``dict(...)``,
``list(...)``, ``tuple(...)`` and ``range(...)`` (2.x writes ``gpu_ids = range(0, 1)``); ``**name``
and ``*name``; names assigned before; ``+ - * / // %`` on numbers and ``+`` on strings, lists and
tuples. ``_base_`` is followed beside the config, with mmengine's merge rules. All else (imports,
calls, attributes, f-strings, ``{{ ... }}`` substitutions, ...) is an error that names the line.
"""

from __future__ import annotations

import ast
import operator
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carafe_deploy.errors import ConfigError
from carafe_deploy.known_warnings import without_known_warnings

_REMEDY = (
    "configs are read, never executed: use the resolved config that mmdetection writes into its "
    "work_dirs folder when training starts"
)
#: mmcv and mmengine replace these in the text before Python sees it.
_SUBSTITUTION = re.compile(r"\{\{\s*(?:file\w+|_base_[\w.]*|\$\w+[^}]*)\s*\}\}")
#: mmcv's ``Config.text`` is the texts of all files, bases first, each after its absolute path.
_FILE_LINE = re.compile(r"(?:/|[A-Za-z]:[\\/]).*\.py\s*")

#: Config text may come from a stranger's checkpoint: `a = a + a` must not fill the memory.
_MAX_JOINED = 100_000
_MAX_NUMBER = 1e18

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNSUPPORTED: dict[type[ast.AST], str] = {
    kind: what
    for what, kinds in {
        "an import": (ast.Import, ast.ImportFrom),
        "a with block (read_base)": (ast.With,),
        "an f-string": (ast.JoinedStr,),
        "a comprehension": (ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp),
        "a function": (ast.Lambda, ast.FunctionDef),
        "a class": (ast.ClassDef,),
        "an attribute": (ast.Attribute,),
        "a subscript": (ast.Subscript,),
        "a condition": (ast.IfExp, ast.If),
        "a loop": (ast.For, ast.While),
        "an augmented assignment": (ast.AugAssign,),
        "an annotated assignment": (ast.AnnAssign,),
    }.items()
    for kind in kinds
}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Values of a ``.py`` config file and of the files named by its ``_base_``.

    Merging is mmengine's: dicts are merged key by key unless ``_delete_=True``, other values (lists
    included) replace; two bases must not share a top-level key.

    Raises:
        ConfigError: the file or a base cannot be read, or holds more than data.
    """
    return _read(Path(path), ())


def parse_config(text: str, source: str = "config") -> dict[str, Any]:
    """Values of config text as checkpoints store it; errors call it `source`.

    Read are the resolved config (mmengine and later mmcv), and all files one after the other, bases
    first, each after a line with its path (mmcv's ``Config.text`` until 2020).

    Raises:
        ConfigError: the text holds more than data, or a ``_base_`` that is not in it.
    """
    values: dict[str, Any] = {}
    parts = _split_files(text, source)
    for name, part in parts:
        own = _evaluate(part, name)
        if "_base_" in own and len(parts) == 1:
            raise ConfigError(
                f"{name}: _base_={short(own['_base_'])} is not part of the text: use the resolved "
                "config that mmdetection writes into its work_dirs folder"
            )
        own.pop("_base_", None)
        values = merge_configs(values, own, name)
    return values


def merge_configs(
    base: Mapping[str, Any], child: Mapping[str, Any], source: str = "config"
) -> dict[str, Any]:
    """mmengine's merge of two configs; neither argument is changed.

    Raises:
        ConfigError: a dict would be merged into something that is none.
    """
    merged = dict(base)
    for key, value in child.items():
        if not isinstance(value, Mapping):
            merged[key] = value
            continue
        rest = {k: v for k, v in value.items() if k != "_delete_"}
        if key not in base or value.get("_delete_", False):
            merged[key] = rest
        elif isinstance(base[key], Mapping):
            merged[key] = merge_configs(base[key], rest, source)
        else:
            raise ConfigError(
                f"{source}: {key!r} is a dict, but {short(base[key])} in its base: set "
                "_delete_=True in it, as mmdetection asks too"
            )
    return merged


def short(value: Any) -> str:
    """``repr`` for messages, cut in the middle of long strings and after a few items."""
    style = reprlib.Repr()
    style.maxstring = style.maxother = 80
    style.maxlevel = 3
    return style.repr(value)


def _read(path: Path, descendants: tuple[Path, ...]) -> dict[str, Any]:
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not a config: give mmdetection's .py file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text: give mmdetection's .py config") from error
    except OSError as error:
        found = f", which {descendants[-1]} names in _base_," if descendants else ""
        raise ConfigError(
            f"cannot read config {path}{found} ({error.strerror}): check the path, or use the "
            "resolved config that mmdetection writes into its work_dirs folder"
        ) from error
    own = _evaluate(text, str(path))
    lineage = (*descendants, path.resolve())
    merged: dict[str, Any] = {}
    for base in _bases(own.pop("_base_", ()), path):
        if base.resolve() in lineage:
            raise ConfigError(f"{path}: _base_ {base} leads back to itself")
        values = _read(base, lineage)
        shared = sorted(merged.keys() & values.keys())
        if shared:
            raise ConfigError(f"{path}: more than one file of _base_ sets {shared[0]!r}")
        merged.update(values)
    return merge_configs(merged, own, str(path))


def _bases(value: Any, path: Path) -> list[Path]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: _base_={short(value)} is neither a path nor a list of paths")
    for name in names:
        if "::" in name or "://" in name:
            raise ConfigError(f"{path}: _base_={name!r} is no file beside this config: {_REMEDY}")
    return [path.parent / name for name in names]


def _split_files(text: str, source: str) -> list[tuple[str, str]]:
    """(name, text) of each file; line numbers of a part count from its own first line."""
    parts: list[tuple[str, list[str]]] = [(source, [])]
    for line in text.splitlines():
        if _FILE_LINE.fullmatch(line):
            parts.append((f"{source}, part {os.path.basename(line.strip())}", []))
        else:
            parts[-1][1].append(line)
    return [(name, "\n".join(lines)) for name, lines in parts if any(lines) or len(parts) == 1]


def _evaluate(text: str, source: str) -> dict[str, Any]:
    """Top-level names of one file; ``_base_`` is left in."""
    for number, line in enumerate(text.splitlines(), 1):
        found = None if line.lstrip().startswith("#") else _SUBSTITUTION.search(line)
        if found:
            raise ConfigError(
                f"{source}, line {number}: {found.group()} is a substitution; {_REMEDY}"
            )
    try:
        with without_known_warnings():
            tree = ast.parse(text)
        return _Reader(source).module(tree)
    except SyntaxError as error:
        if "unicodeescape" in str(error.msg):
            raise ConfigError(
                f"{source}, line {error.lineno}: a backslash in a string begins an escape, and "
                f"this one is none ({error.msg}): write / in its place or r before the string, or "
                "use the resolved config that mmdetection writes into its work_dirs folder"
            ) from error
        raise ConfigError(
            f"{source}, line {error.lineno}: not valid Python ({error.msg}): {_REMEDY}"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{source} cannot be parsed ({error}): {_REMEDY}") from error


class _Reader:
    """Evaluates the few node types that are data; `names` are the assignments so far."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.names: dict[str, Any] = {}

    def module(self, tree: ast.Module) -> dict[str, Any]:
        for statement in tree.body:
            match statement:
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    continue
                case ast.Assign(targets=targets, value=node):
                    value = self.value(node)
                    for target in targets:
                        if not isinstance(target, ast.Name):
                            raise self.error(target, "an assignment to more than a name")
                        self.names[target.id] = value
                case _:
                    raise self.error(statement)
        return {name: value for name, value in self.names.items() if not name.startswith("__")}

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Name(id=name):
                if name not in self.names:
                    raise self.error(node, f"the name {name!r}, not assigned before in this file,")
                return self.names[name]
            case ast.List(elts=elements):
                return self.items(elements)
            case ast.Tuple(elts=elements):
                return tuple(self.items(elements))
            case ast.Set(elts=elements):
                return set(self.hashable(self.items(elements), node))
            case ast.Dict():
                return self.dict_display(node)
            case ast.Call(func=ast.Name(id="dict" | "list" | "tuple" | "range")):
                return self.call(node)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                number = self.value(operand)
                if not isinstance(number, (int, float)):
                    raise self.error(node, f"the sign before {short(number)}")
                return -number if isinstance(op, ast.USub) else number
            case ast.BinOp():
                return self.arithmetic(node)
        raise self.error(node)

    def items(self, elements: Sequence[ast.expr]) -> list[Any]:
        values: list[Any] = []
        for element in elements:
            if isinstance(element, ast.Starred):
                unpacked = self.value(element.value)
                if not isinstance(unpacked, (list, tuple)):
                    raise self.error(element, f"the unpacking of {short(unpacked)}")
                values.extend(unpacked)
            else:
                values.append(self.value(element))
        return values

    def hashable(self, values: list[Any], node: ast.AST) -> list[Any]:
        for value in values:
            try:
                hash(value)
            except TypeError:
                raise self.error(node, f"the set or dict key {short(value)}") from None
        return values

    def dict_display(self, node: ast.Dict) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if key is None:
                result.update(self.mapping(item))
            else:
                (name,) = self.hashable([self.value(key)], key)
                result[name] = self.value(item)
        return result

    def mapping(self, node: ast.expr) -> Mapping[Any, Any]:
        value = self.value(node)
        if not isinstance(value, Mapping):
            raise self.error(node, f"the unpacking of {short(value)}")
        return value

    def call(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)
        if node.func.id == "dict":
            result: dict[Any, Any] = {}
            if len(node.args) > 1:
                raise self.error(node, "dict(...) with several positional arguments")
            for argument in node.args:
                result.update(self.mapping(argument))
            for keyword in node.keywords:
                if keyword.arg is None:
                    result.update(self.mapping(keyword.value))
                else:
                    result[keyword.arg] = self.value(keyword.value)
            return result
        values = self.items(node.args)
        if node.func.id == "range":
            numbers = 1 <= len(values) <= 3 and all(type(v) is int for v in values)
            if node.keywords or not numbers:
                raise self.error(node, "range(...) of anything but whole numbers")
            return range(*values)
        lists = len(values) <= 1 and all(isinstance(v, (list, tuple)) for v in values)
        if node.keywords or not lists:
            raise self.error(node, f"{node.func.id}(...) of anything but one list or tuple")
        return (list if node.func.id == "list" else tuple)(*values)

    def arithmetic(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        compute = _ARITHMETIC.get(type(node.op))
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        joined = isinstance(node.op, ast.Add) and any(
            isinstance(left, kind) and isinstance(right, kind) for kind in (str, list, tuple)
        )
        if compute is None or not (numbers or joined):
            raise self.error(
                node, "an operation other than arithmetic on numbers or joining with +"
            )
        if joined and len(left) + len(right) > _MAX_JOINED:
            raise self.error(node, f"joining to more than {_MAX_JOINED} items")
        try:
            result = compute(left, right)
        except ArithmeticError as error:
            raise self.error(node, f"an operation that fails ({error})") from error
        if numbers and abs(result) > _MAX_NUMBER:
            raise self.error(node, f"a result above {_MAX_NUMBER:g}")
        return result

    def error(self, node: ast.AST, what: str | None = None) -> ConfigError:
        if what is None and isinstance(node, ast.Call):
            what = f"a call of {ast.unparse(node.func)[:40]}"
        what = what or _UNSUPPORTED.get(type(node), f"{type(node).__name__}")
        line = getattr(node, "lineno", 1)
        return ConfigError(f"{self.source}, line {line}: {what} is not supported; {_REMEDY}")
