"""Virtual memory of a GPU: address ranges, and memory put under parts of them."""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver

from ...errors import DeviceError
from ..base import Address
from .calls import check

_READ_WRITE = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_SUPPORTED = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED


class CudaVirtualMemory:
    """The part of `Backend` that maps memory. A mapping is one handle of the driver, kept until it is unmapped."""

    page_nbytes = 0

    def activate(self) -> None:
        """Make the device's context current in the calling thread."""
        raise NotImplementedError

    def _open_virtual(self, ordinal: int, device: Any) -> None:
        self._handles: dict[Address, tuple[int, Any]] = {}  # what is mapped: bytes and handle
        if not check(driver.cuDeviceGetAttribute(_SUPPORTED, device), "device attribute"):
            return
        self._prop = driver.CUmemAllocationProp()
        self._prop.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._prop.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._prop.location.id = ordinal
        self._access = driver.CUmemAccessDesc()
        self._access.location = self._prop.location
        self._access.flags = _READ_WRITE
        smallest = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        found = driver.cuMemGetAllocationGranularity(self._prop, smallest)
        self.page_nbytes = int(check(found, "cuMemGetAllocationGranularity"))

    def reserve(self, nbytes: int) -> Address:
        if not self.page_nbytes:
            raise DeviceError("reserve: this GPU has no virtual memory management")
        self.activate()
        return int(check(driver.cuMemAddressReserve(nbytes, 0, 0, 0), f"cuMemAddressReserve of {nbytes} bytes"))

    def unreserve(self, address: Address, nbytes: int) -> None:
        self.activate()
        check(driver.cuMemAddressFree(address, nbytes), "cuMemAddressFree")

    def map(self, address: Address, nbytes: int) -> None:
        if not self.page_nbytes:
            raise DeviceError("map: this GPU has no virtual memory management")
        self.activate()
        handle = check(driver.cuMemCreate(nbytes, self._prop, 0), f"cuMemCreate of {nbytes} bytes")
        try:
            self._attach(address, nbytes, handle)
        except BaseException:
            driver.cuMemRelease(handle)
            raise

    def unmap(self, address: Address, nbytes: int) -> None:
        handle = self._mapped("unmap", address, nbytes)
        self.activate()
        check(driver.cuMemUnmap(address, nbytes), "cuMemUnmap")
        del self._handles[address]
        check(driver.cuMemRelease(handle), "cuMemRelease")

    def move_mapping(self, address: Address, target: Address, nbytes: int) -> None:
        handle = self._mapped("move_mapping", address, nbytes)
        if abs(target - address) < nbytes:
            raise DeviceError(f"move_mapping: {nbytes} bytes at {address:#x} and {target:#x} overlap")
        self.activate()
        self._attach(target, nbytes, handle)  # at both places for a moment, so that a failure leaves the first
        try:
            check(driver.cuMemUnmap(address, nbytes), "cuMemUnmap")
        except BaseException:
            driver.cuMemUnmap(target, nbytes)
            del self._handles[target]
            raise
        del self._handles[address]

    def _attach(self, address: Address, nbytes: int, handle: Any) -> None:
        check(driver.cuMemMap(address, nbytes, 0, handle, 0), f"cuMemMap of {nbytes} bytes")
        try:
            check(driver.cuMemSetAccess(address, nbytes, [self._access], 1), "cuMemSetAccess")
        except BaseException:
            driver.cuMemUnmap(address, nbytes)
            raise
        self._handles[address] = (nbytes, handle)

    def _mapped(self, op: str, address: Address, nbytes: int) -> Any:
        size, handle = self._handles.get(address, (0, None))
        if size != nbytes or not size:
            raise DeviceError(f"{op}: {nbytes} bytes at {address:#x} are not what one map() made")
        return handle
