"""Rewrites a loop's body for `staged`, so that no step cuts columns out of a matrix, or joins columns to one.

An LSTM's step computes its gates by one product and cuts that into columns; the step of its gradient joins columns for
a product with the same weights. An engine may take longer to copy each row's piece than to multiply them all. Here each
gate has a product of its own, with columns of the weights that are cut out once for all steps, and the product of
joined columns is the sum of their products.
"""

from .lowering import Program

# What is cut or joined has at most so many parts, and so many columns, and at least so many rows: otherwise its copies
# are soon made beside its products. What is joined has parts of at least so many columns.
MOST_PARTS, MOST_COLUMNS, FEWEST_ROWS, NARROWEST = 8, 1024, 8, 4
# An op of each part costs about as much as cutting so many rows.
ROWS_AN_OP = 2.6
# A column of their results needs that column of their operands alone.
BY_COLUMN = frozenset(
    ("add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "abs", "relu", "sigmoid", "tanh")
)


class Leaf(object):
    """What a leaf of a body stands for: one of the scan's operands, by position, or a part of it.

    `part`: (start, stop) of each axis, both None for all of it.
    """

    def __init__(self, operand, part=None):
        self.operand = operand
        self.whole = part is None
        self._slices = None if part is None else tuple(slice(*ends) for ends in part)

    def of(self, array):
        """Its elements, a view of the operand's."""
        return array if self.whole else array[self._slices]

    def of_all_steps(self, array):
        """Those of all steps, where the operand is a sequence."""
        return array if self.whole else array[(slice(None),) + self._slices]


class LoopBody(object):
    """A scan's body and how it is called.

    `program`: the body. `leaves`: a Leaf for each of its inputs; `sequences` of them are sequences. `results`: for each
    stacked result of the scan, the positions among the program's of those that are its columns, in order. `origins`:
    for each of the program's instructions the index of the scan's own that it computes, or part of it.
    """

    def __init__(self, program, leaves, sequences, results, origins):
        self.program = program
        self.leaves = leaves
        self.sequences = sequences
        self.results = results
        self.origins = origins


def as_it_is(instruction):
    """The LoopBody of a scan."""
    attrs = instruction.attrs
    body = attrs["body"]
    results = [[position] for position in range(len(body.outputs) - attrs["states"])]
    leaves, origins = [Leaf(number) for number in range(len(body.inputs))], range(len(body.instructions))
    return LoopBody(body, leaves, attrs["sequences"], results, origins)


def in_columns(instruction):
    """The LoopBody of a scan, with what is cut into columns, or joined of columns, computed apart.

    The elements of a product of joined columns are added in another order.
    """
    apart = _Apart(instruction)
    return apart.written() if apart.columns or apart.joined or apart.cut_leaves else as_it_is(instruction)


def _is_slow(kind):
    """Whether the rows of a value, given as (dtype, shape), are worth cutting or joining column by column."""
    dtype, shape = kind
    # What has other dtypes is numpy's on any engine that is slow here.
    matrix = dtype in ("float32", "float64") and len(shape) == 2 and None not in shape
    return matrix and shape[0] >= FEWEST_ROWS and shape[1] <= MOST_COLUMNS


class _Apart(object):
    """Finds what of a scan's body is to be computed in columns, and writes the body anew."""

    def __init__(self, instruction):
        attrs = instruction.attrs
        self._body = body = attrs["body"]
        self._sequences, self._states = attrs["sequences"], attrs["states"]
        self._first = len(body.leaves)
        self._users = {}
        for inner in body.instructions:
            for number in inner.inputs:
                self._users.setdefault(number, []).append(inner)
        # Number of a value -> (start, stop) of each of the columns in which it is computed
        self.columns = {}
        for inner in reversed(body.instructions):
            number = self._first + inner.index
            if number not in self.columns and number not in body.outputs:
                self.columns.update(self._with_operands(number, self._cuts(number)))
        self.cut_leaves = [n for n in range(len(body.inputs)) if self._is_given(n) and self._cuts(n)]
        self.joined = set(self._first + inner.index for inner in body.instructions if self._is_joined(inner))

    # --- what is computed apart

    def _is_given(self, number):
        """Whether a value is there before the first step: an element of a sequence, or one that is always the same."""
        body = self._body
        if number < len(body.inputs):
            return not 0 <= number - self._sequences < self._states
        return self._first - len(body.constants) <= number < self._first

    def _cuts(self, number):
        """(start, stop) of all columns that are cut out of a value, or None if something else is done with it."""
        if not _is_slow(self._body.values[number]):
            return None
        shape, cuts = self._body.values[number][1], set()
        for user in self._users.get(number, ()):
            if user.op != "slice":
                return None
            rows, columns = [range(length)[slice(*cut)] for cut, length in zip(user.attrs["slices"], shape)]
            if rows != range(shape[0]) or columns.step != 1 or not len(columns):
                return None
            cuts.add((columns.start, columns.stop))
        cuts = sorted(cuts)
        # Columns that overlap would be computed twice.
        fits = all(stop <= start for (_, stop), (start, _) in zip(cuts, cuts[1:]))
        return cuts if fits and len(cuts) <= MOST_PARTS else None

    def _with_operands(self, number, cuts):
        """{number: cuts} of a value and of all that is then computed in these columns; nothing, if something can't."""
        if not cuts:
            return {}
        found, pending, rows = {}, [(number, None)], self._body.values[number][1][0]
        while pending:
            number, user = pending.pop()
            if self._is_given(number) or self._is_alike(number):
                continue
            if number < self._first:
                return {}
            if user is not None and (number in self._body.outputs or self._users[number] != [user]):
                return {}
            inner = self._body.instructions[number - self._first]
            if inner.op in BY_COLUMN:
                pending.extend((operand, inner) for operand in set(inner.inputs))
            elif inner.op != "matmul" or not self._is_given(inner.inputs[1]):
                return {}
            found[number] = cuts
        return found if len(found) * ROWS_AN_OP <= rows else {}

    def _is_alike(self, number):
        """Whether a value is the same for each column of what it is broadcast to."""
        shape = self._body.values[number][1]
        return not shape or shape[-1] == 1

    def _is_joined(self, inner):
        """Whether an instruction joins columns that are only results, or multiplied."""
        number = self._first + inner.index
        if inner.op != "concatenate" or inner.attrs["axis"] != 1 or not _is_slow((inner.dtype, inner.shape)):
            return False
        if not 1 < len(inner.inputs) <= MOST_PARTS or min(shape[1] for shape in inner.input_shapes) < NARROWEST:
            return False
        if number in self._body.outputs[: self._states]:
            return False
        return all(
            user.op == "matmul" and not user.attrs["transpose_a"] and self._is_given(user.inputs[1])
            for user in self._users.get(number, ())
        )

    # --- the body written anew

    def written(self):
        """The LoopBody."""
        body, states = self._body, self._states
        # Number of a value, or (number, start, stop) of its columns -> a leaf: (number, part or None), or the index of
        # an instruction
        self._made = {number: (number, None) for number in range(self._first)}
        self._instructions, self._origins = [], []
        for inner in body.instructions:
            number = self._first + inner.index
            for cut in self.columns.get(number, ()):
                self._made[(number,) + cut] = self._computed(inner, cut)
            if number not in self.columns and number not in self.joined:
                self._made[number] = self._computed(inner, None)
            self._origins += [inner.index] * (len(self._instructions) - len(self._origins))
        outputs, results = [self._made[number] for number in body.outputs[:states]], []
        for number in body.outputs[states:]:
            parts = body.instructions[number - self._first].inputs if number in self.joined else [number]
            position = len(outputs) - states
            results.append(list(range(position, position + len(parts))))
            outputs.extend(self._made[part] for part in parts)
        return self._numbered(outputs, results)

    def _computed(self, inner, cut):
        """An instruction's value, or those of its columns."""
        if inner.op == "slice" and (inner.inputs[0] in self.columns or inner.inputs[0] in self.cut_leaves):
            return self._columns_of(inner.inputs[0], range(inner.input_shapes[0][1])[slice(*inner.attrs["slices"][1])])
        if inner.op == "matmul":
            return self._product(inner, cut)
        if cut is None:
            return self._add(inner.op, [self._made[n] for n in inner.inputs], inner.attrs, inner.dtype, inner.shape)
        operands = [self._made[n] if self._is_alike(n) else self._columns_of(n, range(*cut)) for n in inner.inputs]
        return self._add(inner.op, operands, inner.attrs, inner.dtype, inner.shape[:-1] + (cut[1] - cut[0],))

    def _columns_of(self, number, columns):
        if number in self.columns:
            return self._made[number, columns.start, columns.stop]
        before = len(self._body.values[number][1]) - 1
        return self._part(number, [None] * before + [columns])

    def _part(self, number, ranges):
        """The part of a leaf that is there before the first step, from a range for each axis; None: all of it."""
        dtype, shape = self._body.values[number]
        part = tuple((None, None) if r is None else (r.start, r.stop) for r in ranges)
        if number < len(self._body.inputs):
            return number, part
        slices = [[start, stop, None] for start, stop in part]
        shape = [length if r is None else len(r) for length, r in zip(shape, ranges)]
        return self._add("slice", [self._made[number]], {"slices": slices}, dtype, shape)

    def _product(self, inner, cut):
        """That of a matrix, or of its columns one after another, with one that is there before the first step."""
        a, b = inner.inputs
        parts = self._body.instructions[a - self._first].inputs if a in self.joined else [a]
        start, total = 0, None
        for part in parts:
            stop = start + self._body.values[part][1][1]
            ranges = [None if a not in self.joined else range(start, stop), None if cut is None else range(*cut)]
            if inner.attrs["transpose_b"]:
                ranges.reverse()
            factor = self._made[b] if ranges == [None, None] else self._part(b, ranges)
            shape = inner.shape if cut is None else (inner.shape[0], cut[1] - cut[0])
            product = self._add("matmul", [self._made[part], factor], inner.attrs, inner.dtype, shape)
            total = product if total is None else self._add("add", [total, product], {}, inner.dtype, shape)
            start = stop
        return total

    def _add(self, op, operands, attrs, dtype, shape):
        self._instructions.append((op, operands, attrs, dtype, tuple(shape)))
        return len(self._instructions) - 1

    def _numbered(self, outputs, results):
        """The LoopBody: leaves in their order, those that nobody takes left out, values by number."""
        body = self._body
        used = set(outputs)
        for _, operands, _, _, _ in self._instructions:
            used.update(operands)
        inputs = len(body.inputs)
        states = range(self._sequences, self._sequences + self._states)
        used.update((number, None) for number in list(states) + list(range(inputs, self._first)))
        leaves = sorted((leaf for leaf in used if isinstance(leaf, tuple)), key=lambda leaf: (leaf[0], repr(leaf[1])))
        numbers = {leaf: number for number, leaf in enumerate(leaves)}
        numbers.update((index, len(leaves) + index) for index in range(len(self._instructions)))
        taken = [Leaf(*leaf) for leaf in leaves if leaf[0] < inputs]
        program = Program(
            {
                "inputs": [self._kind(leaf) for leaf in leaves if leaf[0] < inputs],
                "slots": [],
                "draws": body.draws,
                "constants": body.constants,
                "instructions": [
                    (op, [numbers[operand] for operand in operands], attrs, dtype, shape)
                    for op, operands, attrs, dtype, shape in self._instructions
                ],
                "outputs": [numbers[output] for output in outputs],
                "updates": [],
            }
        )
        sequences = sum(leaf.operand < self._sequences for leaf in taken)
        return LoopBody(program, taken, sequences, results, self._origins)

    def _kind(self, leaf):
        number, part = leaf
        dtype, shape = self._body.values[number]
        if part is not None:
            shape = [len(range(length)[slice(*ends)]) for ends, length in zip(part, shape)]
        return dtype, tuple(shape)
