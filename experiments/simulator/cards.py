"""What processors can do, from their data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Processor:
    """A GPU, or some cores of a CPU.

    Attributes:
        macs_per_s: Multiply-accumulates a second in float32, at the most: half of the FLOPS of a data sheet.
        bytes_per_s: Of its memory, at the most.
        memory_bytes: Of the card; 0 where it limits nothing.
        link_bytes_per_s: From the host to the card; 0 where there is no way to go.
        asynchronous: Whether somebody else starts its operators, meanwhile: the host does so for a card.
    """

    macs_per_s: float
    bytes_per_s: float
    memory_bytes: float = 0.0
    link_bytes_per_s: float = 0.0
    asynchronous: bool = True


PCIE_3 = 12e9
"""Bytes a second through 16 lanes of PCIe 3.0, of 15.75e9, as large copies reach them."""

CARDS = {
    "T4": Processor(8.1e12 / 2, 320e9, 16e9, PCIE_3),  # NVIDIA T4 data sheet, 2019
    "M60": Processor(4.83e12 / 2, 160e9, 8e9, PCIE_3),  # one of the two GPUs of a Tesla M60, data sheet, 2016
    "V100": Processor(15.7e12 / 2, 900e9, 16e9, PCIE_3),  # V100 SXM2 data sheet, 2018
}

H100 = Processor(67e12 / 2, 3350e9, 80e9, 4 * PCIE_3)  # H100 SXM data sheet, 2023; PCIe 5.0; without TF32
A100 = Processor(19.5e12 / 2, 1555e9, 40e9, PCIE_3)  # A100 40 GB data sheet, 2020; without TF32
MIG_MEMORY = {1: 1 / 8, 2: 2 / 8, 3: 4 / 8, 4: 4 / 8, 7: 1.0}
"""Of the A100's memory, and of its bandwidth, for an instance of so many compute slices (NVIDIA's MIG user guide)."""
