"""Describes an engine's compiled form of a program, for `%kshow`, which puts the engines' graphs side by side."""

# A listing is cut here, so that no graph is too large to be asked for.
MOST_CHARACTERS = 400000


def described(backend, program, run, names):
    """Returns {"kind", "ops", "text"}: describes `run`, compiled from `program`, in the engine's own words.

    `names` are those of the program's leaves. The parts of a divided program are described separately.
    """
    parts = getattr(run, "parts", None)
    if parts is None:
        description = backend.describe(program, run, names)
    else:
        description = {"kind": "%d parts, one after the other" % len(parts), "ops": 0, "text": ""}
        for title, piece, piece_run, leaves in parts:
            description["text"] += "--- %s\n" % title
            if piece is not None:
                # What comes from an earlier part has a number.
                labels = [names[n] if n is not None and n < len(names) else "part%d" % i for i, n in enumerate(leaves)]
                inner = described(backend, piece, piece_run, labels)
                description["text"] += "(%s)\n%s\n" % (inner["kind"], inner["text"])
                description["ops"] += inner["ops"]
            else:
                description["ops"] += 1
    if len(description["text"]) > MOST_CHARACTERS:
        description["text"] = description["text"][:MOST_CHARACTERS] + "\n(%d more characters not shown)" % (
            len(description["text"]) - MOST_CHARACTERS
        )
    return description


def type_of(dtype, shape):
    """dtype and shape as "float32 (32, 10)", with None where a length is unknown."""
    return "%s (%s%s)" % (dtype, ", ".join(str(n) for n in shape), "," if len(shape) == 1 else "")


def listing(program, names):
    """The instructions of a program, a line for each, and what becomes of their values."""
    labels = list(names) + ["%%%d" % i.index for i in program.instructions]
    lines = []
    for instruction in program.instructions:
        attrs = [
            "%s=%s" % (key, value)
            for key, value in sorted(instruction.attrs.items())
            if key != "body" and value is not False
        ]
        operands = ", ".join([labels[n] for n in instruction.inputs] + attrs)
        line = "%%%d = %s(%s)" % (instruction.index, instruction.op, operands)
        body = instruction.attrs.get("body")
        if body is None:
            lines.append("%s : %s" % (line, type_of(instruction.dtype, instruction.shape)))
            continue
        lines.append(line + ", at each step:")
        inner = ["step.%s" % labels[n] for n in instruction.inputs]
        lines.extend("    " + text for text in listing(body, inner))
    lines.extend("output: " + labels[n] for n in program.outputs)
    first = len(program.inputs)
    lines.extend("%s <- %s" % (labels[first + slot], labels[n]) for slot, n in program.updates)
    return lines


def ops_in(program):
    """The number of a program's instructions, including those of its loops' bodies."""
    return sum(1 + (ops_in(i.attrs["body"]) if "body" in i.attrs else 0) for i in program.instructions)
