"""What a compiled program says of itself: instructions, the loop over steps, traffic, memory."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable

import jax

_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_BODY = re.compile(r" while\(.*?\bbody=(%[\w.\-]+)")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What names a value and computes nothing.
_NAMES_ONLY = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("partition-id", "replica-id"),
)
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: with its %.
      shape: of the result, as HLO writes it.
      operation: such as "fusion" or "custom-call".
      rest: operands and attributes.
    """

    name: str
    shape: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        return re.findall(r"%[\w.\-]+", self.rest.partition(")")[0])

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it gives none, as always for CPUs and GPUs."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else 0


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation of a program."""
    found: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = found.setdefault(start[1], [])
        elif instruction := _INSTRUCTION.match(line):
            current.append(Instruction(*instruction.groups()))
    return found


def longest_loop(text: str) -> list[Instruction]:
    """The instructions of the longest loop's body: on a GPU mostly a kernel or a call each.

    Those inside its branches and inner loops are left out.

    Raises:
      ValueError: if the program has no loop.
    """
    found = computations(text)
    bodies = [found[name] for name in _BODY.findall(text)]
    if not bodies:
        raise ValueError("this program has no loop")
    return [
        step
        for step in max(bodies, key=len)
        if step.operation not in _NAMES_ONLY and '"ConcatBitcast"' not in step.rest
    ]


def operations(instructions: Iterable[Instruction]) -> Counter[str]:
    """How many there are of each operation; one that starts and is done later counts once."""
    names = [each.operation for each in instructions]
    return Counter(name.removesuffix("-start") for name in names if not name.endswith("-done"))


def exchanges(counts: Counter[str]) -> int:
    """How many of the operations are between devices."""
    return sum(counts[name] for name in _COLLECTIVES)


def _bytes_of(shape: str) -> int:
    """Of an array or a tuple of arrays as HLO writes them, without uint8: a library's scratch."""
    arrays = [found for found in _ARRAY.findall(shape) if found[0] != "u8"]
    return sum(
        int(bits or 8) * math.prod(int(d) for d in dims.split(",") if d) // 8
        for _, bits, dims in arrays
    )


def library_bytes(text: str) -> int:
    """Operands and results of the calls of libraries in a program, which XLA's count leaves out.

    A call in a loop counts once, as in XLA's count.
    """
    instructions = [each for body in computations(text).values() for each in body]
    shapes = {each.name: each.shape for each in instructions}
    return sum(
        _bytes_of(call.shape) + sum(_bytes_of(shapes[operand]) for operand in call.operands)
        for call in instructions
        if call.operation == "custom-call"
    )


def device_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that the program needs on each device, by XLA's plan."""
    plan = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporary": plan.temp_size_in_bytes,
    }
    return parts | {"total": sum(parts.values())}
