"""The command line through `main()`: what it prints, what it leaves, and what it says to bad arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from flame_numba.cli import main
from flame_numba.data import FashionMNIST
from flame_numba.memory.snapshot import write_snapshot
from flame_numba.train import fashion_mnist
from flame_numba.train.progress import progress
from pool_toy import toy


def test_info_names_devices_versions_and_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAME_NUMBA_CACHE", str(tmp_path))
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "add-abc.o").write_bytes(b"x" * 2048)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  cpu +\S.*(GiB|MiB) free of ", printed, re.M)
    assert re.search(r"^  (cuda:0 +.*capability|cuda +unavailable: .+)", printed, re.M)
    for package in ("python", "numpy", "numba", "numba-cuda", "llvmlite", "cuda-bindings"):
        assert re.search(rf"^  {package} +\d+\.", printed, re.M), package
    assert f"  folder         {tmp_path}" in printed
    assert "  entries        1 (2.00 KiB)" in printed


def test_train_digits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "digits", "--epochs", "4", "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 4
    assert any(re.match(r"  peak allocated +\d", line) for line in lines)
    assert any(str(tmp_path / "run" / "loss.png") in line for line in lines)
    for picture in ("loss.png", "pool.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")
    last = re.fullmatch(r"test accuracy: (0\.\d{4})", lines[-1])
    assert last and float(last[1]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_train_digits_reaches_97_percent(seed: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "digits", "--seed", str(seed), "--out", str(tmp_path)]) == 0
    assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) >= 0.97


def clothes(n: int) -> FashionMNIST:
    """A stand-in of n + n pictures: class k is a bright bar at a height that k decides."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 2 * n)
    images = rng.integers(0, 60, (2 * n, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 4 : 2 * label + 6] = 250
    return FashionMNIST(images[:n], labels[:n], images[n:], labels[n:])


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("recipe", ["quickstart", "lenet"])
def test_fashion_mnist_recipes_run_in_every_precision(
    recipe: str, precision: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "load_fashion_mnist", lambda folder: clothes(300))
    assert main(["train", "fashion-mnist", "--recipe", recipe, "--precision", precision, "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2", "train loss", "test loss", "test accuracy"]
    losses = [float(re.search(r"train loss ([\d.]+)", line)[1]) for line in lines[:2]]  # type: ignore[index]
    assert max(losses) < 3.5  # LeNet with sigmoids learns nothing yet in so few steps
    assert recipe == "lenet" or losses[1] < losses[0]


def test_mixed_precision_follows_f32() -> None:
    runs = {
        precision: fashion_mnist.train_fashion_mnist("quickstart", precision=precision, epochs=2, images=clothes(300))
        for precision in ("f32", "bf16", "f16")
    }
    exact = np.array([loss for epoch in runs["f32"] for loss in epoch.batch_losses])
    for precision, rtol in (("bf16", 0.02), ("f16", 0.003)):
        losses = [loss for epoch in runs[precision] for loss in epoch.batch_losses]
        np.testing.assert_allclose(losses, exact, rtol=rtol)
        assert not np.array_equal(losses, exact)  # it did run in another precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits", "--epochs", "0"], r"argument --epochs: expected a whole number ≥ 1, got '0'"),
        (["train", "digits", "--device", "tpu"], r"argument --device: device: expected 'cpu', 'cuda' or 'cuda:N'"),
        (["train", "digits", "--precision", "f8"], r"argument --precision: invalid choice: 'f8'"),
        (["train", "fashion-mnist", "--data", "/no/such/folder"], r"fashion-mnist: no such folder: /no/such/folder"),
        (["train", "mnist"], r"invalid choice: 'mnist'"),
        (["train"], r"the following arguments are required"),
        (["pool"], r"the following arguments are required"),
        (["pool", "show", "pool.zip"], r"snapshot: 'pool.zip': expected a .pickle or .json file"),
        (["pool", "show", "absent.pickle"], r"No such file or directory: 'absent.pickle'"),
        (["pool", "show", "--plot", "pool.png"], r"--plot needs a snapshot"),
        (["pool", "replay"], r"the following arguments are required: TRACE"),
        (["pool", "replay", "absent.csv"], r"No such file or directory: 'absent.csv'"),
        (["pool", "replay", __file__], r"test_cli.py, line 1: expected the header op,id,bytes,stream"),
        (["pool", "replay", "t.csv", "--device", "tpu"], r"argument --device: .* expected"),
        (["pool", "replay", "t.csv", "--limit", "much"], r"limit='much': expected a number and one of B, kB"),
        ([], r"the following arguments are required"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert re.search(message, printed.err), printed.err


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "digits", "--epochs", "1", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "in the way" not in capsys.readouterr().err


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "fashion-mnist", "--help"])
    assert caught.value.code == 0 and "--recipe" in capsys.readouterr().out


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with progress("digits", 3) as report:
        report.advance()
        report.line("epoch 1: done")
    printed = capsys.readouterr().out
    assert "digits" in printed and "1/3" in printed and "epoch 1: done" in printed


# --- pool -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text("op,id,bytes,stream\na,0,4194304,0\na,1,8388608,0\nf,0,0,0\na,2,4194304,0\n")
    return str(path)


def test_pool_replay(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "replay", trace]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^peak live +12,582,912$", printed, re.M)
    assert re.search(r"^out of memory +no$", printed, re.M)
    assert re.search(r"^ratio after defragment +\d\.\d{4}$", printed, re.M)


@pytest.mark.parametrize("device", ["simulated", "cpu"])
def test_pool_replay_as_json(device: str, trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "replay", trace, "--device", device, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"peak_live", "peak_reserved", "ratio", "ratio_after_defragment", "driver_calls", "out_of_memory"} <= set(
        result
    )
    assert result["peak_live"] == 12 << 20 and result["out_of_memory"] is False
    assert result["ratio"] == result["peak_reserved"] / result["peak_live"]


@pytest.mark.parametrize("limit", ["10 MiB", "10485760"])
def test_pool_replay_under_a_limit(limit: str, trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "replay", trace, "--limit", limit, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out_of_memory"] is True and result["failed_at"] == 1 and result["peak_reserved"] <= 10 << 20


@pytest.mark.parametrize("suffix", [".pickle", ".json"])
def test_pool_show(suffix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    segments, events, _ = toy(0, False)
    path = write_snapshot(tmp_path / f"pool{suffix}", segments, events)
    assert main(["pool", "show", str(path), "--top", "2", "--plot", str(tmp_path / "pool.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"segments {len(segments)}, live blocks ")
    assert sum("|" in line for line in lines) == len(segments)
    start = lines.index("largest holders")
    assert len(lines) - start == 1 + 2 + 1 and "model.py" in lines[start + 1]
    assert lines[-1] == f"picture: {tmp_path / 'pool.html'}" and (tmp_path / "pool.html").exists()


def test_pool_show_of_nothing_saved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "show"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  limit +None$", printed, re.M) and re.search(r"^  cpu +\S.* free of ", printed, re.M)
    assert "flame-numba pool show pool.pickle" in printed


# --- kernel -------------------------------------------------------------------------------------------------------
KERNEL = ["kernel", "softmax", "--dtype", "bfloat16", "--shape", "8x4096", "--architecture", "sm_90a"]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*KERNEL, *arguments]) == 0
    return capsys.readouterr().out


def test_kernel_shows_source_assembly_machine_code_and_resources(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flame_numba.kernels.compiler.machine_cuda", reason="needs flame-numba[cu13]")
    assert "def softmax(y: Pointer, x: Pointer, rows: int, n: int)" in shown(capsys)
    assert shown(capsys, "--show", "source") == shown(capsys)
    assert ".target sm_90a" in shown(capsys, "--show", "ptx")
    assert re.search(r"^registers +\d+$", shown(capsys, "--show", "resources"), re.M)
    status, said = main([*KERNEL, "--show", "sass"]), capsys.readouterr()
    assert "EXIT" in said.out if status == 0 else "nvdisasm is not installed" in said.err


def test_kernels_of_the_backward_pass_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--dtype", "float32", "--shape", "64x32", "--shape", "32x10", "--architecture", "sm_90a"]
    assert main(["kernel", "matmul", *chosen, "--gradient", "--layout", "strided", "--all"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("<kernel ")]
    assert len(heads) > 1 and all(re.search(r" for sm_90a>, launched as \d+ × 256 threads$", head) for head in heads)
    assert "softmax" in shown(capsys, "--architecture", "cpu", "--show", "assembly")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sofmax"], "flame-numba: kernels: there is no op named 'sofmax'; did you mean softmax"),
        (["exp", "--dtype", "float"], "flame-numba kernel: argument --dtype: expected one of "),
        (["exp", "--shape", "8by3"], "flame-numba kernel: argument --shape: expected a whole number"),
        (["exp", "--architecture", "H100"], "flame-numba: kernels: architecture must be 'cpu' or a name such as"),
        (
            ["exp", "--architecture", "cpu", "--show", "ptx"],
            "flame-numba: map_exp_v1: ptx, sass, resources are of",
        ),
    ],
)
def test_kernel_refuses_what_makes_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernel", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
