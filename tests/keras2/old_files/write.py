"""Run by an old Python with Keras 2.3.1 on its own backend: writes models of each kind, with what they compute.

Each is trained a little, saved, and trained further: NAME.h5 is the file, NAME.npz has the data, the predictions of the
saved model, the losses of the next steps and the predictions after them. Arguments: FOLDER [NAMEs].
"""

import sys

import numpy as np
from keras import backend as K
from keras import layers as L
from keras import models as M
from keras import optimizers as O

STEPS = 3
KINDS = {}


def kind(function):
    """Enters a function that makes a model in `KINDS`."""
    KINDS[function.__name__] = function
    return function


def sequential(*layers):
    return M.Sequential(list(layers))


@kind
def dense():
    return sequential(L.Dense(5, activation="tanh", input_shape=(4,)), L.Dense(3, activation="softmax"))


@kind
def convolutions():
    return sequential(
        L.Conv2D(3, (3, 5), padding="same", activation="relu", input_shape=(6, 5, 2)),
        L.SeparableConv2D(3, 2, depth_multiplier=2),
        L.DepthwiseConv2D(2, depth_multiplier=2),
        L.Conv2DTranspose(2, (3, 2), strides=2),
        L.Conv2D(2, 2, dilation_rate=2),
    )


@kind
def convolutions_of_one_and_three_axes():
    volume = L.Input((4, 4, 4, 2))
    line = L.Input((7, 3))
    y = L.GlobalAveragePooling3D()(L.Conv3D(3, (2, 3, 2))(volume))
    z = L.Flatten()(L.SeparableConv1D(2, 3)(L.Conv1D(3, 2, padding="causal", dilation_rate=2)(line)))
    return M.Model([volume, line], L.Dense(2)(L.concatenate([y, z])))


@kind
def pooling():
    image = L.Input((6, 6, 2))
    parts = [L.MaxPooling2D(3, strides=2, padding="same"), L.AveragePooling2D((2, 3), padding="same", strides=2)]
    parts = [part(image) for part in parts]
    line = L.Reshape((9, 4))(L.concatenate(parts))
    line = L.concatenate([L.MaxPooling1D(2)(line), L.AveragePooling1D(2)(line)])
    return M.Model(image, L.Dense(2)(L.concatenate([L.GlobalMaxPooling1D()(line), L.Flatten()(line)])))


@kind
def locally_connected():
    return sequential(
        L.LocallyConnected2D(2, 2, input_shape=(4, 4, 2)), L.Reshape((9, 2)), L.LocallyConnected1D(2, 3), L.Flatten()
    )


@kind
def embedding_lstm():
    return sequential(L.Embedding(7, 4, mask_zero=True), L.LSTM(3), L.Dense(2))


@kind
def stateful_lstm():
    return sequential(L.LSTM(3, stateful=True, batch_input_shape=(4, 3, 2)), L.Dense(2))


@kind
def lstm_hard_sigmoid():
    return sequential(L.LSTM(3, recurrent_activation="hard_sigmoid", implementation=1, input_shape=(4, 2)))


@kind
def gru_reset_after():
    return sequential(L.GRU(3, reset_after=True, recurrent_activation="sigmoid", input_shape=(4, 2)))


@kind
def gru():
    return sequential(L.GRU(3, return_sequences=True, input_shape=(4, 2)), L.SimpleRNN(2, go_backwards=True))


@kind
def bidirectional():
    return sequential(
        L.Bidirectional(L.LSTM(2, return_sequences=True), merge_mode="concat", input_shape=(4, 2)),
        L.Bidirectional(L.GRU(2), merge_mode="sum"),
    )


@kind
def time_distributed():
    return sequential(
        L.TimeDistributed(L.Conv2D(2, 2), input_shape=(3, 4, 4, 1)),
        L.TimeDistributed(L.Flatten()),
        L.TimeDistributed(L.Dense(2)),
    )


@kind
def conv_lstm():
    return sequential(L.ConvLSTM2D(2, 3, padding="same", input_shape=(3, 4, 4, 1)), L.Flatten())


@kind
def stacked_cells():
    return sequential(L.RNN([L.LSTMCell(3), L.GRUCell(2)], input_shape=(4, 2)))


@kind
def batch_normalization():
    return sequential(
        L.Conv2D(3, 2, use_bias=False, input_shape=(4, 4, 2)),
        L.BatchNormalization(momentum=0.7),
        L.Flatten(),
        L.BatchNormalization(scale=False),
        L.Dense(2),
    )


@kind
def nested():
    inner = sequential(L.Dense(4, activation="relu", input_shape=(3,)), L.Dense(3))
    one, two = L.Input((3,)), L.Input((3,))
    both = M.Model([one, two], L.Dense(2)(L.add([inner(one), inner(two)])), name="both")
    x = L.Input((3,))
    return M.Model(x, L.Dense(2)(both([x, inner(x)])))


@kind
def nested_frozen():
    inner = sequential(L.Dense(3, input_shape=(3,)), L.Dense(3, activation="tanh"))
    inner.layers[0].trainable = False
    x = L.Input((3,))
    return M.Model(x, L.Dense(2)(inner(x)))


@kind
def masking():
    x = L.Input((5, 3))
    y = L.LSTM(3, return_sequences=True)(L.Masking(0.0)(x))
    return M.Model(x, L.TimeDistributed(L.Dense(2))(y))


@kind
def merging():
    one, two = L.Input((3, 4)), L.Input((4, 2))
    y = L.Flatten()(L.Dot((2, 1))([one, two]))
    z = L.Dot(-1, normalize=True)([L.Flatten()(one), L.Dense(12)(L.Flatten()(two))])
    w = L.Permute((2, 1))(one)
    parts = [L.maximum([w, L.Dense(3)(two)]), L.multiply([w, w]), L.subtract([w, L.average([w, w])])]
    return M.Model([one, two], L.Dense(2)(L.concatenate([y, z] + [L.Flatten()(part) for part in parts])))


@kind
def upsampling():
    return sequential(
        L.Conv2D(2, 2, input_shape=(3, 4, 2)),
        L.UpSampling2D((2, 3), interpolation="bilinear"),
        L.UpSampling2D(2, interpolation="nearest"),
        L.ZeroPadding2D(((1, 0), (0, 2))),
        L.Cropping2D(((2, 1), (1, 1))),
        L.Conv2D(2, 3),
    )


@kind
def advanced_activations():
    return sequential(
        L.Conv2D(4, 2, input_shape=(4, 4, 2)),
        L.PReLU(shared_axes=[1, 2]),
        L.LeakyReLU(0.2),
        L.ELU(0.7),
        L.ThresholdedReLU(0.01),
        L.ReLU(6.0, negative_slope=0.1),
        L.Softmax(axis=1),
        L.Flatten(),
        L.Dense(3, activation="selu"),
        L.Dense(3, activation="softplus"),
        L.Dense(3, activation="hard_sigmoid"),
    )


@kind
def regularized():
    return sequential(
        L.Dense(4, kernel_regularizer="l2", bias_constraint="nonneg", activity_regularizer="l1", input_shape=(3,)),
        L.ActivityRegularization(l2=0.1),
        L.Dense(2, kernel_constraint="maxnorm"),
    )


@kind
def several_outputs():
    one, two = L.Input((3,), name="one"), L.Input((4,), name="two")
    shared = L.Dense(3, activation="relu")
    y = L.concatenate([shared(one), shared(L.Dense(3)(two))])
    model = M.Model([one, two], [L.Dense(2, name="first")(y), L.Dense(1, activation="sigmoid", name="second")(y)])
    losses = {"first": "mse", "second": "binary_crossentropy"}
    model.compile("rmsprop", losses, metrics={"second": "accuracy"}, loss_weights={"first": 1.0, "second": 0.3})
    return model


def compiled(optimizer):
    model = sequential(L.Dense(4, activation="tanh", input_shape=(3,)), L.Dense(2))
    model.compile(optimizer, "mse")
    return model


OPTIMIZERS = {
    "sgd": lambda: O.SGD(0.05, momentum=0.9, nesterov=True),
    "sgd_decay": lambda: O.SGD(0.05, decay=0.3),
    "rmsprop": lambda: O.RMSprop(0.01),
    "adagrad": lambda: O.Adagrad(0.05),
    "adadelta": lambda: O.Adadelta(),
    "adam": lambda: O.Adam(0.02, clipnorm=0.5),
    "adam_amsgrad": lambda: O.Adam(0.02, amsgrad=True),
    "adamax": lambda: O.Adamax(0.02),
    "nadam": lambda: O.Nadam(0.02),
}
for _name, _made in OPTIMIZERS.items():
    KINDS[_name] = lambda made=_made: compiled(made())
# Layers for a GPU alone: what is computed is that of the layers into whose weights Keras turns theirs.
TURNED = {
    "cudnn_lstm": ("CuDNNLSTM", lambda: L.LSTM(3, recurrent_activation="sigmoid", input_shape=(4, 2))),
    "cudnn_gru": (
        "CuDNNGRU",
        lambda: L.GRU(3, recurrent_activation="sigmoid", reset_after=True, input_shape=(4, 2)),
    ),
    "bidirectional_cudnn": (
        "CuDNNLSTM",
        lambda: L.Bidirectional(L.LSTM(3, recurrent_activation="sigmoid"), input_shape=(4, 2)),
    ),
}


def arrays(shapes, random, integers):
    """Input or target data; whole numbers for an embedding."""
    found = []
    for shape in shapes:
        size = [4 if length is None else length for length in shape]
        if integers:
            found.append(random.randint(0, 7, [4, 5]).astype("float32"))
        else:
            found.append(random.standard_normal(size).astype("float32"))
    return found


def as_list(x):
    return x if isinstance(x, list) else [x]


def write(name, folder):
    """Writes the files of one kind."""
    if hasattr(K, "clear_session"):
        K.clear_session()
    np.random.seed(sum(map(ord, name)))
    random = np.random.RandomState(1)
    path = folder + "/" + name
    if name in TURNED:
        layer, makes = TURNED[name]
        model = sequential(makes())
        fast = getattr(L, layer)
        # Never computed here, so that it has its variables where it has no kernel.
        fast._process_batch = lambda self, inputs, initial_state: (initial_state[0], list(initial_state))
        if name.startswith("bidirectional"):
            source = sequential(L.Bidirectional(fast(3), input_shape=(4, 2)))
        else:
            source = sequential(fast(3, input_shape=(4, 2)))
        for w in source.weights:
            K.set_value(w, random.standard_normal(K.int_shape(w)).astype("float32"))
        source.save_weights(path + ".h5")
        model.load_weights(path + ".h5")
        x = arrays([model.input_shape], random, False)
        np.savez(path + ".npz", json=model.to_json(), x0=x[0], before0=model.predict(x[0]))
        return
    model = KINDS[name]()
    if not model.optimizer:
        model.compile(O.SGD(0.02), "mse")
    for w in model.trainable_weights:
        # Zeros and ones, with which many begin, would hide that two are exchanged.
        K.set_value(w, K.get_value(w) + 0.1 * random.standard_normal(K.int_shape(w)).astype("float32"))
    x = arrays(as_list(model.input_shape), random, name == "embedding_lstm")
    if name == "masking":
        x[0][:2, 3:] = 0.0
    y = [np.abs(a) % 1 for a in arrays(as_list(model.output_shape), random, False)]
    for _ in range(STEPS):
        model.train_on_batch(x, y)
    model.save(path + ".h5")
    # What Keras makes of its own file counts: where it exchanges an inner model's weights, or loses their momentum.
    model = M.load_model(path + ".h5")
    found = {f"x{i}": a for i, a in enumerate(x)}
    found.update({f"y{i}": a for i, a in enumerate(y)})
    found.update({f"before{i}": a for i, a in enumerate(as_list(model.predict(x)))})
    if name == "stateful_lstm":
        found["again0"] = model.predict(x)
        model.reset_states()
    found["losses"] = np.array([as_list(model.train_on_batch(x, y))[0] for _ in range(STEPS)])
    model.reset_states()
    found.update({f"after{i}": a for i, a in enumerate(as_list(model.predict(x)))})
    np.savez(path + ".npz", **found)


if __name__ == "__main__":
    # There are no layers of CuDNN on Theano; its pooling and its bilinear enlarging are others.
    elsewhere = set() if K.backend() == "tensorflow" else {"pooling", "upsampling"}.union(TURNED)
    names = sys.argv[2:] or [name for name in list(KINDS) + list(TURNED) if name not in elsewhere]
    for name in names:
        print(name, flush=True)
        write(name, sys.argv[1])
