"""Reads the text of a compiled program (`compiled.as_text()`): instructions, how often each runs, what it reads.

`cost_analysis()` counts the body of a loop once, and says nothing about collectives; here both are counted.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# Bits of an element; types that are not listed here have the digits of their name.
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")

# Instructions that name arrays without moving them, and those whose work stands in other computations.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "optimization-barrier", "async-update",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
# Of their operands no more is read than of them.
_ELEMENT_BY_ELEMENT = {
    *("bitcast", "convert", "copy", "select", "concatenate", "maximum", "minimum"),
    *("add", "subtract", "multiply", "divide", "negate"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `operands` are names in the same computation, `attributes` the text after them."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    is_root: bool

    @property
    def bytes(self) -> int:
        return type_bytes(self.type)

    def called(self, attribute: str) -> list[str]:
        """Names of computations that an attribute (`calls`, `body`, ...) holds."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return re.findall(r"%([\w.\-]+)", match.group(1)) if match else []


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each its instructions by name in their order."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Parses the text of an HLO module.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no HLO module: it has no entry computation")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    line = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closing(line, 0) if line.startswith("(") else line.index(" ")
    type_, rest = line[:end], line[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    arguments = rest[len(opcode) + 1 : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(
        head.group(2), type_, opcode, operands, rest[end:], arguments, bool(head.group(1))
    )


def _closing(text: str, start: int) -> int:
    """Index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced brackets: {text[:80]}")


def type_bytes(text: str, *, main_memory: bool = False) -> int:
    """Bytes of an array or tuple type; with `main_memory`, without what lies in a TPU's vector memory (`S(1)`, ...)."""
    total = 0
    for kind, shape, layout in _ARRAY.findall(text):
        if main_memory and re.search(r"S\([1-9]", layout):
            continue
        digits = re.search(r"[0-9]+", kind)
        bits = _BITS.get(kind, int(digits.group()) if digits else 0)
        total += math.ceil(bits * math.prod(int(n) for n in shape.split(",") if n) / 8)
    return total


def executions(program: Program, unknown_trips: int = 1) -> dict[str, int]:
    """How often each computation runs, those of fusions and loops included.

    Args:
      unknown_trips: of a loop in the entry computation whose length is an argument of the program. Such loops inside
        other loops are counted once.
    """
    counts = dict.fromkeys(program.computations, 0)

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for instruction in program.computations[name].values():
            for callee, trips in _callees(program, instruction):
                if trips is None:
                    trips = unknown_trips if name == program.entry else 1
                visit(callee, times * trips)

    visit(program.entry, 1)
    return counts


def _callees(program: Program, instruction: Instruction) -> Iterator[tuple[str, int | None]]:
    if instruction.opcode == "while":
        trips = _trip_count(program, instruction)
        for attribute in ("body", "condition"):
            for name in instruction.called(attribute):
                yield name, trips
        return
    attributes = ["calls", "branch_computations", "true_computation", "false_computation"]
    attributes += ["to_apply"] if instruction.opcode == "call" else []
    for attribute in attributes:
        for name in instruction.called(attribute):
            yield name, 1


def _trip_count(program: Program, loop: Instruction) -> int | None:
    """What the compiler wrote down, else the constant that the counter is compared with; our loops start at 0."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known.group(1))
    condition = program.computations[loop.called("condition")[0]]
    root = next(x for x in condition.values() if x.is_root)
    if root.opcode == "compare" and "direction=LT" in root.attributes:
        bound = condition[root.operands[1]]
        if bound.opcode == "constant":
            return int(bound.arguments)
    return None


def memory_traffic(program: Program, unknown_trips: int = 1) -> int:
    """Bytes that one device reads from and writes to its main memory.

    Operands and results of every instruction outside fusions, each once; of an operand that is only sliced, itself or
    what is computed from it element by element, the slices.
    What stays in a TPU's vector memory is not counted, nor what a kernel reads twice.
    """
    counts = executions(program, unknown_trips)
    inner = {
        name
        for computation in program.computations.values()
        for x in computation.values()
        if x.opcode == "fusion"
        for name in x.called("calls")
    }
    total = 0
    for name, computation in program.computations.items():
        if counts[name] and name not in inner:
            total += counts[name] * sum(
                _traffic(program, computation, x) for x in computation.values()
            )
    return total


def _traffic(program: Program, computation: dict[str, Instruction], x: Instruction) -> int:
    if x.opcode in _FREE or x.opcode.endswith("-done"):
        return 0
    if x.opcode in _SLICES:
        return 2 * type_bytes(x.type, main_memory=True)
    if x.opcode == "dynamic-update-slice":
        return 2 * type_bytes(computation[x.operands[1]].type, main_memory=True)
    if x.opcode.endswith("-start"):  # its type names operands too
        return sum(type_bytes(computation[o].type, main_memory=True) for o in x.operands) * 2
    fused = x.called("calls") if x.opcode == "fusion" else []
    if not fused:
        operands = sum(type_bytes(computation[o].type, main_memory=True) for o in x.operands)
        return operands + type_bytes(x.type, main_memory=True)
    inside = program.computations[fused[0]]
    parameters = {int(p.arguments): p for p in inside.values() if p.opcode == "parameter"}
    total = _written(inside, next(i for i in inside.values() if i.is_root), x.type)
    for i, operand in enumerate(x.operands):
        whole = type_bytes(computation[operand].type, main_memory=True)
        total += min(whole, _read(program, inside, parameters[i])) if whole else 0
    return total


def _read(program: Program, computation: dict[str, Instruction], x: Instruction) -> int:
    """Bytes of a fusion's parameter that its users read."""
    total = 0
    for user in computation.values():
        if x.name not in user.operands:
            continue
        if total >= x.bytes:
            break
        if user.opcode in _SLICES and user.operands[0] == x.name:
            total += user.bytes
        elif user.opcode in _ELEMENT_BY_ELEMENT and not user.is_root:
            share = _read(program, computation, user) / max(user.bytes, 1)
            total += round(share * _elements(user.type) * x.bytes / _elements(x.type))
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == x.name:
            continue  # written in place
        elif user.opcode == "fusion":
            inside = program.computations[user.called("calls")[0]]
            i = user.operands.index(x.name)
            total += _read(
                program,
                inside,
                next(
                    p for p in inside.values() if p.opcode == "parameter" and int(p.arguments) == i
                ),
            )
        else:
            return x.bytes
    return min(total, x.bytes)


def _elements(type_: str) -> int:
    """Elements of an array, or of all arrays of a tuple."""
    shapes = (shape for _, shape, _ in _ARRAY.findall(type_))
    return sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes) or 1


def _written(computation: dict[str, Instruction], root: Instruction, type_: str) -> int:
    while root.opcode == "bitcast":
        root = computation[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        whole = type_bytes(type_, main_memory=True)
        return min(whole, computation[root.operands[1]].bytes)
    return type_bytes(type_, main_memory=True)
