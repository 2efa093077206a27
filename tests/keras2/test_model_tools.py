"""What kernelk's tools make of a Keras 2 model: layers in graphs, in times and in differences; its names in lists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from helpers.engines import activate
from helpers.notebooks import run_cells

from kernelk.environments import keras2

BEGIN = """%load_ext kernelk
import json
import kernelk, numpy as np
kernelk.set_backend("numpy")
%kbackend --keras2
import keras
from keras.layers import *
np.random.seed(0)
model = keras.Sequential([
    Conv2D(3, 3, activation="relu", input_shape=(6, 6, 1)), MaxPooling2D(), Dropout(0.3), Flatten(),
    Dense(4, name="first"), BatchNormalization(), Dense(2, activation="softmax", name="last")])
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
x, y = np.random.rand(8, 6, 6, 1), np.eye(2)[np.arange(8) % 2]
inner = keras.Sequential([Dense(4, input_shape=(6,), name="wide"), Dense(2, name="narrow")], name="inner")
words = keras.Input((5,), name="words")
nested = keras.Model(words, inner(Bidirectional(LSTM(3))(Embedding(20, 4)(words))), name="nested")"""

LAYERS = ["conv2d_1", "max_pooling2d_1", "dropout_1", "flatten_1", "first", "batch_normalization_1", "last"]


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    """Keras 2.3.1 in kernelk's folder."""
    keras2.install(lambda text: None)


def cells(*code: str) -> list[dict[str, Any]]:
    """What the cells after the beginning showed; a cell that raises has its error in it."""
    results = run_cells([BEGIN, *code], KERNELK_QUIET="1")
    assert results[0]["error"] is None, results[0]
    return results[1:]


def value(result: dict[str, Any]) -> Any:
    """The JSON that a cell has printed last."""
    assert result["error"] is None, result
    return json.loads(result["out"].strip().splitlines()[-1])


def test_layers_are_groups_of_the_graph() -> None:
    titles = "lambda drawing: [box.name for box in drawing.graph.boxes.values() if box.kind == 'group']"
    found = cells(
        f"titles = {titles}\n"
        "def told(*drawings):\n    print(json.dumps([[titles(d), d.title, len(d.graph.boxes)] for d in drawings]))",
        "told(kernelk.draw(model), kernelk.draw(model, depth=1), kernelk.draw(nested), kernelk.draw(nested, depth=1),"
        " kernelk.draw(model.output), kernelk.draw(model.layers[4].output), kernelk.draw(model, depth='all'))",
        "d = kernelk.draw(model, opened=['scope:first'])\n"
        "print(json.dumps([titles(d), [b.op for b in d.graph.boxes.values() if b.kind == 'op']]))",
        "model.train_on_batch(x, y)\ntold(kernelk.draw(model.train_function))",
        "drawn = %kgraph model\nprint(json.dumps(drawn.as_dict()['nodes'][-1]['members'][:1]), drawn.svg()[:4])",
        "from kernelk import backend as K\nwith K.name_scope('a'):\n    z = K.exp(K.placeholder((2,)))\n"
        "print(json.dumps(titles(kernelk.draw(z))))",
    )
    whole, opened, outer, inner, output, part, everything = value(found[1])
    assert whole[0] == LAYERS
    assert whole[1].startswith("graph of model 'sequential_1': ")
    # And the placeholder.
    assert whole[2] == len(LAYERS) + 1
    assert opened[0] == []
    assert outer[0] == ["embedding_1", "bidirectional_1", "inner"]
    assert {"inner/wide", "inner/narrow"} <= set(inner[0])
    assert output[0] == LAYERS
    assert part[0] == LAYERS[:5]
    assert everything[0] == []
    names, ops = value(found[2])
    assert names == [name for name in LAYERS if name != "first"]
    assert ops == ["matmul", "reshape", "add"]
    ((names, title, _),) = value(found[3])
    assert {*LAYERS, "loss", "metrics", "updates"} <= set(names)
    assert {"gradient of last", "gradient of conv2d_1", "update of batch_normalization_1"} <= set(names)
    assert title.startswith("graph of K.function 'train_function'")
    assert found[4]["error"] is None
    assert found[4]["out"].endswith(" <svg\n")
    # A scope of one's own with one op in it is no layer.
    assert value(found[5]) == []


def test_times_by_layer() -> None:
    activate("torch")
    found = cells(
        "def told(times):\n    print(json.dumps([[r['layer'], r['engine'], r['forward'] > 0, r['gradient'] > 0]"
        " for r in times.records()]))\n"
        "small = keras.Sequential([Dense(3, input_shape=(4,), name='one'), Dense(2, name='two')])\n"
        "small.compile('sgd', 'mse')\nrows, goals = np.ones((2, 4)), np.ones((2, 2))",
        "model.predict(x)\nr = %kprofile --budget 0.05 model\ntold(r.by_layer)",
        "print(json.dumps([sum(l.total() for l in r.by_layer.layers), r.alone, sum(l.count for l in r.by_layer.layers),"
        " sum(op.count for op in r.ops), r.whole.label, repr(r).count('time by layer')]))",
        "r = %kprofile --budget 0.05 small.train_on_batch(rows, goals)\nprint(r.whole.label)\ntold(r.by_layer)",
        "r = %kprofile --budget 0.05 small.fit(rows, goals, epochs=2, verbose=0)\ntold(r.by_layer)",
        "%%kcompare numpy torch --budget 0.2 --per-op\nsmall.predict(rows)",
        "told(_.per_op.by_layer)\nprint(_.per_op.by_layer)",
        "fresh = keras.Sequential([Dense(2, input_shape=(3,))])\n%kprofile fresh",
        "from kernelk import backend as K\nz = K.placeholder((2,))\n"
        "r = kernelk.profile(K.exp(z), feeds={z: [1, 2]}, budget=0.05)\nprint(r.by_layer)",
        "with K.name_scope('a'):\n    u = K.exp(z)\nr = kernelk.profile(u * 2, feeds={z: [1, 2]}, budget=0.05)\n"
        "print(r.by_layer)",
        "r = kernelk.compare(lambda: small.predict(rows), 'numpy', 'torch', budget=0.1)\n"
        "s = kernelk.compare(lambda n: small.predict(rows[:n]), 'numpy', sweep={'n': [1]}, budget=0.1)\n"
        "t = kernelk.compare(lambda: K.eval(K.exp(K.zeros((2,)))), 'numpy', 'torch', budget=0.1)\n"
        "print(json.dumps([r.notes, s.points[0][1].notes, t.notes, _7.notes]))",
    )
    computed = [name for name in LAYERS if name != "dropout_1"]  # which does nothing in testing
    assert value(found[1]) == [[name, "numpy", True, False] for name in computed]
    parts, alone, counted, ops, label, tables = value(found[2])
    assert parts == pytest.approx(alone)
    assert (counted, label, tables) == (ops, "model 'sequential_1'", 1)
    assert found[3]["out"].splitlines()[0] == "cell 5, line 1: small.train_on_batch(rows, goals)"
    for trained in (value(found[3]), value(found[4])):
        assert [row[0] for row in trained] == ["one", "two", "loss", "training"]
        assert [row[3] for row in trained[:3]] == [True] * 3
    assert found[5]["error"] is None
    rows = value({**found[6], "out": found[6]["out"].splitlines()[0]})
    assert [row[:2] for row in rows] == [[name, engine] for name in ("one", "two") for engine in ("numpy", "torch")]
    assert "time by layer" in found[6]["out"]
    assert found[7]["error"] == "FeedError"
    assert "next: call the model's predict or fit first, or give feeds" in found[7]["out"]
    assert found[8]["out"] == "None\n"
    assert "time by name scope" in found[9]["out"]
    assert "outside of name scopes" in found[9]["out"]
    line = "a model's layers aren't timed separately; next: per_op=True"
    assert [line in notes for notes in value(found[10])] == [True, False, False, False]


def test_the_layer_where_engines_differ_first() -> None:
    activate("torch")
    found = cells(
        "model.predict(x)\nr = %kdiff model numpy torch\n"
        "print(json.dumps([r.agrees, [row.layer for row in r.rows if row.op != 'variable']]))",
        "r = %kdiff model numpy torch --tolerance 0\nprint(r.findings()[0])",
        # A wrong value in one layer.
        "from kernelk import backend as K\nfrom kernelk.session import current\n"
        "with_nan = keras.Sequential([Dense(3, input_shape=(2,), name='good'),"
        " Lambda(lambda t: K.log(t * 0 - 1), name='bad'), Dense(1)])\n"
        "with_nan.predict(np.ones((2, 2)))\nr = %kdiff with_nan numpy torch\nprint(r.findings())",
        "unbuilt = keras.Sequential([Dense(3)])\n%kdiff unbuilt numpy torch",
        "keras.backend.clear_session()\n%kgraph model",
    )
    agrees, layers = value(found[0])
    assert agrees
    assert [name for name in dict.fromkeys(layers) if name] == [name for name in LAYERS if name != "dropout_1"]
    assert re.match(r"numpy and torch differ first at \w+ '(\w+)/\w+' of layer '\1' \(", found[1]["out"])
    assert "of layer 'bad' (" in found[2]["out"]
    assert "NaN on numpy and torch is produced by log 'bad/" in found[2]["out"]
    assert found[3]["error"] == "ArgumentError"
    assert "model 'sequential_3' has no graph yet" in found[3]["out"]
    assert len(found[3]["out"].splitlines()) == 1
    assert found[4]["error"] == "StaleTensorError"


def test_a_models_tensors_have_names() -> None:
    (listed,) = cells(
        "model.train_on_batch(x, y)\nmore = keras.Input((3,), name='more')\n"
        "both = keras.Model([words, more], [nested(words), more], name='both')\n"
        "rows = kernelk.tensors(namespace={'model': model, 'two': both, 'unbuilt': keras.Sequential()}).rows\n"
        "print(json.dumps([{row.name: list(row.names) for row in rows}, str(model.layers[3].output_shape)]))"
    )
    names, flattened = value(listed)
    assert flattened == "(None, 12)"
    assert names["conv2d_1/kernel"] == names["last/bias"] == []
    assert names["conv2d_1_input"] == ["model.input"]
    assert names["words"] == ["two.inputs[0]"]
    assert names["more"] == ["two.inputs[1]", "two.outputs[1]"]
    assert names["train_function"] == ["model.train_function"]
    assert ["model.output"] in names.values()
    assert ["two.outputs[0]"] in names.values()


def test_the_panel_shows_layers_as_groups_weights_by_name_and_the_loss() -> None:
    (found,) = cells(
        "losses = [float(model.train_on_batch(x, y)[0]) for _ in range(3)]\nmodel.evaluate(x, y, verbose=0)\n"
        "kernelk.profile(model, budget=0.02)\nsent = []\n"
        "panel = kernelk.panel({'model': model})\npanel.send = sent.append\n"
        "def ask(**message):\n    sent.clear()\n"
        "    panel._received(None, {'view': 'v', 'request': 'q', **message}, None)\n"
        "    return {m['kind']: m for m in sent}\n"
        "told = ask(do='hello')\nrows = told['rows']['rows']\n"
        "key = next(row['key'] for row in rows if row['names'] == ['model.output'])\n"
        "groups = [n['label'] for n in ask(do='graph', key=key)['graph']['graph']['nodes'] if n['kind'] == 'group']\n"
        "inside = ask(do='graph', key=key, opened=['scope:first'])['graph']['graph']['nodes']\n"
        "print(json.dumps([groups, [n['label'] for n in inside if n['scope'] == 'first'],"
        " [row['name'] for row in rows if row['kind'] == 'variable' and row['op'] == 'variable'],"
        " [bar['label'] for bar in told['timings']['profile_layers']['bars']], losses,"
        " [[next(row['names'] for row in rows if row['key'] == one['key']), [mean for _, _, mean, _ in one['points']]]"
        " for one in told['losses']['functions']]]))"
    )
    groups, inside, variables, bars, losses, curves = value(found)
    # The loss of testing is one, too, since the metrics are updated there.
    assert [names for names, _ in curves] == [["model.test_function"], ["model.train_function"]]
    assert curves[1][1] == losses
    assert groups == LAYERS
    assert {"first/kernel", "first/bias"} <= set(inside)
    assert {"conv2d_1/kernel", "first/kernel", "batch_normalization_1/moving_mean", "last/bias"} <= set(variables)
    assert set(bars) == set(LAYERS) - {"dropout_1"}
