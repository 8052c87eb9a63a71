"""Compare two sets of TensorRT headers in what the plugins' binary layout rests on.

One binary serves TensorRT 10, 11 and TensorRT-RTX as long as the classes it implements or calls
have the same virtual methods in the same order, the structures the same members, and the
enumerations the same values.

Usage: python compare_headers.py FOLDER_A FOLDER_B; exits 1 on a difference.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

#: What plugins implement, are handed, or call. The plugin registry is not among them: its methods
#: did move, and tensorrt/registry.h knows where to.
CLASSES = (
    "IVersionedInterface",
    "IPluginCapability",
    "IPluginV3",
    "IPluginV3OneCore",
    "IPluginV3OneBuild",
    "IPluginV3OneRuntime",
    "IPluginCreatorInterface",
    "IPluginCreatorV3One",
    "ILoggerFinder",
    "IDimensionExpr",
    "IExprBuilder",
    "VDimensionExpr",
    "VExprBuilder",
    "InterfaceInfo",
    "PluginField",
    "PluginFieldCollection",
    "PluginTensorDesc",
    "DynamicPluginTensorDesc",
    "Dims64",
    "DimsExprs",
)

#: Values of enumerations are compared as far as both sets name them: new ones may be appended.
ENUMS = (
    "DataType",
    "TensorFormat",
    "DimensionOperation",
    "PluginFieldType",
    "PluginCapabilityType",
    "TensorRTPhase",
)


def read_headers(folder: Path) -> str:
    """All ``NvInfer*.h`` of a folder as one text without comments and macros."""
    paths = sorted(folder.glob("NvInfer*.h"))
    if not paths:
        sys.exit(f"compare_headers: there is no NvInfer*.h in {folder}")
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*#.*?(?<!\\)$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\bTRT_\w+(\([^)]*\))?", "", text)


def find_bodies(text: str, keyword: str, name: str) -> Iterator[tuple[str, str]]:
    """Head (bases) and body of every definition of ``name``, in the order of the text."""
    for match in re.finditer(rf"\b(?:{keyword})\s+{name}\b([^;{{}}()]*)\{{", text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield " ".join(match[1].split()), text[match.end() : end - 1]


def describe_class(text: str, name: str) -> list[str]:
    """Bases, virtual methods and data members of a class, one a line, in order."""
    lines = []
    for bases, body in find_bodies(text, "class|struct", name):
        lines.append(f"{name} {bases}".strip())
        while "{" in body:  # bodies of inline methods and initialisers
            body = re.sub(r"\{[^{}]*\}", ";", body)
        for statement in re.split(r";|\b(?:public|protected|private)\s*:", body):
            declaration = re.sub(r"(?<=\() | (?=\))", "", " ".join(statement.split()))
            if "(" not in declaration or re.match(r"virtual\b|.*\boverride$|.*~", declaration):
                lines.extend([f"  {declaration}"] if declaration else [])
    return lines


def describe_enum(text: str, name: str) -> dict[str, int]:
    """Names and values of an enumeration."""
    values: dict[str, int] = {}
    for _, body in find_bodies(text, "enum class", name):
        following = 0
        for entry in body.split(","):
            parts = [part.strip() for part in entry.split("=")]
            if re.fullmatch(r"\w+", parts[0]):
                following = int(parts[1], 0) if len(parts) > 1 else following
                values[parts[0]] = following
                following += 1
    return values


def compare(first: str, second: str) -> list[str]:
    """Differences of two texts of headers, empty when plugins cannot tell them apart."""
    differences: list[str] = []
    for name in CLASSES:
        old, new = describe_class(first, name), describe_class(second, name)
        if not old:
            differences.append(f"{name} is in no header of the first set")
        differences.extend(difflib.unified_diff(old, new, lineterm="", n=1))
    for name in ENUMS:
        values, others = describe_enum(first, name), describe_enum(second, name)
        if not values.keys() & others.keys():
            differences.append(f"{name} has no value that both sets name")
        differences.extend(
            f"{name}::{key} is {values[key]} and {others[key]}"
            for key in values
            if key in others and values[key] != others[key]
        )
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="folder with NvInferRuntime.h")
    parser.add_argument("second", type=Path, help="folder with NvInferRuntime.h")
    arguments = parser.parse_args()
    differences = compare(read_headers(arguments.first), read_headers(arguments.second))
    if differences:
        sys.exit("\n".join(differences))
    print(f"same: {len(CLASSES)} classes, {len(ENUMS)} enumerations")


if __name__ == "__main__":
    main()
