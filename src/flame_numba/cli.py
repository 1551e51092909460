"""The command `flame-numba`: what is here, trainings on real data, a look into memory pools and into kernels."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from .devices import Device, cuda_device_count, explain_missing_cuda
from .dtypes import ALL, DType
from .errors import FlameError
from .kernels.compiler.compile import cache_folder
from .kernels.compiler.listing import Resources
from .memory.stats import format_bytes

PACKAGES = ("flame-numba", "numpy", "numba", "numba-cuda", "llvmlite", "cuda-bindings")
FAILURE = 2  # exit status for anything the user can put right


class _UsageError(Exception):
    """The arguments make no sense."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 with one sentence on standard error."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        return 0
    except _UsageError as error:
        print(error, file=sys.stderr)
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    except (FlameError, OSError) as error:
        print(f"flame-numba: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("flame-numba: interrupted", file=sys.stderr)
        return 130  # as a shell reports SIGINT
    return FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="flame-numba", description="A tensor runtime for NVIDIA GPUs, written in Python on Numba.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="{info,train,pool,kernel}")
    info = commands.add_parser("info", help="devices, versions, kernel cache")
    info.set_defaults(run=_info)
    train = commands.add_parser("train", help="train a network on real data")
    trainings = train.add_subparsers(title="data sets", required=True, metavar="{digits,fashion-mnist}")
    _add_digits(trainings.add_parser("digits", help="handwritten digits, in under a minute"))
    _add_fashion_mnist(trainings.add_parser("fashion-mnist", help="reproduce a published result"))
    pool = commands.add_parser("pool", help="look at a memory pool, or replay a recorded program on one")
    views = pool.add_subparsers(title="what to do", required=True, metavar="{show,replay}")
    _add_show(views.add_parser("show", help="draw the segments of a saved snapshot, as text"))
    _add_replay(views.add_parser("replay", help="run a trace of allocations on a new pool"))
    _add_kernel(commands.add_parser("kernel", help="show a kernel: its source, assembly, machine code, resources"))
    return parser


def _add_common(parser: argparse.ArgumentParser, precision: str) -> None:
    parser.add_argument("--device", type=_device, help="cpu, cuda or cuda:N (default: the first GPU, else cpu)")
    parser.add_argument("--epochs", type=_positive, metavar="N", help="passes over the data")
    parser.add_argument(
        "--precision", choices=("f32", "bf16", "f16"), default=precision, help="default: %(default)s"
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _add_digits(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, "bf16")
    parser.add_argument("--out", default="runs/digits", metavar="DIR", help="for the pictures (default: %(default)s)")
    parser.set_defaults(run=_train_digits)


def _add_fashion_mnist(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, "f32")
    parser.add_argument("--recipe", choices=("quickstart", "lenet"), default="quickstart", help="default: %(default)s")
    parser.add_argument("--data", metavar="DIR", help="the folder with the four idx files, raw or .gz")
    parser.set_defaults(run=_train_fashion_mnist)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "snapshot",
        nargs="?",
        metavar="SNAPSHOT",
        help=".pickle or .json; without it: a pool's settings and the devices",
    )
    parser.add_argument("--top", type=_positive, default=10, metavar="N", help="largest holders (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="also draw a picture, .png or .html")
    parser.set_defaults(run=_show_pool)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help=".csv or .csv.gz with the columns op, id, bytes, stream")
    parser.add_argument(
        "--device", type=_any_device, default="simulated", help="simulated, cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument("--limit", metavar="BYTES", help="the pool's, as 8589934592 or '8 GiB' (default: none)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_replay)


def _add_kernel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", metavar="OP", help="the name of an op, such as softmax")
    parser.add_argument("--dtype", type=_dtype, default="float32", metavar="DTYPE", help="default: %(default)s")
    parser.add_argument(
        "--show", choices=("source", "ptx", "sass", "resources", "assembly"), default="source",
        help="default: %(default)s; assembly: of the CPU device",
    )  # fmt: skip
    parser.add_argument(
        "--shape", type=_shape, action="append", default=[], metavar="AxB",
        help="of an operand, as 8x4096; once for each operand (default: an example of the op's own tests)",
    )  # fmt: skip
    parser.add_argument("--gradient", action="store_true", help="the kernel of the backward pass")
    parser.add_argument(
        "--layout", choices=("contiguous", "strided"), default="contiguous", help="default: %(default)s"
    )
    parser.add_argument(
        "--architecture", metavar="ARCH", help="sm_90a and the like, or cpu (default: the GPU's, or sm_90a)"
    )
    parser.add_argument("--all", action="store_true", help="all kernels that the op launches, not only the last")
    parser.set_defaults(run=_kernel)


def _dtype(text: str) -> DType:
    found = next((dtype for dtype in ALL if dtype.name == text), None)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(d.name for d in ALL)}, got {text!r}")
    return found


def _shape(text: str) -> tuple[int, ...]:
    return tuple(_positive(size) for size in text.split("x"))


def _any_device(text: str) -> Device:
    return Device.simulated() if text == "simulated" else _device(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number ≥ 1, got {text!r}")
    return int(text)


def _device(text: str) -> Device:
    try:
        return Device.parse(text)
    except FlameError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# --- info ---------------------------------------------------------------------------------------------------------
def _info(arguments: argparse.Namespace) -> None:
    _print_devices()
    print("versions")
    print(f"  {'python':<15}{platform.python_version()}")
    for package in PACKAGES:
        print(f"  {package:<15}{_version(package)}")
    entries, nbytes = _cache_contents()
    print("kernel cache")
    print(f"  {'folder':<15}{cache_folder()}")
    print(f"  {'entries':<15}{entries} ({format_bytes(nbytes)})")


def _print_devices() -> None:
    print("devices")
    for device in [Device.cuda(i) for i in range(cuda_device_count())] + [Device.cpu()]:
        print(f"  {device!s:<15}{_described(device)}")
    if reason := explain_missing_cuda():
        print(f"  {'cuda':<15}unavailable: {reason}")


def _described(device: Device) -> str:
    memory = device.memory_info()
    capability = "" if device.capability is None else f", capability {device.capability[0]}.{device.capability[1]}"
    return f"{device.name}{capability}, {format_bytes(memory.free)} free of {format_bytes(memory.total)}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cache_contents() -> tuple[int, int]:
    """(files, bytes) of compiled kernels."""
    sizes = [path.stat().st_size for path in cache_folder().glob("??/*") if path.suffix in (".o", ".cubin")]
    return len(sizes), sum(sizes)


# --- train --------------------------------------------------------------------------------------------------------
def _train_digits(arguments: argparse.Namespace) -> None:
    from .train import digits, loop

    run = digits.train_digits(
        arguments.out, epochs=arguments.epochs or digits.EPOCHS, precision=arguments.precision, seed=arguments.seed,
        device=arguments.device,
    )  # fmt: skip
    print("\nmemory pool")
    print("\n".join(f"  {line}" for line in str(run.pool).splitlines()))
    print("pictures: " + ", ".join(str(path) for path in run.pictures))
    print("\n".join(loop.final_lines(run.epochs[-1])))


def _train_fashion_mnist(arguments: argparse.Namespace) -> None:
    from .train import fashion_mnist, loop

    epochs = fashion_mnist.train_fashion_mnist(
        arguments.recipe, precision=arguments.precision, epochs=arguments.epochs, seed=arguments.seed,
        folder=arguments.data, device=arguments.device,
    )  # fmt: skip
    print("\n".join(loop.final_lines(epochs[-1])))


# --- pool ---------------------------------------------------------------------------------------------------------
def _show_pool(arguments: argparse.Namespace) -> None:
    from .memory.report import segment_table
    from .memory.snapshot import read_snapshot

    if arguments.snapshot is None:
        _show_defaults(arguments)
        return
    segments = read_snapshot(arguments.snapshot)
    print(segment_table(segments, arguments.top))
    if arguments.plot:
        from .plots import pool_picture

        print(f"picture: {pool_picture(segments, arguments.plot, title=Path(arguments.snapshot).name)}")


def _show_defaults(arguments: argparse.Namespace) -> None:
    """A pool lives in its process: of another one, only its snapshot can be shown."""
    from .pool import PoolConfig

    if arguments.plot:
        raise _UsageError("flame-numba pool show: --plot needs a snapshot (see flame-numba pool show --help)")
    print("settings of a new pool")
    for field in dataclasses.fields(PoolConfig):
        print(f"  {field.name:<18}{field.default!r}")
    _print_devices()
    print("to see into a pool: pool.snapshot('pool.pickle'), then flame-numba pool show pool.pickle")


def _replay(arguments: argparse.Namespace) -> None:
    from .pool import PoolConfig
    from .replay import replay

    result = replay(arguments.trace, arguments.device, PoolConfig(limit=arguments.limit))
    print(json.dumps(result.as_json()) if arguments.json else result)


# --- kernel -------------------------------------------------------------------------------------------------------
def _kernel(arguments: argparse.Namespace) -> None:
    from .kernel_objects import list_kernels

    kernels = list_kernels(
        arguments.op, arguments.dtype, *arguments.shape, gradient=arguments.gradient, layout=arguments.layout,
        architecture=arguments.architecture,
    )  # fmt: skip
    for kernel in kernels if arguments.all else kernels[-1:]:
        if arguments.all:
            print(f"{kernel}, launched as {kernel.blocks} × {kernel.threads} threads")
        shown = getattr(kernel, arguments.show)
        print(shown.strip() if isinstance(shown, str) else _resources(shown))


def _resources(resources: Resources) -> str:
    return "\n".join(f"{name:<22}{value}" for name, value in dataclasses.asdict(resources).items())


if __name__ == "__main__":
    sys.exit(main())
