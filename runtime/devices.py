"""What makers publish about devices: memory, its bandwidth, and dense half-precision arithmetic.

Contract  `half_flops` is dense (no sparsity), float16 products summed in float32, which is what the graphs
          need. Jetson values are of the power mode named. Nothing here was measured by us.
Elsewhere what follows from them: roofline.py; the machine at hand: rates.py.
Source    docs/sources.md#devices
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device."""

    name: str
    title: str
    memory_bytes: int  # usable by us and by the system: on a Jetson the CPU's, on a card its own
    bandwidth: float  # bytes a second
    half_flops: float  # a second
    reserve_bytes: int  # what system, driver and context keep


# Reserves: a Jetson without a desktop keeps about 1.2 GB, and CUDA with its libraries 0.6 GB more; a card
# keeps about 0.6 GB for context and libraries, and 0.5 GB for a desktop.
JETSON_RESERVE, CARD_RESERVE = 1_800_000_000, 1_100_000_000


def _jetson(name: str, title: str, memory_gib: int, bandwidth_gb: float, half_tflops: float) -> Device:
    # The firmware keeps about 6 % of a Jetson's memory for itself: 8 GB modules show 7.4 GiB.
    usable = int(memory_gib * GIB * 0.94)
    return Device(name, title, usable, bandwidth_gb * 1e9, half_tflops * 1e12, JETSON_RESERVE)


def _card(name: str, title: str, memory_gib: int, bandwidth_gb: float, half_tflops: float) -> Device:
    memory = memory_gib * GIB
    return Device(name, title, memory, bandwidth_gb * 1e9, half_tflops * 1e12, CARD_RESERVE)


DEVICES = {
    device.name: device
    for device in (
        _jetson("orin-nano-8gb", "Jetson Orin Nano 8 GB (MAXN SUPER)", 8, 102, 17),
        _jetson("orin-nx-16gb", "Jetson Orin NX 16 GB (25 W)", 16, 102.4, 15),
        _jetson("agx-orin-64gb", "Jetson AGX Orin 64 GB (MAXN)", 64, 204.8, 42.5),
        _jetson("agx-thor", "Jetson AGX Thor, T5000 (MAXN)", 128, 273, 259),
        _card("rtx-3060", "GeForce RTX 3060 12 GB", 12, 360, 25.5),
        _card("rtx-3090", "GeForce RTX 3090 24 GB", 24, 936, 71),
        _card("rtx-4070", "GeForce RTX 4070 12 GB", 12, 504, 58.3),
        _card("rtx-4090", "GeForce RTX 4090 24 GB", 24, 1008, 165.2),
        _card("rtx-5090", "GeForce RTX 5090 32 GB", 32, 1792, 209.5),
        _card("h100", "H100 SXM 80 GB", 80, 3350, 989),
    )
}
