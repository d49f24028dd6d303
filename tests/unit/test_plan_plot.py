"""The picture of a plan: files of the right kind with the right words; errors with the remedy."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pagoda.cli.main import app
from pagoda.errors import ConfigError
from pagoda.plan.output.picture import picture_of
from pagoda.plan.output.plot import Picture, RooflinePoint, Served, check_path, draw
from pagoda.plan.planner import make_plan
from pagoda.plan.settings import PlanSettings

PICTURE = Picture(
    title="tiny in fp16 on A100",
    bandwidth_bytes_s=2e12,
    peaks={"fp32": 19.5e12, "tf32": 156e12, "fp16": 312e12, "bf16": 312e12},
    compute_type="fp16",
    prefill=RooflinePoint("prefill of 512", 400, 200e12),
    decode=tuple(RooflinePoint(f"{n} users", 1.0 * n, 1.5e12 * n) for n in (1, 2, 4, 8, 16, 32)),
    served=tuple(Served(n, 90.0 * n, 0.01 + 0.001 * n, n <= 8) for n in (1, 2, 4, 8, 16, 32)),
    chosen=Served(8, 720, 0.018, True),
    tpot_bound_s=0.03,
)


def words(path: Path) -> str:
    return " | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()))


@pytest.fixture(autouse=True)
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install matplotlib")


def test_svg_says_what_there_is(tmp_path: Path) -> None:
    draw([PICTURE, replace(PICTURE, title="another")], tmp_path / "a.svg")
    text = words(tmp_path / "a.svg")
    for part in (
        *("another", "tiny in fp16 on A100", "prefill of 512", "1 users", "32 users", "ridge 156", "2 TB/s"),
        *("fp16 312 TFLOP/s", "tf32 156 TFLOP/s", "8 users: 720 tok/s", "18.0 ms", "memory is full", "bound"),
    ):
        assert part in text
    assert "| 2 users" not in text  # no room between 1 and 4
    assert "| 4 users" in text


def test_png(tmp_path: Path) -> None:
    draw([PICTURE], tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == 1560


def test_nothing_fits_and_little_is_known(tmp_path: Path) -> None:
    """No user fits, one number of users, one type, no bound."""
    bare = replace(
        PICTURE,
        peaks={"fp16": 312e12},
        decode=PICTURE.decode[:1],
        served=(Served(1, 90, 0.01, False),),
        chosen=None,
        tpot_bound_s=None,
    )
    draw([bare], tmp_path / "a.svg")
    assert "memory is full" in words(tmp_path / "a.svg")
    assert "bound" not in words(tmp_path / "a.svg")


def test_errors_say_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png, \.svg, \.pdf"):
        check_path(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_path(tmp_path / "none/a.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        draw([PICTURE], tmp_path / "taken.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        check_path(tmp_path / "a.png")


def test_importing_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    importlib.reload(sys.modules["pagoda.plan.output.plot"])


def test_the_command_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["plan", "llama-3-8b", "--on", "rtx4090", "--format", "awq", "--tpot", "40", "--plot", "plan.svg"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    text = words(tmp_path / "plan.svg")
    for part in ("llama-3-8b in awq on NVIDIA GeForce RTX 4090 24GB", "prefill of 512", "decode, 1 user", "bound"):
        assert part in text


def test_pictures_agree_with_plans() -> None:
    """Two A100: twice the ceilings; what is drawn stays below them, and ends where users are to run."""
    found = make_plan(PlanSettings("llama-3-8b", on=("a100-80gb",), format=("fp16",), gpus=2, tpot=30.0))
    (target,) = found.targets
    picture = picture_of(target)
    assert picture.title == "llama-3-8b in fp16 on 2 × NVIDIA A100 80GB SXM"
    assert picture.peaks["fp16"] == 624e12
    for point in (picture.prefill, *picture.decode):
        assert point.flops_s < min(picture.peaks["fp16"], point.intensity * picture.bandwidth_bytes_s)
    assert picture.chosen is not None
    assert picture.chosen.users == target.users
    assert picture.chosen.tpot_s <= picture.tpot_bound_s == 0.03
    assert picture.chosen in picture.served
