"""Reads the files of `write.py` with Keras 2.3.1 on kernelk: ENGINE FOLDER [NAMEs]; prints the differences as JSON.

For each file: the largest difference of a prediction, of a loss and of a prediction after training on; or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import kernelk
from kernelk.session.current import current, stop_engines

# Keras 2.3.1 on TensorFlow 1.15 takes the number of the step after its increment.
ONE_AHEAD = ("sgd_decay", "adam", "adam_amsgrad", "adamax", "nadam")
# TensorFlow's fused op corrected the moving variance of images twice (n / (n - 1)); Theano's had epsilon in it.
OTHER_MOVING_VARIANCE = ("batch_normalization",)


def as_list(x: Any) -> list[Any]:
    return x if isinstance(x, list) else [x]


def difference(keras: Any, file: Path, written_on: str) -> list[float]:
    """The three differences; that of the prediction alone for weights without a model."""
    data = np.load(file.with_suffix(".npz"))

    def arrays(what: str) -> list[Any]:
        return [data[f"{what}{i}"] for i in range(9) if f"{what}{i}" in data]

    def off(what: str) -> float:
        pairs = zip(as_list(model.predict(x)), arrays(what), strict=True)
        return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)

    x, y = arrays("x"), arrays("y")
    if "json" in data:
        model = keras.models.model_from_json(str(data["json"]))
        model.load_weights(str(file))
        return [off("before")]
    model = keras.models.load_model(str(file))
    found = [off("before")]
    if "again0" in data:
        found[0] = max(found[0], off("again"))
        model.reset_states()
    if written_on == "tensorflow" and file.stem in ONE_AHEAD:
        optimizer = model.optimizer
        keras.backend.set_value(optimizer.iterations, keras.backend.get_value(optimizer.iterations) + 1)
    losses = [float(as_list(model.train_on_batch(x, y))[0]) for _ in data["losses"]]
    found.append(float(np.abs(np.array(losses) - data["losses"]).max()))
    model.reset_states()
    return found if file.stem in OTHER_MOVING_VARIANCE else [*found, off("after")]


def main(engine: str, folder: str, *names: str) -> None:
    kernelk.enable_keras2()
    import keras

    if engine == "theano":
        # As where there is no C compiler: it computes the same, and each function is ready seconds earlier.
        current().engine_options["theano"] = {"compiler": ""}
    kernelk.set_backend(engine)
    files = [Path(folder, f"{name}.h5") for name in names] or sorted(Path(folder).glob("*.h5"))
    found: dict[str, list[float] | str] = {}
    for file in files:
        try:
            found[file.stem] = difference(keras, file, Path(folder).name)
        except Exception as error:
            found[file.stem] = f"{type(error).__name__}: {error}"
        keras.backend.clear_session()
    stop_engines()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
