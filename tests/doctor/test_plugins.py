"""Our libraries: missing, wrong, without code for the GPU, and not taken by TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carafe_deploy import libraries
from carafe_deploy.doctor import plugins
from carafe_deploy.doctor.fatbin import GpuCode
from carafe_deploy.doctor.findings import ok
from carafe_deploy.doctor.gpu import Driver, Gpu
from carafe_deploy.doctor.plugins import (
    CREATORS,
    Library,
    check_alias,
    check_creators,
    check_gpu_code,
    check_kernels,
    check_torch_library,
    check_variable,
    look_for,
    rebuild,
)
from tests.doctor.elf import MACHINE_CODE, PTX, elf, fat_binary

UNSET = "unset CARAFE_DEPLOY_PLUGIN"
WHEEL = "pip install --force-reinstall --no-deps carafe-deploy"
RTX_5090, H100 = Gpu("RTX 5090", (12, 0)), Gpu("H100", (9, 0))
ALL = [[name, "1"] for name in CREATORS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder of libraries, in what could be a wheel."""
    path = tmp_path / "carafe_deploy" / "lib"
    path.mkdir(parents=True)
    for module in (plugins, libraries):
        monkeypatch.setattr(module, "PACKAGE_FOLDER", path)
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    monkeypatch.delenv("CARAFE_DEPLOY_KERNELS", raising=False)
    return path


def add_sources(folder: Path) -> None:
    (folder.parents[1] / "plugins").mkdir()
    (folder.parents[1] / "plugins" / "CMakeLists.txt").write_text("")


def write(folder: Path, content: bytes, name: str = "carafe_kernels") -> Path:
    path = folder / f"lib{name}.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- found ---------------------------------------------------------------------------------------


def test_found(folder: Path) -> None:
    path = write(folder, elf(fat_binary((PTX, 90, 0))))
    code = (GpuCode((9, 0), "", True),)
    finding = ok("libcarafe_kernels.so", str(path))
    assert look_for("carafe_kernels") == Library("carafe_kernels", path, finding, code)


def test_missing_names_folder_and_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = look_for("carafe_kernels").finding
    assert (finding.status, finding.fact, finding.remedy) == ("missing", f"not in {folder}", WHEEL)
    add_sources(folder)
    assert look_for("carafe_kernels").finding.remedy == f"make -C {folder.parents[1]} plugins"
    monkeypatch.chdir(folder.parents[1])
    assert look_for("carafe_kernels").finding.remedy == "make plugins"


@pytest.mark.parametrize("content", [elf(fat_binary((PTX, 90, 0)))[:-1], b"", b"text"], ids=len)
def test_broken_is_wrong(folder: Path, content: bytes) -> None:
    path = write(folder, content)
    library = look_for("carafe_kernels")
    assert library.path is None
    assert library.finding.status == "wrong"
    assert library.finding.fact.startswith(f"{path} is ")
    assert library.finding.remedy == WHEEL


def test_what_is_broken_elsewhere_is_mended_by_the_packages_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "other", b"text")
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(tmp_path / "other"))
    finding = look_for("carafe_kernels").finding
    assert (finding.status, finding.remedy) == ("wrong", UNSET)


def test_a_variable_that_points_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_variable() is None
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", "/empty")
    finding = check_variable()
    assert finding is not None
    assert (finding.status, finding.remedy) == ("wrong", UNSET)
    assert finding.fact.startswith("'/empty', which does not exist")
    finding = look_for("carafe_kernels").finding  # one fault is enough
    assert (finding.status, finding.remedy) == ("missing", UNSET)


def test_a_variable_that_points_to_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, elf(None))
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(folder))
    assert check_variable() == ok("CARAFE_DEPLOY_PLUGIN", str(folder))


def test_building_again_for_the_gpus_at_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_sources(folder)
    monkeypatch.chdir(folder.parents[1])
    assert rebuild(folder / "x.so", [RTX_5090, H100, RTX_5090]) == (
        "make plugins 'CUDA_ARCHITECTURES=120;90'"
    )


# --- GPU code ------------------------------------------------------------------------------------


def library(folder: Path, *entries: tuple[int, int, int]) -> Library:
    write(folder, elf(fat_binary(*entries) if entries else None))
    return look_for("carafe_kernels")


def test_code_is_listed(folder: Path) -> None:
    found = library(folder, (MACHINE_CODE, 75, 0), (MACHINE_CODE, 120, 0), (PTX, 120, 0))
    expected = ok("GPU code in kernels", "machine code for 7.5, 12.0; PTX for 12.0")
    assert check_gpu_code(found, Driver()) == expected
    assert check_gpu_code(found, Driver(cuda=(13, 0), gpus=(RTX_5090,))) == expected


def test_no_code_for_the_gpu_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_sources(folder)
    monkeypatch.chdir(folder.parents[1])
    found = library(folder, (MACHINE_CODE, 120, 0))
    finding = check_gpu_code(found, Driver(cuda=(13, 0), gpus=(H100, RTX_5090)))
    assert finding.status == "wrong"
    assert finding.fact == "machine code for 12.0; none for H100, compute capability 9.0"
    assert finding.remedy == "make plugins CUDA_ARCHITECTURES=90"


def test_ptx_takes_a_driver_of_its_version(folder: Path) -> None:
    found = library(folder, (MACHINE_CODE, 75, 0), (PTX, 75, 0))
    new, old = (Driver(cuda=cuda, gpus=(H100,)) for cuda in ((13, 0), (12, 8)))
    assert check_gpu_code(found, new, (13, 0)).status == "ok"
    assert check_gpu_code(found, old, None).status == "ok"
    finding = check_gpu_code(found, old, (13, 0))
    assert finding.status == "wrong"
    assert finding.fact.endswith(", as the driver takes no PTX of CUDA 13.0")


def test_a_library_for_the_cpu_only(folder: Path) -> None:
    for driver in (Driver(), Driver(cuda=(13, 0), gpus=(H100,))):
        finding = check_gpu_code(library(folder), driver)
        assert (finding.status, finding.fact) == ("missing", "none, it was built without CUDA")


def test_code_in_another_layout_is_unknown(folder: Path) -> None:
    write(folder, elf(b"another layout of code"))
    finding = check_gpu_code(look_for("carafe_kernels"), Driver(cuda=(13, 0), gpus=(H100,)))
    assert finding.status == "ok"
    assert finding.fact.startswith("unknown")


# --- the kernel library --------------------------------------------------------------------------


def test_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, path = library(folder), folder / "libcarafe_kernels.so"
    answer = {"version": "0.1.0", "cuda": "13.0.88", "architectures": ""}
    assert check_kernels(found, answer).fact == f"0.1.0 (CUDA 13.0.88), {path}"
    monkeypatch.setenv("CARAFE_DEPLOY_KERNELS", "off")
    fact = f"0.1.0 (CPU only), switched off by CARAFE_DEPLOY_KERNELS, {path}"
    assert check_kernels(found, {**answer, "cuda": ""}) == ok("libcarafe_kernels.so", fact)


def test_kernels_that_cannot_be_loaded(folder: Path) -> None:
    finding = check_kernels(library(folder), {"error": "it ends the process: SIGBUS"})
    assert (finding.status, finding.fact) == ("wrong", "it ends the process: SIGBUS")


def test_kernels_that_are_missing(folder: Path) -> None:
    assert check_kernels(look_for("carafe_kernels"), {}).status == "missing"


def test_a_wrong_choice_of_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_KERNELS", "yes")
    finding = check_kernels(library(folder), {})
    assert (finding.status, finding.remedy) == ("wrong", "unset CARAFE_DEPLOY_KERNELS")


# --- torch's operators ---------------------------------------------------------------------------

SLOWER = "Python calls the kernels in its place, which is slower"


def torch_library(folder: Path) -> Library:
    write(folder, elf(None), "carafe_torch")
    return look_for("carafe_torch")


def test_operators_that_torch_takes(folder: Path) -> None:
    found = torch_library(folder)
    assert check_torch_library(found, {"without_cpp": ""}) == found.finding
    assert check_torch_library(found, {}).status == "ok"  # torch is not installed


def test_operators_that_torch_does_not_take(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, answer = torch_library(folder), {"without_cpp": "undefined symbol: torch_library_impl"}
    finding = check_torch_library(found, answer)
    assert (finding.status, finding.fact) == ("missing", f"{answer['without_cpp']}; {SLOWER}")
    assert finding.remedy
    monkeypatch.setenv("CARAFE_DEPLOY_KERNELS", "off")
    finding = check_torch_library(found, {"without_cpp": "CARAFE_DEPLOY_KERNELS is 'off'"})
    fact = "not used, since CARAFE_DEPLOY_KERNELS is 'off'"
    assert finding == ok("libcarafe_torch.so", fact)


def test_operators_that_are_missing(folder: Path) -> None:
    finding = check_torch_library(look_for("carafe_torch"), {})
    assert (finding.status, finding.fact) == ("missing", f"not in {folder}; {SLOWER}")


# --- plugins -------------------------------------------------------------------------------------


def test_plugins_are_listed_with_their_version(folder: Path) -> None:
    finding = check_creators(folder / "x.so", {"TensorRT-RTX": {"creators": ALL}})
    assert finding == ok(
        "plugins",
        f"{', '.join(f'{name} 1' for name in CREATORS)} (listed by TensorRT-RTX)",
    )


@pytest.mark.parametrize(
    ("answers", "status", "fact"),
    [
        ({}, "missing", "not listed: that takes a TensorRT's registry, and none is installed"),
        (
            {"TensorRT": {"error": "no libnvinfer.so"}},
            "missing",
            "not listed: that takes a TensorRT's registry, and none that is installed starts",
        ),
        ({"TensorRT": {"plugin_error": "it refuses them"}}, "wrong", "it refuses them"),
        (
            {"TensorRT": {"creators": ALL[1:]}},
            "wrong",
            "/lib/x.so lacks Carafe, as TensorRT lists them",
        ),
    ],
    ids=["no flavour", "broken flavour", "refused", "incomplete"],
)
def test_plugins_that_are_not_listed(
    answers: dict[str, dict[str, Any]], status: str, fact: str, folder: Path
) -> None:
    finding = check_creators(Path("/lib/x.so"), answers)
    assert (finding.status, finding.fact) == (status, fact)
    assert finding.remedy


def test_alias(folder: Path) -> None:
    library = folder / "x.so"
    assert check_alias(library, None).status == "missing"
    assert check_alias(library, {"creators": ALL}).fact == "that of TensorRT-RTX itself"
    needed = {"creators": ALL, "parser_error": "the parser needs it"}
    assert check_alias(library, needed).status == "missing"
    alias = write(folder / "rtx", elf(None), "tensorrt_rtx")
    assert check_alias(library, {"creators": ALL}) == ok("rtx/libtensorrt_rtx.so", str(alias))
    assert check_alias(library, needed).status == "wrong"
    alias.write_bytes(elf(None)[:-1])
    finding = check_alias(library, None)
    assert (finding.status, finding.remedy) == ("wrong", WHEEL)
    assert "is truncated" in finding.fact
