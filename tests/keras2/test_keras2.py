"""Keras 2.3.1, unedited, in a notebook with kernelk: it is found, learns on every engine, and is put back."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import ENGINES, require_installed
from helpers.notebooks import run_cells

from kernelk.environments import keras2
from kernelk.errors import InstallError
from kernelk.keras2 import old_modules

BEGIN = "%load_ext kernelk\nimport kernelk, numpy as np\nkernelk.set_backend('numpy')\n%kbackend --keras2\nimport keras"
DATA = "x = np.random.RandomState(1).rand(60, 6)\ny = np.eye(3)[(x.sum(1) * 7).astype(int) % 3]"
MODEL = """
def made():
    kernelk.backend.set_random_seed(3)
    np.random.seed(3)
    model = keras.Sequential([
        keras.layers.Dense(8, activation="relu", input_shape=(6,), kernel_regularizer="l2"),
        keras.layers.Dropout(0.3),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(3, activation="softmax"),
    ])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model
"""


def cells(*code: str, **settings: Any) -> list[dict[str, Any]]:
    """What the cells after the beginning showed; none of them may fail."""
    results = run_cells([BEGIN, *code], KERNELK_QUIET="1", **settings)
    for result in results:
        assert result["error"] is None, result["err"] + result["out"]
    return results[1:]


def value(result: dict[str, Any]) -> Any:
    """The JSON that a cell has printed last."""
    return json.loads(result["out"].strip().splitlines()[-1])


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    """Keras 2.3.1 in kernelk's folder."""
    keras2.install(lambda text: None)


def test_import_keras_gives_keras_2_with_k_as_its_backend() -> None:
    version, same, names, aliases, modules, absent = cells(
        "keras.__version__",
        "from keras import backend as K\nimport kernelk.backend\n"
        "[K.dot is kernelk.backend.dot, keras.backend is K, keras.backend.floatx is kernelk.backend.floatx]",
        "[K.backend(), kernelk.using('theano') and K.backend(), keras.engine.network.K.backend()]",
        "import keras.backend.theano_backend as T\nfrom keras.backend.tensorflow_backend import softmax\n"
        "[T.softmax is K.softmax, softmax is K.softmax, K.tensorflow_backend.softmax is K.softmax,"
        " callable(K.clear_session), callable(K.is_symbolic), callable(K.get_variable_shape)]",
        "import sys\n[name in sys.modules for name in ('tensorflow', 'theano', 'cntk', 'torch', 'jax')],"
        " [path for path in sys.path if 'keras2' in path]",
        "try:\n    K.get_session()\nexcept AttributeError as error:\n    print(error)",
    )
    assert version["value"] == "'2.3.1'"
    assert same["value"] == "[True, True, True]"
    assert names["value"] == "['numpy', 'numpy', 'numpy']"
    assert aliases["value"] == str([True] * 6)
    assert modules["value"] == "([False, False, False, False, False], [])"
    assert "there are no TensorFlow sessions; next: K.get_value(w)" in absent["out"]


def test_kerass_own_code_and_packages_see_one_name(tmp_path: Path) -> None:
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "old_package.py").write_text("from keras import backend as K\nname = K.backend()\n")
    (package / "asks.py").write_text("def ask():\n    from keras import backend as K\n    return K.backend()\n")
    (tmp_path / "mine.py").write_text("from keras import backend as K\ndef ask():\n    return K.backend()\n")
    found = cells(
        f"import sys\nsys.path[:0] = [{str(package)!r}, {str(tmp_path)!r}]\nimport old_package, asks, mine\n"
        "kernelk.set_backend('numpy')\n[old_package.name, asks.ask(), mine.ask(), keras.backend.backend()]"
    )
    assert found[0]["value"] == "['tensorflow', 'tensorflow', 'numpy', 'numpy']"


def test_a_model_learns_as_in_keras() -> None:
    _, layers, text = cells(
        DATA + MODEL,
        "model = made()\nhistory = model.fit(x, y, epochs=30, batch_size=16, verbose=0, validation_split=0.2).history\n"
        "print(__import__('json').dumps({name: [float(v) for v in values] for name, values in history.items()}))",
        "print(keras.models.model_from_json(model.to_json()).to_yaml() == model.to_yaml(),"
        " [w.name for w in model.weights[:3]])",
    )
    history = value(layers)
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history["loss"][-1] < history["loss"][0]
    assert text["out"].strip() == "True ['dense_1/kernel', 'dense_1/bias', 'batch_normalization_1/gamma']"


@pytest.mark.slow
def test_a_fit_goes_on_through_every_ordered_pair_of_engines() -> None:
    """The engine changes before each batch, so that each one follows each other one."""
    for name in ENGINES:
        require_installed(name)
    found = cells(
        DATA + MODEL + f"names = {list(ENGINES)}",
        """
import itertools, json, os
def fitted(engines):
    model, losses, turns = made(), [], iter(engines)
    class Swap(keras.callbacks.Callback):
        def on_batch_begin(self, batch, logs=None):
            kernelk.set_backend(next(turns))
        def on_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]))
    batches = len(engines)
    data = np.tile(x, (batches // 60 + 1, 1)), np.tile(y, (batches // 60 + 1, 1))
    options = {'batch_size': 1, 'shuffle': False, 'verbose': 0, 'callbacks': [Swap()]}
    model.fit(data[0][:batches], data[1][:batches], **options)
    kernelk.set_backend("numpy")
    return losses, [w.astype(float).tolist() for w in model.get_weights()]
# A walk that goes along each ordered pair once.
graph, walk, stack = {a: [b for b in names if b != a] for a in names}, [], [names[0]]
while stack:
    if graph[stack[-1]]:
        stack.append(graph[stack[-1]].pop())
    else:
        walk.append(stack.pop())
assert len(set(zip(walk, walk[1:]))) == len(names) * (len(names) - 1)
alone, there = fitted(["numpy"] * len(walk)), fitted(walk)
print(json.dumps([max(abs(a - b) for a, b in zip(alone[0], there[0])), len(there[0]),
    max(np.abs(np.array(a) - np.array(b)).max() for a, b in zip(alone[1], there[1]))]))
""",
    )
    loss, batches, weight = value(found[-1])
    assert batches == len(ENGINES) * (len(ENGINES) - 1) + 1
    assert loss < 2e-5
    assert weight < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_layers_of_each_kind_learn_the_same_on_each_engine(engine: str) -> None:
    require_installed(engine)
    found = cells(
        f"engine = {engine!r}",
        """
import json
L = keras.layers
def kinds():
    yield "convolutional", [L.Conv2D(4, 3, padding="same", activation="relu", input_shape=(6, 6, 1)), L.MaxPooling2D(),
        L.SeparableConv2D(3, 2), L.SpatialDropout2D(0.2), L.GlobalAveragePooling2D(), L.Dense(2)]
    yield "recurrent", [L.Masking(input_shape=(5, 3)), L.Bidirectional(L.LSTM(4, return_sequences=True, dropout=0.5)),
        L.GRU(3, recurrent_dropout=0.3), L.Dense(2)]
    yield "embedded", [L.Embedding(9, 4, input_length=5), L.Lambda(lambda t: t[:, 1:3]), L.Flatten(), L.Dense(2)]
    # XLA moved its transposes in circles once, and ended.
    yield "channels first", [L.ConvLSTM2D(2, 2, data_format="channels_first", input_shape=(2, 1, 4, 4)), L.Flatten(),
        L.Dense(2)]
    yield "cuDNN's", [L.CuDNNLSTM(4, return_sequences=True, input_shape=(5, 3)), L.CuDNNGRU(3), L.Dense(2)]
inputs = {"convolutional": (12, 6, 6, 1), "recurrent": (12, 5, 3), "embedded": (12, 5),
    "channels first": (12, 2, 1, 4, 4), "cuDNN's": (12, 5, 3)}
def learned(engine):
    kernelk.set_backend(engine)
    values = {}
    for kind, layers in kinds():
        kernelk.backend.set_random_seed(4)
        np.random.seed(4)
        random = np.random.RandomState(0)
        data = random.randint(0, 9, inputs[kind]) if kind == "embedded" else random.rand(*inputs[kind])
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.1, clipnorm=1.0), "mse")
        losses = model.fit(data, random.rand(12, 2), epochs=2, batch_size=6, verbose=0, shuffle=False).history["loss"]
        values[kind] = [*map(float, losses), float(np.abs(model.predict(data)).sum()), model.uses_learning_phase]
    return values
print(json.dumps([learned("numpy"), learned(engine)]))
""",
    )
    wanted, got = value(found[-1])
    assert wanted.keys() == got.keys()
    for kind, numbers in wanted.items():
        assert got[kind][:-1] == pytest.approx(numbers[:-1], rel=2e-4), kind
    # Dropout inside a loop counts, too: without it `fit` would never drop anything.
    assert [numbers[-1] for numbers in got.values()] == [True, True, False, False, False]


def test_files_say_tensorflow_whichever_engine_is_active(tmp_path: Path) -> None:
    require_installed("theano")
    same, stored, again, compiled = cells(
        DATA + MODEL + "model = made()\nmodel.fit(x, y, verbose=0)\nbefore = model.predict(x)",
        f"import io, h5py\nkernelk.set_backend('theano')\npath = {str(tmp_path / 'model.h5')!r}\nmodel.save(path)\n"
        "with h5py.File(path) as file:\n    print(file.attrs['backend'], file['model_weights'].attrs['backend'],"
        " sorted(file['model_weights']['dense_1']['dense_1']))",
        "kernelk.set_backend('numpy')\nloaded = keras.models.load_model(path)\nstream = io.BytesIO()\n"
        "loaded.save(stream)\nstream.seek(0)\nonce_more = keras.models.load_model(stream)\n"
        "[bool((loaded.predict(x) == before).all()), bool((once_more.predict(x) == before).all())]",
        "a, b = loaded.optimizer.get_weights(), model.optimizer.get_weights()\n"
        "[len(a), all(np.array_equal(p, q) for p, q in zip(a, b))]",
    )
    assert same["error"] is None
    assert stored["out"].strip() in (
        "tensorflow tensorflow ['bias', 'kernel']",
        "b'tensorflow' b'tensorflow' ['bias', 'kernel']",
    )
    assert again["value"] == "[True, True]"
    assert compiled["value"].endswith(", True]")
    assert not compiled["value"].startswith("[0")


def test_kernels_that_keras_wrote_on_theano_are_turned_when_they_are_loaded(tmp_path: Path) -> None:
    found = cells(
        "import h5py\nmodel = keras.Sequential([keras.layers.Conv2D(2, 3, input_shape=(5, 5, 1))])\n"
        f"path = {str(tmp_path / 'weights.h5')!r}\nmodel.save_weights(path)\nkernel = model.get_weights()[0]\n"
        "with h5py.File(path, 'r+') as file:\n    file.attrs['backend'] = np.bytes_('theano')\n"
        "model.load_weights(path)\nbool((model.get_weights()[0] == kernel[::-1, ::-1]).all())"
    )
    assert found[0]["value"] == "True"


def test_files_and_groups_that_are_open_are_written_and_read() -> None:
    *_, found = cells(
        DATA + MODEL + "model = made()\nr = model.fit(x, y, verbose=0)\nfrom keras.engine import saving\nimport h5py\n"
        "known = model.predict(x)\n"
        "def same(other):\n    return bool((other.predict(x) == known).all())",
        "with h5py.File('no file', 'w', driver='core', backing_store=False) as file:\n"
        "    model.save(file)\n    model.save(file.create_group('inside'))\n"
        "    whole, part = keras.models.load_model(file), keras.models.load_model(file['inside'])\n"
        "    fresh = [made(), keras.models.clone_model(model)]\n"
        "    saving.load_weights_from_hdf5_group(file['model_weights'], fresh[0].layers)\n"
        "    saving.load_weights_from_hdf5_group_by_name(file['model_weights'], fresh[1].layers)\n"
        "    names = saving.load_attributes_from_hdf5_group(file['model_weights'], 'layer_names')\n"
        "    kept = [type(file) is h5py.File, type(file['inside']) is h5py.Group, type(file.attrs['backend']) is str]\n"
        "steps = [float(kernelk.backend.get_value(one.optimizer.iterations)) for one in (model, whole, part)]",
        "import json\nprint(json.dumps([same(whole), same(part), [type(name).__name__ for name in names], kept, steps,"
        " same(fresh[0]), same(fresh[1])]))",
    )
    whole, part, names, kept, steps, fresh, by_name = value(found)
    assert (whole, part, fresh, by_name) == (True, True, True, True)
    assert set(names) == {"str"}
    # For the user they are what they were.
    assert kept == [True, True, True]
    assert steps == [2.0, 2.0, 2.0]


def test_weights_of_one_name_in_a_layer_are_numbered_and_saved(tmp_path: Path) -> None:
    *_, names, same = cells(
        "from keras.layers import *\nsteps = np.random.rand(4, 5, 2)\n"
        "def made():\n    layer = RNN([LSTMCell(3), GRUCell(4)], input_shape=(5, 2), name='cells')\n"
        "    model = keras.Sequential([layer])\n    model.compile('adam', 'mse')\n    return model\n"
        "model, fresh = made(), made()\nr = model.fit(steps, np.ones((4, 4)), verbose=0)\n"
        f"path = {str(tmp_path / 'cells.h5')!r}\nmodel.save(path)\nagain = keras.models.load_model(path)\n"
        "model.save_weights(path)\nfresh.load_weights(path)\nimport json",
        "print(json.dumps([[w.name for w in one.weights] for one in (model, fresh, again)]))",
        "print(json.dumps([bool((one.predict(steps) == model.predict(steps)).all()) for one in (fresh, again)]))",
    )
    parts = ["kernel", "recurrent_kernel", "bias"]
    # A layer that is made anew has the names that it had.
    assert value(names) == [[f"cells/{part}{number}" for number in ("", "_1") for part in parts]] * 3
    assert value(same) == [True, True]


TIED = """
K, L = keras.backend, keras.layers
class Back(L.Layer):
    "From the codes to the inputs, by the kernel of another layer."
    def __init__(self, other, **rest):
        super().__init__(**rest)
        self.other = other
    def build(self, shape):
        self.kernel = self.other.kernel
        self._trainable_weights.append(self.kernel)
        super().build(shape)
    def call(self, x):
        return K.dot(x, K.transpose(self.kernel))
    def compute_output_shape(self, shape):
        return (shape[0], K.int_shape(self.kernel)[0])
code = L.Dense(2, use_bias=False, input_shape=(6,))
tied = keras.Sequential([code, Back(code)])
tied.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"])
found = []
for name in NAMES:
    kernelk.set_backend(name)
    w = K.get_value(code.kernel)
    off = x @ w @ w.T - x
    slope = 2 / off.size * (x.T @ off + off.T @ x) @ w
    numbers = tied.train_on_batch(x, x)
    gap = abs(K.get_value(code.kernel) - (w - 0.5 * slope)).max()
    history = tied.fit(x, x, verbose=0).history
    numbers += [history[key][0] for key in ("loss", "mae")] + [K.get_value(tied.optimizer.lr)]
    numbers += [K.eval(K.sum(code.kernel)), K.function([], [K.sum(code.kernel)])([])[0]]
    found.append([name, sorted({type(one).__name__ for one in numbers}), float(gap)])
import json
print(json.dumps(found))
"""


def test_a_weight_that_two_layers_share_is_updated_once_and_numbers_are_scalars() -> None:
    for name in ENGINES:
        require_installed(name)
    *_, result = cells(DATA, f"NAMES = {list(ENGINES)!r}\n{TIED}")
    found = value(result)
    assert [name for name, _, _ in found] == list(ENGINES)
    for _, types, gap in found:
        assert types == ["float32"]
        assert gap < 1e-6


def test_a_model_is_called_on_any_tensor() -> None:
    found = cells(
        DATA + "\nL, K = keras.layers, keras.backend\ninner = keras.Sequential([L.Dense(2, input_shape=(6,))])\n"
        "wanted = inner.predict(x)",
        "timed = L.TimeDistributed(inner)\nmodel = keras.Sequential([L.Reshape((1, 6), input_shape=(6,)), timed])\n"
        "outputs = [K.eval(inner(K.variable(x))), K.eval(inner(K.constant(x))), model.predict(x)[:, 0],"
        " keras.Sequential([L.Lambda(lambda t: inner(t * 1.0), input_shape=(6,))]).predict(x)]\n"
        "print(all(np.allclose(y, wanted, atol=1e-6) for y in outputs), K.int_shape(inner(K.placeholder((None, 6)))))",
        "from keras.backend.tensorflow_backend import set_session\ntry:\n    set_session(None)\n"
        "except AttributeError as error:\n    print(error)",
        "names = []\nfor _ in range(2):\n    K.clear_session()\n    names.append(keras.Sequential([L.Dense(2,"
        " input_shape=(3,))]).layers[0].name)\nnames",
    )
    assert found[1]["out"].strip() == "True (None, 2)"
    assert "there are no TensorFlow sessions" in found[2]["out"]
    assert found[3]["value"] == "['dense_1', 'dense_1']"


def test_a_metrics_value_is_that_after_its_update() -> None:
    found = cells("from keras import backend as K\nfloat(K.eval(keras.metrics.Mean()([1.0, 3.0])))")
    assert found[0]["value"] == "2.0"


def test_the_installed_keras_comes_back() -> None:
    require_installed("tensorflow")  # with which Keras 3 comes
    undone, ended = cells(
        "%kbackend --keras3-back\nimport keras, sys\n[keras.__version__[0], kernelk.enable_keras2.__module__]",
        "for name in [n for n in sys.modules if n.partition('.')[0] == 'keras']:\n    del sys.modules[name]\n"
        "%kbackend --keras2\nimport keras\nprint(keras.__version__)\n%unload_ext kernelk\nimport keras\n"
        "print(keras.__version__[0])",
    )
    assert undone["value"] == "['3', 'kernelk.keras2']"
    assert ended["out"].split()[-2:] == ["2.3.1", "3"]


def test_an_engine_and_keras_2_in_one_line() -> None:
    refused, untouched, both, listed = run_cells(
        [
            "%load_ext kernelk\nimport kernelk\nkernelk.set_backend('numpy')\n%kbackend nonsense --keras2",
            "import sys\n'kernelk.keras2' in sys.modules",
            "%kbackend --keras2 numpy --worker\nimport keras\nprint(keras.__version__, kernelk.backend.backend())",
            "%kbackend --list --keras2",
        ],
        KERNELK_QUIET="1",
    )
    assert refused["error"] == "UnknownBackendError"
    assert untouched["value"] == "False"
    assert both["out"].splitlines()[-1] == "2.3.1 numpy"
    assert listed["error"] == "ArgumentError"


def test_another_keras_that_was_imported_first_is_left_alone() -> None:
    require_installed("tensorflow")  # with which Keras 3 comes
    results = run_cells(
        ["import keras\nfirst = keras", "%load_ext kernelk\n%kbackend --keras2", "import keras\nkeras is first"],
        KERNELK_QUIET="1",
    )
    assert results[1]["error"] == "ArgumentError"
    line = results[1]["out"] + results[1]["err"]
    assert "keras 3" in line
    assert "next: restart the kernel, and run %kbackend --keras2 before anything imports Keras or tf.keras" in line
    assert results[2]["value"] == "True"


def test_what_asks_for_keras_3_afterwards_is_told_in_one_line() -> None:
    require_installed("tensorflow")
    asked = [
        "import keras.src.ops",
        "from tensorflow.keras.layers import Dense",
        "import tensorflow\ntensorflow.keras.layers",
    ]
    *refused, after = run_cells([BEGIN, *asked, "float(keras.backend.eval(keras.backend.constant(2.0)))"])
    for result, name in zip(refused[1:], ("keras.src", "tensorflow.keras", "keras.api")):
        assert result["error"] == "ModuleNotFoundError"
        assert f"has no module '{name}'; next: restart the kernel" in result["out"] + result["err"]
    assert after["value"] == "2.0"


def test_what_needs_tensorflow_itself_is_told_in_one_line() -> None:
    results = run_cells(
        [
            BEGIN,
            "keras.metrics.MeanIoU(3)",
            "keras.callbacks.TensorBoard('logs')",
        ]
    )
    assert results[1]["error"] is not None
    assert "ensor" in results[1]["out"] + results[1]["err"]
    assert results[2]["error"] == "AbsentError"
    assert "next: leave the callback out; %kpanel draws the loss" in results[2]["out"] + results[2]["err"]


def test_layers_of_cudnn_are_those_without_it() -> None:
    (found,) = cells(
        DATA.replace("rand(60, 6)", "rand(60, 5, 6)").replace("x.sum(1)", "x.sum((1, 2))")
        + """
import json
L, load = keras.layers, keras.engine.saving.preprocess_weights_for_loading
def both(cudnn, plain):
    first = keras.Sequential([cudnn])
    # A bias of zeros would show nothing.
    first.set_weights([np.random.RandomState(i).normal(size=w.shape) for i, w in enumerate(first.get_weights())])
    second = keras.Sequential([plain])
    second.set_weights(load(plain, first.get_weights()))
    return float(np.abs(first.predict(x) - second.predict(x)).max())
print(json.dumps([
    both(L.CuDNNLSTM(4, input_shape=(5, 6)), L.LSTM(4, recurrent_activation="sigmoid", input_shape=(5, 6))),
    both(L.CuDNNLSTM(4, go_backwards=True, return_sequences=True, input_shape=(None, 6)),
        L.LSTM(4, recurrent_activation="sigmoid", go_backwards=True, return_sequences=True, input_shape=(None, 6))),
    both(L.CuDNNGRU(4, input_shape=(5, 6)),
        L.GRU(4, recurrent_activation="sigmoid", reset_after=True, input_shape=(5, 6)))]))"""
    )
    assert max(value(found)) < 1e-5


def test_top_k_of_metrics_and_a_model_that_is_fed_tensors() -> None:
    top, fed = cells(
        "from keras import backend as K\nm = keras.metrics.Precision(top_k=2)\n"
        "float(K.eval(m(np.array([[0, 1, 1, 0, 1]]), np.array([[0.1, 0.4, 0.4, 0.4, 0.3]]))))",
        "model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])\nmodel.compile('sgd', 'mse')\n"
        "model.set_weights([np.ones((3, 2)), np.zeros(2)])\n"
        "[float(model.train_on_batch(K.ones((4, 3)), K.zeros((4, 2)))), model.predict(K.zeros((4, 3)), steps=1).shape]",
    )
    # Of equals the first ones are taken.
    assert top["value"] == "1.0"
    assert fed["value"] == "[9.0, (4, 2)]"


def test_a_model_that_is_certain_and_wrong_learns_as_by_keras_on_tensorflow() -> None:
    (found,) = cells(
        "import json\nL = keras.layers\n"
        "def step(units, activation, loss, y):\n"
        "    model = keras.Sequential([L.Dense(units, activation=activation, input_shape=(2,))])\n"
        "    model.compile('sgd', loss)\n"
        "    model.set_weights([np.eye(2)[:, :units], np.zeros(units)])\n"
        "    before = float(model.train_on_batch(np.array([[20., 0.], [-30., 5.]]), y))\n"
        "    return [before, *model.get_weights()[0].ravel().tolist()]\n"
        "print(json.dumps([step(1, 'sigmoid', 'binary_crossentropy', np.array([[0.], [1.]])),\n"
        "    step(2, 'softmax', 'categorical_crossentropy', np.array([[0., 1.], [1., 0.]])),\n"
        "    step(2, 'softmax', 'sparse_categorical_crossentropy', np.array([1, 0]))]))"
    )
    # The loss and the weights, as Keras 2.3.1 on TensorFlow 1.15.5 gives them.
    by_keras = [[25, 0.75, 0.025], [27.5, 0.75, 0.25, 0.025, 0.975], [27.5, 0.75, 0.25, 0.025, 0.975]]
    assert value(found) == [pytest.approx(row, rel=1e-6) for row in by_keras]


def test_a_weight_that_no_gradient_reaches_is_refused_as_by_keras_on_tensorflow() -> None:
    refused, trained, zeros = cells(
        "from keras import backend as K\nL = keras.layers\n"
        "def moved(function):\n"
        "    model = keras.Sequential([L.Dense(2, input_shape=(3,)), L.Lambda(function)])\n"
        "    model.compile('sgd', 'mse')\n"
        "    before = model.get_weights()[0]\n"
        "    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))\n"
        "    return bool((model.get_weights()[0] != before).any())\n"
        "try:\n    moved(K.round)\nexcept ValueError as error:\n    print(error)",
        "moved(lambda x: K.in_train_phase(x, K.round(x)))",
        "w = K.variable(np.ones((2, 3)))\nK.eval(K.gradients(K.sum(K.round(w)), [w])[0]).tolist()",
    )
    assert "An operation has `None` for gradient" in refused["out"]
    assert trained["value"] == "True"
    assert zeros["value"] == "[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]"


def test_data_of_sentences_of_different_lengths(tmp_path: Path) -> None:
    path = tmp_path / "imdb.npz"
    (found,) = cells(
        "sentences = np.empty(4, dtype=object)\nsentences[:] = [[1, 5], [1, 6, 7], [1], [1, 8, 9, 5]]\n"
        f"np.savez({str(path)!r}, x_train=sentences, y_train=np.arange(4), x_test=sentences, y_test=np.arange(4))\n"
        f"keras.datasets.imdb.get_file = lambda *names, **options: {str(path)!r}\n"
        "(xs, ys), _ = keras.datasets.imdb.load_data()\n[xs.shape, sorted(map(len, xs)), len(ys)]"
    )
    assert found["value"] == "[(4,), [2, 3, 4, 5], 4]"


def test_spawned_processes_of_a_sequence_find_keras_2(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(
        "import numpy as np\nfrom keras.utils import Sequence\n"
        "class Counting(Sequence):\n    def __len__(self):\n        return 4\n"
        "    def __getitem__(self, i):\n        return np.full((2, 3), i)\n"
    )
    (found,) = cells(
        f"import sys, multiprocessing\nsys.path.insert(0, {str(tmp_path)!r})\nimport counting\n"
        "model = keras.Sequential([keras.layers.Lambda(lambda t: t * 2.0, input_shape=(3,))])\n"
        "multiprocessing.set_start_method('spawn', force=True)\n"
        "model.predict_generator(counting.Counting(), workers=2, use_multiprocessing=True)[:, 0].tolist()"
    )
    assert found["value"] == "[0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0]"


def test_a_package_that_keras_2_needs_and_is_missing(tmp_path: Path) -> None:
    results = run_cells(
        [
            "import importlib.util as u\nfind = u.find_spec\n"
            "u.find_spec = lambda name, *rest: None if name == 'h5py' else find(name, *rest)",
            "%load_ext kernelk\n%kbackend --keras2",
        ]
    )
    assert results[1]["error"] == "BackendNotInstalledError"
    assert "Keras 2.3.1 needs h5py; next: %pip install 'kernelk[keras2]'" in results[1]["out"] + results[1]["err"]


def test_a_changed_package_is_refused_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_ENVS", str(tmp_path / "envs"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    # As in a notebook: what pip says is read all the same.
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines: list[str] = []
    folder = keras2.install(lines.append)
    assert folder.parent == tmp_path / "envs"
    assert any("ready: Keras 2.3.1" in line for line in lines)
    lock = tmp_path / "keras2.txt"
    lock.write_text(keras2.REQUIREMENTS.read_text().replace("sha256:d08a", "sha256:d08b"))
    monkeypatch.setattr(keras2, "REQUIREMENTS", lock)
    with pytest.raises(InstallError, match=r"could not be installed: .*SHA-256.*next: .*kernelk install keras2"):
        keras2.install(lines.append)
    left = [name for name in os.listdir(tmp_path / "envs") if (tmp_path / "envs" / name).is_dir()]
    assert left == [folder.name]
    assert keras2.removed() == [folder]
    assert keras2.found() is None


def test_keras_takes_a_median_of_its_batches_times_as_numpy_has_it() -> None:
    numpy = old_modules.stand_in("numpy")
    for times in ([0.25], [3.0, 1.0, 2.0], [0.1, 0.4, 0.2, 0.3]):
        assert numpy.median(collections.deque(times, maxlen=10)) == np.median(times)
    assert numpy.median(np.ones((2, 3)), axis=1).tolist() == [1, 1]
