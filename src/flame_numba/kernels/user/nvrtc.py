"""CUDA C++ source → machine code, by NVIDIA's run-time compiler. Needs no GPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from ...errors import KernelError
from ..compiler import compile as compiler


def machine_code(name: str, source: str, architecture: str, options: Sequence[str] = ()) -> tuple[bytes, str]:
    """A cubin and the entry of the kernel `name` (`scale`, or `scale<float>` of a template), from the disk cache or
    compiled now. Raises KernelError with the compiler's log.
    """
    text = repr(("CUDA C++", name, source, tuple(options), compiler._version("nvidia-cuda-runtime")))
    key = compiler.digest(text, architecture)
    label = re.sub(r"\W+", "_", name).strip("_")
    return compiler.cached(label, key, "cuda", lambda: _compile(name, source, architecture, tuple(options)))


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise KernelError(
            f"CUDA C++ cannot be compiled ({error}); install flame-numba[cu13] or [cu12], which bring NVRTC"
        ) from error
    return nvrtc


@functools.cache
def _headers() -> str | None:
    """The folder with cuda_fp16.h and its like: of the toolkit's wheels, or of an installed toolkit."""
    try:
        from cuda import pathfinder
    except ImportError:
        return None
    find = getattr(pathfinder, "find_nvidia_header_directory", None)
    return None if find is None else find("cudart")


def _compile(name: str, source: str, architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    nvrtc = _nvrtc()
    flags = [f"--gpu-architecture={architecture}", "--std=c++17", "--device-as-default-execution-space"]
    headers = _headers()
    flags += [f"--include-path={headers}"] if headers else []
    flags += options
    file = re.sub(r"\W+", "_", name).strip("_") + ".cu"
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), file.encode(), 0, [], []))
    try:
        _checked(nvrtc, nvrtc.nvrtcAddNameExpression(program, name.encode()))
        (code,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"{name} does not compile for {architecture}:\n{_log(nvrtc, program)}")
        code, entry = nvrtc.nvrtcGetLoweredName(program, name.encode())
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"{name}: the source has no __global__ function of this name")
        image = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, image))
        return bytes(image), entry.decode()
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    code, *values = result
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"NVRTC: {getattr(code, 'name', code)}")
    return values[0] if values else None


def _log(nvrtc: Any, program: Any) -> str:
    text = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, text))
    return text.decode(errors="replace").strip("\0\n ")
