"""The beam search of connectionist temporal classification, on ndarrays: every backend hands its values to it."""

import numpy as np

# Engines' logarithms differ in their last bits. Sequences whose scores are that close count as equally probable, and
# come in the order of their labels: the same on every engine.
EQUAL = 1e-5


def beam_search(logs, steps, beam_width, top_paths, merge_repeated):
    """The most probable label sequences of each sample, for `logs` (batch, time, classes); the last class is the blank.

    `steps` is an int array (batch, 1): how many time steps count. Returns (batch, top_paths, time + 1) in the dtype of
    `logs`: labels with -1 behind them, then the logarithm of the sequence's probability (-inf where there are fewer).
    """
    batch, time, _ = logs.shape
    result = np.full((batch, top_paths, time + 1), -1, logs.dtype)
    result[:, :, -1] = -np.inf
    for sample in range(batch):
        rows = logs[sample, : max(0, min(int(steps[sample, 0]), time))].astype(np.float64)
        for rank, (labels, score) in enumerate(_beams(rows, beam_width)[:top_paths]):
            if merge_repeated:
                labels = [label for i, label in enumerate(labels) if not i or label != labels[i - 1]]
            result[sample, rank, : len(labels)] = labels
            result[sample, rank, -1] = score
    return result


def _beams(rows, width):
    """[(labels, log-probability)] of the `width` best sequences after these rows, the best first."""
    blank = rows.shape[1] - 1 if rows.ndim == 2 else 0
    # For each sequence of labels: the log-probabilities of its paths that end on a blank, and on its last label.
    beams = {(): (0.0, -np.inf)}
    for row in rows:
        row = row - np.logaddexp.reduce(row)
        grown = {}
        for labels, (on_blank, on_label) in beams.items():
            either = np.logaddexp(on_blank, on_label)
            last = labels[-1] if labels else None
            again = on_label + row[last] if labels else -np.inf
            _add(grown, labels, either + row[blank], again)
            for label in range(blank):
                # The same label again counts as another one only after a blank.
                _add(grown, labels + (label,), -np.inf, (on_blank if label == last else either) + row[label])
        beams = {labels: grown[labels] for labels, _ in _ranked(grown)[:width]}
    return [(list(labels), score) for labels, score in _ranked(beams)]


def _ranked(beams):
    """[(labels, log-probability)] of all beams, the best first."""
    scored = sorted(((labels, np.logaddexp(*ends)) for labels, ends in beams.items()), key=lambda item: -item[1])
    ranked, equals = [], []
    for item in scored:
        if equals and not item[1] >= equals[0][1] - EQUAL * max(1.0, abs(equals[0][1])):
            ranked += sorted(equals)
            equals = []
        equals.append(item)
    return ranked + sorted(equals)


def _add(beams, labels, on_blank, on_label):
    before = beams.get(labels, (-np.inf, -np.inf))
    beams[labels] = (np.logaddexp(before[0], on_blank), np.logaddexp(before[1], on_label))
