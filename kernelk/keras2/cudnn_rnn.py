"""cuDNN's LSTM and GRU on K, so that `CuDNNLSTM` and `CuDNNGRU` of Keras 2.3.1 run on every engine.

`old_modules` gives them as `tensorflow.contrib.cudnn_rnn`'s. Keras passes the weights as one vector, in cuDNN's order.
"""

from __future__ import annotations

from typing import Any

from .. import backend as K


class _Recurrent:
    """One layer. `params` has each gate's matrix of the inputs, its matrix of the state, and the biases of both."""

    gates: int

    def __init__(self, num_layers: int, num_units: int, input_size: int, input_mode: str = "linear_input") -> None:
        self._units, self._inputs = num_units, input_size

    def _gates(self, params: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """The gates' matrices of the inputs and of the state, then their biases, in cuDNN's order of gates."""
        units, parts, begin = self._units, [], 0
        for rows in [self._inputs] * self.gates + [units] * self.gates + [1] * 2 * self.gates:
            part = params[begin : begin + rows * units]
            # cuDNN's matrices have a row for each unit.
            parts.append(part if rows == 1 else K.transpose(K.reshape(part, (units, rows))))
            begin += rows * units
        n = self.gates
        return parts[:n], parts[n : 2 * n], parts[2 * n : 3 * n], parts[3 * n :]

    def _step(self, params: Any) -> Any:
        raise NotImplementedError

    def _run(self, inputs: Any, states: list[Any], params: Any) -> tuple[Any, ...]:
        """The outputs, time first, and the last states, each with an axis of one layer in front."""
        x = K.permute_dimensions(inputs, (1, 0, 2))
        _, outputs, last = K.rnn(self._step(params), x, [state[0] for state in states])
        return K.permute_dimensions(outputs, (1, 0, 2)), *(K.expand_dims(state, 0) for state in last)


class CudnnLSTM(_Recurrent):
    """The gates are those of the input, of forgetting, of the cell and of the output."""

    gates = 4

    def __call__(self, inputs: Any, input_h: Any, input_c: Any, params: Any, is_training: bool = True) -> Any:
        return self._run(inputs, [input_h, input_c], params)

    def _step(self, params: Any) -> Any:
        kernels, recurrent, biases, others = self._gates(params)

        def step(x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
            h, c = states
            i, f, new, o = (
                K.bias_add(K.dot(x, kernels[g]) + K.dot(h, recurrent[g]), biases[g] + others[g]) for g in range(4)
            )
            c = K.sigmoid(f) * c + K.sigmoid(i) * K.tanh(new)
            h = K.sigmoid(o) * K.tanh(c)
            return h, [h, c]

        return step


class CudnnGRU(_Recurrent):
    """The gates are those of resetting, of updating and of the new state; resetting comes after the matrix product."""

    gates = 3

    def __call__(self, inputs: Any, input_h: Any, params: Any, is_training: bool = True) -> Any:
        return self._run(inputs, [input_h], params)

    def _step(self, params: Any) -> Any:
        kernels, recurrent, biases, others = self._gates(params)

        def step(x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
            (h,) = states
            ours = [K.bias_add(K.dot(x, kernels[g]), biases[g]) for g in range(3)]
            its = [K.bias_add(K.dot(h, recurrent[g]), others[g]) for g in range(3)]
            reset, update = K.sigmoid(ours[0] + its[0]), K.sigmoid(ours[1] + its[1])
            h = update * h + (1.0 - update) * K.tanh(ours[2] + reset * its[2])
            return h, [h]

        return step
