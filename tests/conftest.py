"""What every test shares: the device of the run, Hypothesis profiles, and the rule for tests that need a GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flame_numba.devices import Device

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a GPU machine may lack it; tests that need it say so themselves
    pass
else:
    # ci: the same examples on every run, and no limit on one example, since its first run compiles kernels
    settings.register_profile(
        "ci",
        derandomize=True,
        deadline=None,
        max_examples=15,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=500)
    settings.load_profile("ci")  # another one: pytest --hypothesis-profile nightly


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="the device that tests run on")


# Modules with tests of many seconds each, in processes of their own: pages of the docs, first and second starts.
LONG = ("test_docs", "test_cli", "test_compile", "test_user_kernels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first: begun last, one of them keeps one core busy while the others have nothing left to do."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(50_000, 20, 50)  # a compile makes many objects and drops them: collecting took a tenth of its time
    if config.getoption("--device") == "cuda" and (missing := _missing_cuda()):
        raise pytest.UsageError(f"--device cuda: {missing}")


def _missing_cuda() -> str:
    """Why there is no GPU; '' if there is one."""
    from flame_numba.devices import explain_missing_cuda

    return explain_missing_cuda()


def _device(name: str) -> Device:
    from flame_numba.devices import Device

    return Device.cuda(0) if name == "cuda" else Device.cpu()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    """The device of the run, which is also the default one: `--device cpu` (unless told otherwise) or `cuda`."""
    return _device(request.config.getoption("--device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Make the run's device the default around setup, call and teardown. A gpu test's default is always the GPU."""
    wants_gpu = item.get_closest_marker("gpu") is not None and not _missing_cuda()
    with _device("cuda" if wants_gpu else item.config.getoption("--device")):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    if missing := _missing_cuda():
        pytest.skip(f"needs a GPU: {missing}")
    if item.config.getoption("--device") != "cuda" and "device" in getattr(item, "fixturenames", ()):
        pytest.skip("its `device` fixture would be the CPU: run with --device cuda")


@pytest.fixture
def hide_package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with a package's name: from then to the test's end it looks as if that package were not installed."""

    class Hidden:
        def __init__(self, package: str) -> None:
            self.package = package

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == self.package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def hide(package: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])

    return hide
