"""One side of `keras2.py`: an epoch of a Keras 2.3.1 model, on its own backend or on kernelk. Python 3.6 syntax.

`python keras2_side.py CASE [ENGINE]` reads lines with a number of epochs and answers each with their seconds, as JSON;
with an engine on kernelk, or "by hand", which is without Keras, on TensorFlow 2. The case "import" prints the seconds
from `import keras` to a compiled model, and ends.
"""

import json
import os
import sys
import time

import natives
import numpy as np

# case: (shape of an input, samples, samples in a batch)
CASES = {
    "dense": ((64,), 3200, 32),
    "cnn": ((16, 16, 1), 1024, 32),
    "lstm": ((20, 16), 640, 32),
    "mnist_cnn": ((28, 28, 1), 512, 128),
}


def made(case):
    """A compiled model."""
    import keras
    from keras import layers as L

    shape = CASES[case][0]
    if case == "dense":
        layers = [L.Dense(64, activation="relu", input_shape=shape), L.Dense(64, activation="relu")]
    elif case == "cnn":
        layers = [L.Conv2D(8, 3, activation="relu", input_shape=shape), L.MaxPooling2D()]
        layers += [L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dense(32, activation="relu")]
    elif case == "mnist_cnn":
        # As in Keras's examples/mnist_cnn.py: 4.8 MB of weights.
        layers = [L.Conv2D(32, 3, activation="relu", input_shape=shape), L.Conv2D(64, 3, activation="relu")]
        layers += [L.MaxPooling2D(), L.Dropout(0.25), L.Flatten(), L.Dense(128, activation="relu"), L.Dropout(0.5)]
    else:
        layers = [L.LSTM(32, input_shape=shape)]
    model = keras.models.Sequential(layers + [L.Dense(10, activation="softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model


def main(case, engine=""):
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    by_hand = engine == "by hand"
    if engine and not by_hand:
        import kernelk
        from kernelk import config

        # What is measured is the C code.
        config.LIMITS.build_beside = False
        kernelk.set_backend(engine)
        kernelk.enable_keras2()
    elif by_hand:
        pass
    elif os.environ["KERAS_BACKEND"] == "theano":
        # The same compiler, BLAS and threads.
        natives.backend("theano")
    elif os.environ["KERAS_BACKEND"] == "cntk":
        natives.island("cntk.backend").tell_mkl()
    if case == "import":
        start = time.perf_counter()
        made("dense")
        print(time.perf_counter() - start, file=answers, flush=True)
        return
    random = np.random.RandomState(0)
    shape, samples, batch = CASES[case]
    x = random.rand(samples, *shape).astype("float32")
    y = np.eye(10, dtype="float32")[random.randint(0, 10, samples)]
    if by_hand:
        from natives import tensorflow

        epoch = tensorflow.dense_epoch(x, y, batch)
    else:
        model = made(case)

        def epoch():
            model.fit(x, y, epochs=1, batch_size=batch, verbose=0)

    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            epoch()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
