"""Address ranges and what is mapped of them: the checks that a driver makes, for machines that have none."""

from __future__ import annotations

from bisect import bisect_right, insort

from ..errors import DeviceError
from .base import Address


class Ranges:
    """Disjoint runs of addresses, each with its size in bytes."""

    def __init__(self) -> None:
        self.starts: list[Address] = []  # sorted
        self.sizes: dict[Address, int] = {}

    def add(self, address: Address, nbytes: int) -> None:
        insort(self.starts, address)
        self.sizes[address] = nbytes

    def remove(self, address: Address) -> int:
        del self.starts[bisect_right(self.starts, address) - 1]
        return self.sizes.pop(address)

    def find(self, address: Address) -> tuple[Address, int]:
        """The last run that begins at `address` or before it; (0, 0) if there is none."""
        i = bisect_right(self.starts, address) - 1
        return (self.starts[i], self.sizes[self.starts[i]]) if i >= 0 else (0, 0)

    def meets(self, address: Address, nbytes: int) -> bool:
        """Whether any byte of the range lies in a run."""
        start, size = self.find(address + nbytes - 1)
        return start + size > address

    def covers(self, address: Address, nbytes: int) -> bool:
        """Whether every byte of the range lies in a run, possibly of several neighbours."""
        end = address + nbytes
        while address < end:
            start, size = self.find(address)
            if address >= start + size:
                return False
            address = start + size
        return True


class VirtualRanges:
    """The books of `reserve`, `map` and their opposites. Raises DeviceError for what a driver would refuse."""

    def __init__(self, page_nbytes: int) -> None:
        self.page_nbytes = page_nbytes
        self.reserved = Ranges()
        self.mapped = Ranges()
        self.mapped_nbytes = 0

    def check_pages(self, op: str, address: Address, nbytes: int) -> None:
        if not self.page_nbytes:
            raise DeviceError(f"{op}: this machine has no virtual memory (page_nbytes is 0)")
        if nbytes <= 0 or nbytes % self.page_nbytes or address % self.page_nbytes:
            raise DeviceError(f"{op}: {nbytes} bytes at {address:#x} are not whole pages of {self.page_nbytes} bytes")

    def unreserve(self, address: Address, nbytes: int) -> None:
        if self.reserved.sizes.get(address) != nbytes:
            raise DeviceError(f"unreserve: {nbytes} bytes at {address:#x} are not what one reserve() made")
        if self.mapped.meets(address, nbytes):
            raise DeviceError(f"unreserve: memory is still mapped in the {nbytes} bytes at {address:#x}")
        self.reserved.remove(address)

    def check_room(self, op: str, address: Address, nbytes: int) -> None:
        """Raises DeviceError unless the range is reserved and nothing of it is mapped."""
        self.check_pages(op, address, nbytes)
        start, size = self.reserved.find(address)
        if address + nbytes > start + size:
            raise DeviceError(f"{op}: {nbytes} bytes at {address:#x} do not lie in one reserved range")
        if self.mapped.meets(address, nbytes):
            raise DeviceError(f"{op}: memory is mapped already in the {nbytes} bytes at {address:#x}")

    def map(self, address: Address, nbytes: int) -> None:
        self.mapped.add(address, nbytes)
        self.mapped_nbytes += nbytes

    def check_mapped(self, op: str, address: Address, nbytes: int) -> None:
        """Raises DeviceError unless one `map` made exactly this range."""
        if self.mapped.sizes.get(address) != nbytes:
            raise DeviceError(f"{op}: {nbytes} bytes at {address:#x} are not what one map() made")

    def unmap(self, address: Address) -> None:
        self.mapped_nbytes -= self.mapped.remove(address)
