"""Says what the compiler made of each CUDA kernel (registers, spills, width of loads), which needs no GPU.

    python benchmarks/cuda_resources.py                      # compiles kernels/cuda for sm_87 and sm_90
    python benchmarks/cuda_resources.py --architectures 89
    python benchmarks/cuda_resources.py --library build/cmake/kernels/libsifa_ops_cuda.so

prints one Markdown table, read from `cuobjdump -res-usage` and `cuobjdump -sass`. Times and achieved
bandwidth are not in it: they need a GPU (`benchmarks/attention.py --device cuda`, `ncu`).
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

KERNELS = Path(__file__).resolve().parents[1] / "kernels" / "cuda"
SOURCES = sorted(KERNELS.glob("*.cu"))


class Machine(NamedTuple):
    """What one multiprocessor holds (CUDA C++ Programming Guide, "Compute Capabilities")."""

    warps: int
    blocks: int
    shared_bytes: int


MACHINES = {
    80: Machine(64, 32, 164 * 1024),
    86: Machine(48, 16, 100 * 1024),
    87: Machine(48, 16, 164 * 1024),
    89: Machine(48, 24, 100 * 1024),
    90: Machine(64, 32, 228 * 1024),
}
REGISTERS = 64 * 1024
REGISTERS_AT_ONCE = 256  # a warp's registers are allocated in such pieces,
WARPS_AT_ONCE = 4  # and warps in such numbers
RESERVED_SHARED_BYTES = 1024  # of each block, for the driver; cuobjdump may count it to a kernel of 9.0

# The block that is launched: kBlock of pack.cuh. Shared memory is that of groups of CHANNELS channels, in a
# launch large enough for all turns (layout_for and GatherLayout of inter_frame_attention.cuh).
THREADS, CHANNELS = 128, 128
WARPS, SUMS, TURNS, TAPS, TERMS = THREADS // 32, 6, 4, 9, 64

TYPES = {"float": "float32", "double": "float64", "__half": "float16", "__nv_bfloat16": "bfloat16"}
# What the template arguments after the element type are.
ARGUMENTS = {
    "attend": ("pack", "channels of a lane", "team"),  # a team of 0 lanes: any number
    "differentiate": ("pack", "team"),
    "sum_groups": ("offsets",),
}

FUNCTION = re.compile(r"^\s*Function\s*:?\s*(?P<name>\w+)", re.MULTILINE)
USAGE = re.compile(r"\bREG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+)")
ACCESS = re.compile(r"\b(?P<kind>LDG|STG|RED|ATOM|LDL|STL)G?(?P<flags>(?:\.\w+)+)?\s")
INSTANCE = re.compile(r"sifa::cuda::(?P<kernel>\w+)<(?P<arguments>[^(]*)>\(")


class Missing(Exception):
    """What is needed is not on this machine."""


class Kernel(NamedTuple):
    architecture: int
    name: str
    dtype: str
    arguments: str
    registers: int
    stack: int
    shared: int
    loads: dict[int, int]  # width in bits: number of instructions
    stores: dict[int, int]
    atomics: dict[int, int]
    spilled: tuple[int, int]  # bytes stored and loaded, by all instructions that do so

    def blocks(self) -> int:
        """How many blocks of THREADS threads one multiprocessor can hold."""
        machine = MACHINES[self.architecture]
        each = -(-self.registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        warps = REGISTERS // each // WARPS_AT_ONCE * WARPS_AT_ONCE
        return min(
            min(warps, machine.warps) // WARPS,
            machine.blocks,
            machine.shared_bytes // (self.shared + RESERVED_SHARED_BYTES),
        )

    def occupancy(self) -> float:
        return self.blocks() * WARPS / MACHINES[self.architecture].warps


def tool(name: str) -> str:
    """Return the path of a program of the CUDA toolkit; triton, which torch brings, has some of them."""
    folders = [Path(os.environ[key]) / "bin" for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ]
    folders.append(Path("/usr/local/cuda/bin"))
    triton = importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations or () if triton else ():
        folders.append(Path(folder) / "backends" / "nvidia" / "bin")
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise Missing(
            f"{name} is missing: install the CUDA toolkit, or put the folder that has it into PATH."
        )
    return found


def output_of(*command: str | Path) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode != 0:
        raise Missing(f"{Path(command[0]).name} failed: {(result.stderr or result.stdout).strip()}")
    return result.stdout


def demangled(names: list[str]) -> dict[str, str]:
    program = shutil.which("c++filt")
    if program is None:
        raise Missing("c++filt, which makes names readable, is missing: install binutils.")
    result = subprocess.run([program], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, result.stdout.splitlines(), strict=True))


def sections(text: str) -> dict[str, str]:
    """Split what cuobjdump prints into {name of the function: what follows it}."""
    found = list(FUNCTION.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match["name"]: text[match.end() : end] for match, end in zip(found, ends, strict=True)}


def width(flags: str) -> int:
    """Return the bits that an instruction moves for one thread."""
    vector = re.search(r"\.F32x(\d)", flags)
    if vector:
        return 32 * int(vector[1])
    for flag, bits in ((".128", 128), (".F64", 64), (".64", 64), ("16", 16), ("8", 8)):
        if flag in flags:
            return bits
    return 32


def dynamic_bytes(name: str, dtype: str, pack: int) -> int:
    """Return the bytes of shared memory that a kernel is launched with."""
    if name not in ("attend", "differentiate", "gather"):
        return 0
    real, index = 8 if dtype == "float64" else 4, 8 if pack == 1 else 4

    def aligned(size: int) -> int:
        return -(-size // 16) * 16

    if name == "gather":
        lane = 16 if dtype in ("float16", "bfloat16") else 8
        return THREADS // (CHANNELS // lane) * (TERMS * aligned(2 * real + 2 * index) + 4)
    lane = 8 if dtype == "float64" else 16
    spot, tap = aligned(6 * index + 9), 4 * index + (4 if name == "attend" else 8) * real
    return THREADS // (CHANNELS // lane) * TURNS * (spot + TAPS * tap) + 2 * WARPS * SUMS * real


def describe(architecture: int, signature: str, usage: str, sass: str) -> Kernel | None:
    instance, numbers = INSTANCE.search(signature), USAGE.search(usage)
    if instance is None or numbers is None:
        return None
    kernel = instance["kernel"]
    first, *rest = [re.sub(r"^\(int\)", "", part.strip()) for part in instance["arguments"].split(",")]
    names = ARGUMENTS.get(kernel, ("pack",))
    pack = int(rest[0]) if rest and rest[0].isdigit() else 0
    counts = collections.defaultdict(collections.Counter)
    for match in ACCESS.finditer(sass):
        counts[match["kind"]][width(match["flags"] or "")] += 1
    spilled = (sum(bits // 8 * n for bits, n in counts[kind].items()) for kind in ("STL", "LDL"))
    return Kernel(
        architecture,
        kernel,
        TYPES[first],
        ", ".join(f"{name} {TYPES.get(value, value)}" for name, value in zip(names, rest, strict=False)),
        int(numbers["registers"]),
        int(numbers["stack"]),
        int(numbers["shared"]) % RESERVED_SHARED_BYTES + dynamic_bytes(kernel, TYPES[first], pack),
        counts["LDG"],
        counts["STG"],
        counts["RED"] + counts["ATOM"],
        tuple(spilled),
    )


def kernels_of(binary: Path, architecture: int) -> list[Kernel]:
    cuobjdump = tool("cuobjdump")
    flags = [] if binary.suffix == ".cubin" else ["-arch", f"sm_{architecture}"]
    usages = sections(output_of(cuobjdump, *flags, "-res-usage", binary))
    code = sections(output_of(cuobjdump, *flags, "-sass", binary))
    if not usages:
        raise Missing(f"{binary} holds no kernels for sm_{architecture}.")
    signatures = demangled(list(usages))
    described = (
        describe(architecture, signatures[name], usages[name], code.get(name, "")) for name in usages
    )
    return [kernel for kernel in described if kernel is not None]


def compiled(architecture: int, folder: Path) -> list[Path]:
    """Compile the kernels as CMake does, for one architecture."""
    nvcc, binaries = tool("nvcc"), []
    for source in SOURCES:
        binaries.append(folder / f"{source.stem}.sm_{architecture}.cubin")
        flags = ["-std=c++17", "-O3", "-DNDEBUG", "-cubin", f"-arch=sm_{architecture}"]
        output_of(nvcc, *flags, source, "-o", binaries[-1])
    return binaries


def by_width(counts: dict[int, int]) -> str:
    return ", ".join(f"{bits}×{counts[bits]}" for bits in sorted(counts, reverse=True)) or "none"


def table(kernels: list[Kernel]) -> str:
    columns = ["kernel", "type", "arguments", "sm", "registers", "stack, B", "spill store / load, B"]
    columns += ["shared, B", "loads, bits×n", "stores, bits×n", "atomics, bits×n", "blocks/SM", "occupancy"]
    rows = [columns, ["---"] * len(columns)]
    for kernel in sorted(
        kernels, key=lambda each: (each.name, each.dtype, each.arguments, each.architecture)
    ):
        rows.append(
            [
                kernel.name,
                kernel.dtype,
                kernel.arguments,
                str(kernel.architecture),
                str(kernel.registers),
                str(kernel.stack),
                "{} / {}".format(*kernel.spilled),
                str(kernel.shared),
                by_width(kernel.loads),
                by_width(kernel.stores),
                by_width(kernel.atomics),
                str(kernel.blocks()),
                f"{kernel.occupancy():.0%}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="a built libsifa_ops_cuda.so, instead of compiling")
    parser.add_argument(
        "--architectures", type=int, nargs="+", default=[87, 90], choices=list(MACHINES), metavar="CAPABILITY"
    )
    arguments = parser.parse_args()
    try:
        if arguments.library is not None and not arguments.library.is_file():
            raise Missing(f"{arguments.library} is missing: build it with cmake, or leave --library out.")
        tool("cuobjdump")
        kernels = []
        with tempfile.TemporaryDirectory() as folder:
            for architecture in arguments.architectures:
                binaries = [arguments.library] if arguments.library else compiled(architecture, Path(folder))
                for binary in binaries:
                    kernels += kernels_of(binary, architecture)
    except Missing as error:
        sys.exit(f"cuda_resources: {error}")
    print(table(kernels))


if __name__ == "__main__":
    main()
