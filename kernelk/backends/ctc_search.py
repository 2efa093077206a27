"""The search for the most probable label sequences of a CTC network, by numpy, for every engine."""

import numpy as np


def beam_search(log_probabilities, lengths, beam_width, top_paths, merge_repeated):
    """The best sequences of each sample, as a float64 array of shape (samples, top_paths, 1 + time).

    `log_probabilities`: (samples, time, classes), the last class is the blank; `lengths`: how many times count.
    Of each path there is the logarithm of its probability (as far as it got into the beam), then its labels, then -1.
    Where there are fewer sequences than asked for, their logarithms are -inf. With `merge_repeated` equal neighbours in
    a sequence are given as one.
    """
    samples, time, _ = log_probabilities.shape
    found = np.full((samples, top_paths, 1 + time), -1.0)
    found[:, :, 0] = -np.inf
    for sample in range(samples):
        steps = np.asarray(log_probabilities[sample, : max(0, min(int(lengths[sample]), time))], np.float64)
        for place, (labels, total) in enumerate(_best(steps, beam_width)[:top_paths]):
            if merge_repeated:
                labels = [x for i, x in enumerate(labels) if i == 0 or x != labels[i - 1]]
            found[sample, place, 0] = total
            found[sample, place, 1 : 1 + len(labels)] = labels
    return found


def _best(steps, width):
    """[(labels, logarithm of the probability)] of one sample, the most probable first."""
    # Sequence -> logarithms of its probability with a blank at the end and with its last label there
    beam = {(): (0.0, -np.inf)}
    for step in steps:
        blank, labels = step[-1], step[:-1]
        following = {}

        def add(labels, with_blank, with_label, following=following):
            before = following.get(labels, (-np.inf, -np.inf))
            following[labels] = (np.logaddexp(before[0], with_blank), np.logaddexp(before[1], with_label))

        for sequence, (with_blank, with_label) in beam.items():
            total = np.logaddexp(with_blank, with_label)
            stays = with_label + labels[sequence[-1]] if sequence else -np.inf
            add(sequence, total + blank, stays)
            for label, logarithm in enumerate(labels):
                # A label after itself needs a blank between.
                before = with_blank if sequence and sequence[-1] == label else total
                if before > -np.inf:
                    add(sequence + (label,), -np.inf, before + logarithm)
        # Of equals the one that sorts first, so that the order doesn't depend on how it came about.
        ranked = sorted(following.items(), key=lambda entry: (-np.logaddexp(*entry[1]), entry[0]))
        beam = dict(ranked[:width])
    ranked = sorted(beam.items(), key=lambda entry: (-np.logaddexp(*entry[1]), entry[0]))
    return [(list(sequence), np.logaddexp(*parts)) for sequence, parts in ranked]
