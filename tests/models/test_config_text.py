"""The literal parser: what it reads, and that it refuses everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.errors import ConfigError
from carafe_deploy.models.config_text import merge_configs, parse_config, read_config, short

READ: list[tuple[str, Any]] = [
    ("x = 1", 1),
    ("x = -1.5e3", -1500.0),
    ("x = +2", 2),
    ("x = 'a' 'b'", "ab"),
    ("x = None", None),
    ("x = (1, [2, {'k': True}])", (1, [2, {"k": True}])),
    ("x = {1, 2}", {1, 2}),
    ("x = dict(a=1, b=dict(c=2))", {"a": 1, "b": {"c": 2}}),
    ("x = dict({'a b': 1}, c=2)", {"a b": 1, "c": 2}),
    ("x = list((1, 2))", [1, 2]),
    ("x = tuple([1, 2])", (1, 2)),
    ("x = list()", []),
    ("x = range(0, 2)", range(0, 2)),
    ("y = 3\nx = [y, y]", [3, 3]),
    ("y = z = 3\nx = z", 3),
    ("y = dict(mean=[1.])\nx = dict(type='Normalize', **y)", {"type": "Normalize", "mean": [1.0]}),
    ("y = dict(a=1)\nx = {**y, 'b': 2}", {"a": 1, "b": 2}),
    ("y = [1]\nx = [*y, 2]", [1, 2]),
    ("root = 'data/'\nx = root + 'val.json'", "data/val.json"),
    ("x = [1] + [2]", [1, 2]),
    ("x = 1 / 9 * 9 + 7 // 2 - 5 % 3", 1 / 9 * 9 + 7 // 2 - 5 % 3),
    ("'''A docstring.'''\n# a comment with {{ fileDirname }}\nx = 1", 1),
    (r"x = 'C:\data'", "C:\\data"),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_data_is_read(text: str, expected: Any) -> None:
    assert parse_config(text)["x"] == expected


REFUSED = [
    ("import os", "line 1: an import"),
    ("a = 1\nfrom x import y", "line 2: an import"),
    ("from mmengine.config import read_base\nwith read_base():\n    from .a import *", "an import"),
    ("with read_base():\n    pass", r"a with block \(read_base\)"),
    ("x = f'{1}'", "an f-string"),
    ("x = [i for i in (1, 2)]", "a comprehension"),
    ("x = __import__('os').system('true')", "a call of __import__"),
    ("x = open('f')", "a call of open"),
    ("x = dict(a=eval('1'))", "a call of eval"),
    ("x = (lambda: 1)()", "a call of"),
    ("a = dict(b=1)\nx = a.b", "line 2: an attribute"),
    ("a = [1]\nx = a[0]", "line 2: a subscript"),
    ("a = [1]\na[0] = 2", "an assignment to more than a name"),
    ("a, b = 1, 2", "an assignment to more than a name"),
    ("a = 1\na += 1", "line 2: an augmented assignment"),
    ("x = 1 if True else 2", "a condition"),
    ("if True:\n    x = 1", "a condition"),
    ("for i in (1, 2):\n    x = i", "a loop"),
    ("def f(): pass", "a function"),
    ("class A: pass", "a class"),
    ("x = y", "the name 'y', not assigned before"),
    ("x = 'C:\\Users\\me'", r"line 1: a backslash in a string begins an escape.*: write / in its"),
    ("x = {{_base_.model}}", r"line 1: \{\{_base_.model\}\} is a substitution"),
    ("a = 1\nx = '{{ fileDirname }}/a'", r"line 2: \{\{ fileDirname \}\} is a substitution"),
    ("x = 2 ** 9", "an operation other than"),
    ("x = 'a' * 9", "an operation other than"),
    ("x = 'a%d' % 9", "an operation other than"),
    ("x = [0] * 9", "an operation other than"),
    ("x = 1 / 0", r"an operation that fails \(division by zero\)"),
    ("x = -'a'", "the sign before 'a'"),
    ("x = {[1]: 2}", r"the set or dict key \[1\]"),
    ("x = {[1]}", r"the set or dict key \[1\]"),
    ("x = dict(**[1])", r"the unpacking of \[1\]"),
    ("x = [*1]", "the unpacking of 1"),
    ("x = dict([1], [2])", r"dict\(\.\.\.\) with several positional arguments"),
    ("x = list(1)", r"list\(\.\.\.\) of anything but one list or tuple"),
    ("x = range('a')", r"range\(\.\.\.\) of anything but whole numbers"),
    ("x = (", r"line 1: not valid Python"),
    ("x = '\0'", "config"),
    ("x = " + "(" * 5000, "config"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_everything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(text)
    assert "resolved config" in str(caught.value)


@pytest.mark.parametrize("line", ["a = a + a", "b = b * b"], ids=["text", "number"])
def test_growth_is_bounded(line: str) -> None:
    """Forty doublings would need a terabyte."""
    with pytest.raises(ConfigError, match="is not supported"):
        parse_config("a = 'xxxxxxxx'\nb = 9\n" + f"{line}\n" * 40)


def test_nothing_is_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ConfigError):
        parse_config(f"x = open({str(witness)!r}, 'w')")
    assert not witness.exists()


MERGES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
    ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ({"a": {"b": 1}}, {"a": {"_delete_": True, "c": 2}}, {"a": {"c": 2}}),
    ({"a": {"b": 1}}, {"a": {"_delete_": False, "c": 2}}, {"a": {"b": 1, "c": 2}}),
    ({"a": [1]}, {"a": {"_delete_": True, "c": 2}}, {"a": {"c": 2}}),
    ({"a": {"b": 1}}, {"a": None}, {"a": None}),
    ({}, {"a": {"_delete_": True, "c": 2}}, {"a": {"c": 2}}),
]


@pytest.mark.parametrize(("base", "child", "expected"), MERGES)
def test_merge_rules_are_mmengines(
    base: dict[str, Any], child: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merge_configs(base, child) == expected


def test_merging_a_dict_into_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a' is a dict, but \[1\] in its base: set _delete_=Tr"):
        merge_configs({"a": [1]}, {"a": {"b": 2}})


def test_merging_leaves_its_arguments_alone() -> None:
    base, child = {"a": {"b": 1}}, {"a": {"_delete_": True, "c": 2}}
    merge_configs(base, child)
    assert base == {"a": {"b": 1}}
    assert child == {"a": {"_delete_": True, "c": 2}}


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder / "child.py"


def test_bases_are_followed(tmp_path: Path) -> None:
    child = _write(
        tmp_path,
        grandparent="model = dict(type='A', neck=dict(x=1, y=1))",
        parent="_base_ = 'grandparent.py'\nmodel = dict(neck=dict(y=2))",
        other="data = dict(n=1)",
        child="_base_ = ['./parent.py', './other.py']\nmodel = dict(type='B')\n__all__ = []",
    )
    assert read_config(child) == {
        "model": {"type": "B", "neck": {"x": 1, "y": 2}},
        "data": {"n": 1},
    }


BAD_BASES = [
    ({"child": "_base_ = 'gone.py'"}, r"cannot read config .*gone\.py, which .*child\.py names"),
    ({"child": "_base_ = 'child.py'"}, "leads back to itself"),
    ({"a": "_base_ = 'child.py'", "child": "_base_ = 'a.py'"}, "leads back to itself"),
    ({"a": "x = 1", "b": "x = 2", "child": "_base_ = ['a.py', 'b.py']"}, "more than one .* 'x'"),
    ({"child": "_base_ = 'mmdet::a.py'"}, "no file beside this config"),
    ({"child": "_base_ = 3"}, "_base_=3 is neither a path nor a list of paths"),
    ({"child": "_base_ = 'a.json'"}, r"a\.json is not a config"),
    ({"a": "x = 1", "child": "_base_ = 'a.py'\ny = x"}, "the name 'x', not assigned before in thi"),
]


@pytest.mark.parametrize(("files", "message"), BAD_BASES)
def test_bad_bases(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(_write(tmp_path, **files))


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read config .*none\.py \(No such file"):
        read_config(tmp_path / "none.py")


def test_binary_config(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_bytes(b"\x80\x02\xff")
    with pytest.raises(ConfigError, match="is not text"):
        read_config(tmp_path / "child.py")


def test_all_files_in_one_text_as_mmcv_stored_them_in_2020() -> None:
    text = (
        "/home/me/configs/_base_/model.py\n# model\nmodel = dict(neck=dict(type='FPN', n=5))\n\n"
        "/home/me/configs/_base_/data.py\nn = 2\ndata = dict(n=n)\n\n"
        "/home/me/configs/carafe/child.py\n_base_ = ['../_base_/model.py', '../_base_/data.py']\n"
        "model = dict(neck=dict(type='FPN_CARAFE'))\n"
    )
    assert parse_config(text) == {
        "model": {"neck": {"type": "FPN_CARAFE", "n": 5}},
        "n": 2,
        "data": {"n": 2},
    }


def test_an_error_in_one_of_several_files_names_the_file() -> None:
    text = "/a/base.py\nx = 1\n/a/child.py\n_base_ = 'base.py'\ny = f()\n"
    with pytest.raises(ConfigError, match=r"meta, part child\.py, line 2: a call of f"):
        parse_config(text, "meta")


def test_text_with_a_base_that_is_not_in_it() -> None:
    with pytest.raises(ConfigError, match=r"_base_='\.\./a\.py' is not part of the text"):
        parse_config("_base_ = '../a.py'\nmodel = dict()")


def test_long_values_are_cut_in_messages() -> None:
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]  # 2**60 brackets, were it written out
    assert len(short(nested)) < 200
    assert len(short("x" * 10_000)) < 100
