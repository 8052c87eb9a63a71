"""Each walk-through of docs/, followed literally, does what it says and touches few files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walkthrough import ROOT, Page, copy_tree

#: Most Python files that an addition may touch.
MOST = 3
#: Page -> folders that it needs besides the package and its tests.
PAGES: dict[str, tuple[str, ...]] = {
    "add_a_runner.md": (),
    "add_an_operator.md": ("plugins", "CMakeLists.txt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_page_works_as_it_stands(name: str, tmp_path: Path) -> None:
    page = Page((ROOT / "docs" / name).read_text(encoding="utf-8"))
    page.follow(copy_tree(tmp_path / "tree", *PAGES[name]))


@pytest.mark.parametrize("name", PAGES)
def test_page_touches_as_many_files_as_it_says(name: str) -> None:
    page = Page((ROOT / "docs" / name).read_text(encoding="utf-8"))
    assert page.promised == len(page.python_files) <= MOST, page.touched


EXAMPLE = """
# Add a toy

This touches two Python files.

First the file. Create
`pkg/toy.py`:

```python
TOY = 1
```

In `pkg/entries.py`, after `ENTRIES = [`, add:

```python
    "toy",
```

In `README`, replace `old` by:

```
new
```

For reading only:

```python
nothing()
```

```sh
cat pkg/entries.py README
python -c "import pkg.toy; print('toy', pkg.toy.TOY)"
```

```text
"toy",
toy 1
```
"""


def test_example_is_followed(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/entries.py").write_text("ENTRIES = [\n    1,\n]\n")
    (tmp_path / "README").write_text("a\nold\n")
    page = Page(EXAMPLE)
    page.follow(tmp_path)
    assert (tmp_path / "pkg/entries.py").read_text() == 'ENTRIES = [\n    "toy",\n    1,\n]\n'
    assert (tmp_path / "README").read_text() == "a\nnew\n"
    assert page.touched == ["README", "pkg/entries.py", "pkg/toy.py"]
    assert (page.promised, page.python_files) == (2, ["pkg/entries.py", "pkg/toy.py"])
    with pytest.raises(AssertionError, match="is there already"):
        page.follow(tmp_path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("In `a`, after `x`, add:\n\n```\ny\n```\n", "holds the line `x` 2 times"),
        ("In `a`, before `z`, add:\n\n```\ny\n```\n", "holds the line `z` 0 times"),
        ("```sh\nfalse; true\n```\n", "false; true"),
        ("```sh\necho one\n```\n\n```text\ntwo\n```\n", r"lacks \['two'\]"),
    ],
)
def test_what_does_not_work_is_told(page: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x\n  x\n")
    with pytest.raises(AssertionError, match=message):
        Page(page).follow(tmp_path)
