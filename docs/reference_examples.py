"""One example for each name of K, for the reference: `make_reference.py` runs them and writes what they print."""

EXAMPLES = {
    # The graph and its calls
    "Tensor": """
x = K.constant([[1, 2], [3, 4]], name="x")
x
K.eval((x[:, ::-1] - 1) / 2)
""",
    "Function": """
x = K.placeholder((None, 2), name="x")
K.function([x], [K.sum(x)])
""",
    "function": """
x = K.placeholder((None, 2))
total = K.variable(0)
f = K.function([x], [K.sum(x)], updates=[K.update_add(total, K.sum(x))])
f([[[1, 2], [3, 4]]])
K.get_value(total)
""",
    "eval": "K.eval(K.constant([1, 2]) + 1)",
    "gradients": """
x = K.variable([1, 2, 3])
K.eval(K.gradients(K.sum(x * x), x)[0])
""",
    "stop_gradient": """
x = K.variable([1, 2, 3])
K.eval(K.gradients(K.sum(K.stop_gradient(x) * x), x)[0])
""",
    "placeholder": """
x = K.placeholder((None, 3), name="x")
x
(x * 2).eval({x: [[1, 2, 3]]})
""",
    "constant": "K.eval(K.constant(0.5, shape=(2, 2)))",
    "identity": "K.eval(K.identity(K.constant([1, 2])))",
    "is_tensor": 'K.is_tensor(K.constant(1)), K.is_tensor("x")',
    "is_variable": "K.is_variable(K.variable(1)), K.is_variable(K.constant(1))",
    "is_placeholder": "K.is_placeholder(K.placeholder((2,))), K.is_placeholder(K.constant(1))",
    "is_keras_tensor": "K.is_keras_tensor(K.constant(1))",
    "is_sparse": "K.is_sparse(K.constant(1))",
    "is_symbolic": "K.is_symbolic(K.constant(1))",
    "to_dense": "K.eval(K.to_dense(K.constant([1, 2])))",
    # State
    "variable": """
w = K.variable([[1, 2], [3, 4]], name="w")
w
K.get_value(w)
""",
    "zeros": "K.get_value(K.zeros((2, 2)))",
    "ones": 'K.get_value(K.ones((2,), dtype="int32"))',
    "eye": "K.get_value(K.eye(2))",
    "random_uniform_variable": 'K.random_uniform_variable((2, 3), low=-1, high=1, name="w")',
    "random_normal_variable": 'K.random_normal_variable((2, 3), mean=0, scale=0.05, name="w")',
    "get_value": "K.get_value(K.variable([1, 2]))",
    "set_value": """
w = K.variable([1, 2])
K.set_value(w, [3, 4])
K.get_value(w)
""",
    "batch_get_value": "K.batch_get_value([K.variable(1), K.variable(2)])",
    "batch_set_value": """
a, b = K.variable(1), K.variable(2)
K.batch_set_value([(a, 3), (b, 4)])
K.batch_get_value([a, b])
""",
    "update": """
w = K.variable([1, 2])
K.eval(K.update(w, w * 10))
K.get_value(w)
""",
    "update_add": """
w = K.variable([1, 2])
_ = K.eval(K.update_add(w, [10, 20]))
K.get_value(w)
""",
    "update_sub": """
w = K.variable([1, 2])
_ = K.eval(K.update_sub(w, [10, 20]))
K.get_value(w)
""",
    "moving_average_update": """
w = K.variable(1)
_ = K.eval(K.moving_average_update(w, 3, momentum=0.5))
K.get_value(w)
""",
    # Elementwise
    "abs": "K.eval(K.abs(K.constant([-1, 2])))",
    "sqrt": "K.eval(K.sqrt(K.constant([4, -4])))",
    "exp": "K.eval(K.exp(K.constant([0, -np.inf])))",
    "log": "K.eval(K.log(K.constant([1, 0, -1])))",
    "square": "K.eval(K.square(K.constant([2, 3])))",
    "pow": "K.eval(K.pow(K.constant([2, 3]), 2))",
    "sign": "K.eval(K.sign(K.constant([-2, 0, 5])))",
    "clip": "K.eval(K.clip(K.constant([-2, 0, 5]), -1, 1))",
    "round": "K.eval(K.round(K.constant([0.5, 1.5, 2.6])))",
    "sin": "K.eval(K.sin(K.constant([0])))",
    "cos": "K.eval(K.cos(K.constant([0])))",
    "cast": 'K.eval(K.cast(K.constant([1.7, -1.7]), "int32"))',
    "cast_to_floatx": "K.cast_to_floatx(np.array([1, 2]))",
    "equal": "K.eval(K.equal(K.constant([1, 2]), 2))",
    "not_equal": "K.eval(K.not_equal(K.constant([1, 2]), 2))",
    "greater": "K.eval(K.greater(K.constant([1, 2, 3]), 2))",
    "greater_equal": "K.eval(K.greater_equal(K.constant([1, 2, 3]), 2))",
    "less": "K.eval(K.less(K.constant([1, 2, 3]), 2))",
    "less_equal": "K.eval(K.less_equal(K.constant([1, 2, 3]), 2))",
    "maximum": "K.eval(K.maximum(K.constant([1, 2, 3]), 2))",
    "minimum": "K.eval(K.minimum(K.constant([1, 2, 3]), 2))",
    # Reductions
    "sum": "K.eval(K.sum(K.constant([[1, 2], [3, 4]]), axis=1))",
    "mean": "K.eval(K.mean(K.constant([[1, 2], [3, 4]]), axis=0, keepdims=True))",
    "max": "K.eval(K.max(K.constant([[1, 2], [3, 4]])))",
    "min": "K.eval(K.min(K.constant([[1, 2], [3, 4]]), axis=-1))",
    "prod": "K.eval(K.prod(K.constant([[1, 2], [3, 4]]), axis=1))",
    "var": "K.eval(K.var(K.constant([1, 3])))",
    "std": "K.eval(K.std(K.constant([1, 3])))",
    "logsumexp": "K.eval(K.logsumexp(K.constant([1000, -1000])))",
    "cumsum": "K.eval(K.cumsum(K.constant([1, 2, 3])))",
    "cumprod": "K.eval(K.cumprod(K.constant([1, 2, 3])))",
    "any": "K.eval(K.any(K.constant([[0, 1], [0, 0]]), axis=1))",
    "all": "K.eval(K.all(K.constant([[0, 1], [1, 1]]), axis=1))",
    "argmax": "K.eval(K.argmax(K.constant([[1, 3, 3], [2, 1, 0]])))",
    "argmin": "K.eval(K.argmin(K.constant([[1, 3, 3], [2, 1, 0]])))",
    # Shapes and arrangement
    "shape": """
x = K.placeholder((None, 3))
K.shape(x).eval({x: np.zeros((5, 3))})
""",
    "int_shape": "K.int_shape(K.placeholder((None, 3)))",
    "get_variable_shape": "K.get_variable_shape(K.variable([1, 2]))",
    "ndim": "K.ndim(K.placeholder((None, 3)))",
    "dtype": "K.dtype(K.constant([1, 2]))",
    "size": "K.eval(K.size(K.constant([[1, 2], [3, 4]])))",
    "count_params": "K.count_params(K.zeros((3, 4)))",
    "reshape": "K.eval(K.reshape(K.constant([1, 2, 3, 4]), (2, -1)))",
    "flatten": "K.eval(K.flatten(K.constant([[1, 2], [3, 4]])))",
    "batch_flatten": "K.batch_flatten(K.placeholder((None, 3, 4))).shape",
    "expand_dims": "K.expand_dims(K.placeholder((None, 3)), axis=1).shape",
    "squeeze": "K.squeeze(K.placeholder((None, 1, 3)), axis=1).shape",
    "permute_dimensions": "K.permute_dimensions(K.placeholder((None, 3, 4)), (0, 2, 1)).shape",
    "transpose": "K.eval(K.transpose(K.constant([[1, 2], [3, 4]])))",
    "concatenate": "K.eval(K.concatenate([K.constant([1, 2]), K.constant([3])]))",
    "stack": "K.eval(K.stack([K.constant([1, 2]), K.constant([3, 4])], axis=1))",
    "reverse": "K.eval(K.reverse(K.constant([[1, 2], [3, 4]]), axes=0))",
    "slice": "K.eval(K.slice(K.constant([1, 2, 3, 4]), [1], [2]))",
    "tile": "K.eval(K.tile(K.constant([1, 2]), 2))",
    "repeat": "K.repeat(K.placeholder((None, 3)), 4).shape",
    "repeat_elements": "K.eval(K.repeat_elements(K.constant([1, 2]), 2, axis=0))",
    "arange": "K.eval(K.arange(1, 7, 2))",
    "gather": "K.eval(K.gather(K.constant([[1, 2], [3, 4]]), [1, 1, 0]))",
    "one_hot": 'K.eval(K.one_hot(K.constant([0, 2, 9], dtype="int32"), 3))',
    "zeros_like": "K.eval(K.zeros_like(K.constant([1, 2])))",
    "ones_like": 'K.eval(K.ones_like(K.constant([1, 2]), dtype="int32"))',
    "temporal_padding": "K.eval(K.temporal_padding(K.constant([[[1], [2]]]), (1, 0)))[0, :, 0]",
    "spatial_2d_padding": "K.spatial_2d_padding(K.placeholder((None, 8, 8, 3)), ((1, 2), (0, 0))).shape",
    "spatial_3d_padding": "K.spatial_3d_padding(K.placeholder((None, 8, 8, 8, 3))).shape",
    "resize_images": 'K.resize_images(K.placeholder((None, 8, 8, 3)), 2, 3, "channels_last").shape',
    "resize_volumes": 'K.resize_volumes(K.placeholder((None, 4, 4, 4, 1)), 1, 2, 2, "channels_last").shape',
    "pattern_broadcast": "K.eval(K.pattern_broadcast(K.constant([1, 2]), (False,)))",
    # Products
    "dot": "K.eval(K.dot(K.constant([[1, 2]]), K.constant([[3], [4]])))",
    "batch_dot": "K.batch_dot(K.placeholder((None, 2, 5)), K.placeholder((None, 5, 3))).shape",
    # Networks
    "relu": "K.eval(K.relu(K.constant([-2, 0, 2]), alpha=0.5))",
    "elu": "K.eval(K.elu(K.constant([-np.inf, 0, 2])))",
    "softmax": "K.eval(K.softmax(K.constant([[1, 1], [1000, 0]])))",
    "softplus": "K.eval(K.softplus(K.constant([-1000, 1000])))",
    "softsign": "K.eval(K.softsign(K.constant([-1, 0, 3])))",
    "sigmoid": "K.eval(K.sigmoid(K.constant([-1000, 0, 1000])))",
    "hard_sigmoid": "K.eval(K.hard_sigmoid(K.constant([-3, 0, 3])))",
    "tanh": "K.eval(K.tanh(K.constant([-1000, 0, 1000])))",
    "dropout": """
x = K.ones((1000,))
kept = K.function([K.learning_phase()], [K.in_train_phase(K.dropout(x, 0.5), x)])
np.unique(kept([1])[0]), np.unique(kept([0])[0])
""",
    "switch": "K.eval(K.switch(K.constant([True, False], dtype=bool), K.constant([1, 2]), K.constant([3, 4])))",
    "in_train_phase": """
x = K.in_train_phase(K.constant(1), K.constant(2))
f = K.function([K.learning_phase()], [x])
f([1]), f([0])
""",
    "in_test_phase": "K.eval(K.in_test_phase(K.constant(1), K.constant(2)))",
    "learning_phase": "K.learning_phase()",
    "set_learning_phase": """
K.set_learning_phase(1)
K.eval(K.in_train_phase(K.constant(1), K.constant(2)))
""",
    "categorical_crossentropy": """
K.eval(K.categorical_crossentropy(K.constant([[0, 1]]), K.constant([[0.5, 0.5]]))).round(3)
""",
    "sparse_categorical_crossentropy": """
labels = K.constant([1], dtype="int32")
K.eval(K.sparse_categorical_crossentropy(labels, K.constant([[0.5, 0.5]]))).round(3)
""",
    "binary_crossentropy": "K.eval(K.binary_crossentropy(K.constant([1]), K.constant([0.5]))).round(3)",
    "in_top_k": """
scores = K.constant([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
K.eval(K.in_top_k(scores, K.constant([2, 2], dtype="int32"), k=2))
""",
    "l2_normalize": "K.eval(K.l2_normalize(K.constant([3, 4]))).round(3)",
    "batch_normalization": """
x = K.constant([[1, 2], [3, 4]])
K.eval(K.batch_normalization(x, mean=[2, 3], var=[1, 1], beta=None, gamma=None, epsilon=0))
""",
    "normalize_batch_in_training": """
x = K.constant([[1, 2], [3, 4]])
normed, mean, variance = K.normalize_batch_in_training(x, None, None, [0], epsilon=0)
K.eval(normed), K.eval(mean), K.eval(variance)
""",
    "bias_add": "K.eval(K.bias_add(K.constant([[1, 2], [3, 4]]), K.constant([10, 20])))",
    "conv1d": "K.eval(K.conv1d(K.constant([[[1], [2], [3]]]), K.constant([[[1]], [[10]]])))[0, :, 0]",
    "conv2d": 'K.conv2d(K.placeholder((None, 8, 8, 3)), K.zeros((3, 3, 3, 16)), padding="same").shape',
    "conv3d": "K.conv3d(K.placeholder((None, 8, 8, 8, 1)), K.zeros((3, 3, 3, 1, 4))).shape",
    "conv2d_transpose": """
x = K.ones((1, 4, 4, 2))
K.conv2d_transpose(x, K.zeros((2, 2, 3, 2)), (1, 8, 8, 3), strides=(2, 2)).shape
""",
    "conv3d_transpose": """
x = K.ones((1, 2, 2, 2, 1))
K.conv3d_transpose(x, K.zeros((2, 2, 2, 3, 1)), (1, 4, 4, 4, 3), strides=(2, 2, 2)).shape
""",
    "depthwise_conv2d": "K.depthwise_conv2d(K.placeholder((None, 8, 8, 3)), K.zeros((3, 3, 3, 2))).shape",
    "separable_conv1d": """
x = K.placeholder((None, 8, 3))
K.separable_conv1d(x, K.zeros((3, 3, 2)), K.zeros((1, 6, 4))).shape
""",
    "separable_conv2d": """
x = K.placeholder((None, 8, 8, 3))
K.separable_conv2d(x, K.zeros((3, 3, 3, 2)), K.zeros((1, 1, 6, 4))).shape
""",
    "local_conv1d": "K.local_conv1d(K.placeholder((None, 5, 3)), K.zeros((4, 6, 2)), (2,), (1,)).shape",
    "local_conv2d": """
x = K.placeholder((None, 4, 4, 1))
K.local_conv2d(x, K.zeros((9, 4, 2)), (2, 2), (1, 1), (3, 3)).shape
""",
    "pool2d": """
x = K.constant(np.arange(16).reshape(1, 4, 4, 1))
K.eval(K.pool2d(x, (2, 2), strides=(2, 2)))[0, :, :, 0]
""",
    "pool3d": 'K.pool3d(K.placeholder((None, 4, 4, 4, 1)), (2, 2, 2), (2, 2, 2), pool_mode="avg").shape',
    "rnn": """
x = K.constant([[[1], [2], [3]]])
last, outputs, states = K.rnn(lambda i, s: (i + s[0], [i + s[0]]), x, [K.zeros((1, 1))])
K.eval(last), K.eval(outputs)[0, :, 0]
""",
    "map_fn": "K.eval(K.map_fn(lambda row: K.sum(row), K.constant([[1, 2], [3, 4]])))",
    "foldl": "K.eval(K.foldl(lambda total, row: total * 10 + row, K.constant([1, 2, 3])))",
    "foldr": "K.eval(K.foldr(lambda total, row: total * 10 + row, K.constant([1, 2, 3])))",
    "ctc_batch_cost": """
labels, steps = K.constant([[0]], dtype="int32"), K.constant([[2]], dtype="int32")
chances = K.constant([[[0.5, 0.5], [0.5, 0.5]]])
K.eval(K.ctc_batch_cost(labels, chances, steps, K.constant([[1]], dtype="int32"))).round(3)
""",
    "ctc_decode": """
chances = K.constant([[[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]])
labels, _ = K.ctc_decode(chances, K.constant([3], dtype="int32"))
[label for label in K.eval(labels[0])[0].tolist() if label >= 0]
""",
    "ctc_label_dense_to_sparse": """
labels = K.constant([[1, 2, 0], [3, 0, 0]], dtype="int32")
K.eval(K.to_dense(K.ctc_label_dense_to_sparse(labels, K.constant([2, 1], dtype="int32"))))
""",
    "print_tensor": 'K.eval(K.print_tensor(K.constant([1, 2]), "x is "))',
    # Randomness
    "random_uniform": """
K.set_random_seed(1)
K.eval(K.random_uniform((2,))).round(3)
""",
    "random_normal": "K.eval(K.random_normal((2, 3), mean=1)).shape",
    "truncated_normal": "np.abs(K.eval(K.truncated_normal((1000,)))).max() <= 2",
    "random_binomial": """
draws = K.eval(K.random_binomial((1000,), p=0.5))
np.unique(draws)
""",
    "set_random_seed": """
K.set_random_seed(7)
K.eval(K.random_uniform((2,))).round(3)
""",
    # The session
    "backend": "isinstance(K.backend(), str)",
    "clear_session": "K.clear_session()",
    "epsilon": "K.epsilon()",
    "set_epsilon": """
K.set_epsilon(1e-5)
K.epsilon()
""",
    "floatx": "K.floatx()",
    "set_floatx": """
K.set_floatx("float64")
K.constant(1).dtype
""",
    "image_data_format": "K.image_data_format()",
    "set_image_data_format": """
K.set_image_data_format("channels_first")
K.image_data_format()
""",
    "normalize_data_format": 'K.normalize_data_format(None), K.normalize_data_format("channels_first")',
    "get_uid": 'K.get_uid("dense"), K.get_uid("dense"), K.get_uid("conv")',
    "reset_uids": """
K.get_uid("dense"), K.reset_uids(), K.get_uid("dense")
""",
    "name_scope": """
with K.name_scope("layer"):
    w = K.variable(1, name="w")

w.name
""",
    "symbolic": "K.symbolic(len)([1, 2])",
    "eager": "K.eager(len)([1, 2])",
    "control_dependencies": """
total, count = K.variable(0.0), K.variable(0.0)
with K.control_dependencies([K.update_add(total, 6.0), K.update_add(count, 2.0)]):
    mean = total / count

K.eval(mean), K.get_value(count)
""",
    "manual_variable_initialization": "K.manual_variable_initialization(True)",
}
