"""Programs as they were written in 2018, unedited but for the two lines at their beginning and swaps on their way."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.engines import require_installed
from helpers.notebooks import run_cells

from kernelk.environments import keras2

BEGIN = "%load_ext kernelk\n%kbackend --keras2"


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    """Keras 2.3.1 in kernelk's folder, and an engine to swap to."""
    keras2.install(lambda text: None)
    require_installed("torch")


IMAGES = r"""
from __future__ import print_function
import numpy as np
import keras
from sklearn.datasets import load_digits
from keras.models import Sequential, Model, load_model
from keras.layers import Dense, Dropout, Flatten, BatchNormalization
from keras.layers.convolutional import Conv2D, MaxPooling2D
from keras.preprocessing.image import ImageDataGenerator
from keras.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau, CSVLogger
from keras.utils import np_utils
from keras import backend as K
np.random.seed(1337)
digits = load_digits()
x, y = digits.images[:400] / 16., np_utils.to_categorical(digits.target[:400], 10)
if K.image_data_format() == 'channels_first':
    x = x.reshape(x.shape[0], 1, 8, 8)
else:
    x = x.reshape(x.shape[0], 8, 8, 1)
model = Sequential()
model.add(Conv2D(8, kernel_size=(3, 3), activation='relu', input_shape=x.shape[1:], name='conv'))
model.add(BatchNormalization())
model.add(MaxPooling2D(pool_size=(2, 2)))
model.add(Flatten())
model.add(Dropout(0.25))
model.add(Dense(10, activation='softmax'))
model.compile(loss=keras.losses.categorical_crossentropy, optimizer=keras.optimizers.Adadelta(), metrics=['accuracy'])
class Losses(keras.callbacks.Callback):
    def on_train_begin(self, logs={}):
        self.losses = []
    def on_batch_end(self, batch, logs={}):
        self.losses.append(logs.get('loss'))
losses = Losses()
datagen = ImageDataGenerator(rotation_range=10, width_shift_range=0.1, height_shift_range=0.1)
callbacks = [EarlyStopping(patience=2), ModelCheckpoint('best.h5', save_best_only=True), ReduceLROnPlateau(patience=1),
             CSVLogger('log.csv', append=True), losses]
flow = lambda: datagen.flow(x[:300], y[:300], batch_size=50)
first = model.fit_generator(flow(), steps_per_epoch=6, epochs=2, validation_data=(x[300:], y[300:]), verbose=0,
                            callbacks=callbacks)
"""

LOOK_INTO_IT = r"""
second = model.fit_generator(flow(), steps_per_epoch=6, epochs=6, initial_epoch=2, verbose=0, callbacks=callbacks,
                             validation_data=(x[300:], y[300:]), workers=2)
print(round(losses.losses[0], 1) > round(losses.losses[-1], 1), len(open('log.csv').readlines()) > 4)
best = load_model('best.h5')
score = best.evaluate(x[300:], y[300:], verbose=0)
lowest = min(first.history['val_loss'] + second.history['val_loss'])
print('{:.4f}'.format(score[0]) == '{:.4f}'.format(lowest))
picture = x[:1]
winner = np.argmax(model.predict(picture)[0])
conv = model.get_layer('conv')
grads = K.gradients(model.output[:, winner], conv.output)[0]
iterate = K.function([model.input, K.learning_phase()], [K.mean(grads, axis=(0, 1, 2)), conv.output[0]])
pooled, activations = iterate([picture, 0])
for i in range(8):
    activations[:, :, i] *= pooled[i]
print(np.maximum(np.mean(activations, axis=-1), 0).shape)
for layer in model.layers[:-1]:
    layer.trainable = False
model.compile('rmsprop', 'categorical_crossentropy')
loss = model.train_on_batch(x[:50], y[:50])
print('%d weights, loss %s' % (len(model.trainable_weights), type(loss).__name__))
"""


WORDS = r"""
import random
import numpy as np
from keras.preprocessing.text import Tokenizer
from keras.preprocessing.sequence import pad_sequences
from keras.models import Model, Sequential, load_model, model_from_json
from keras.layers import Input, Embedding, LSTM, Dense, Bidirectional, SpatialDropout1D, Layer
from keras.wrappers.scikit_learn import KerasClassifier, KerasRegressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from keras import backend as K
np.random.seed(7); random.seed(7)
kinds = ['dull boring awful weak'.split(), 'great lovely superb fun'.split()]
texts = [' '.join(random.choice('the a film plot it is'.split()) for _ in range(random.randint(2, 6))) + ' '
         + random.choice(kinds[i % 2]) for i in range(120)]
labels = np.arange(120) % 2
tokenizer = Tokenizer(num_words=50)
tokenizer.fit_on_texts(texts)
data = pad_sequences(tokenizer.texts_to_sequences(texts), maxlen=8)
class Attention(Layer):
    def build(self, input_shape):
        self.W = self.add_weight(name='W', shape=(input_shape[-1], 1), initializer='normal', trainable=True)
        super(Attention, self).build(input_shape)
    def compute_mask(self, x, mask=None):
        return None
    def call(self, x, mask=None):
        a = K.exp(K.squeeze(K.dot(x, self.W), axis=-1))
        if mask is not None:
            a *= K.cast(mask, K.floatx())
        a /= K.cast(K.sum(a, axis=1, keepdims=True) + K.epsilon(), K.floatx())
        return K.sum(x * K.expand_dims(a), axis=1)
    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])
words = Input(shape=(8,), dtype='int32')
x = SpatialDropout1D(0.1)(Embedding(50, 8, mask_zero=True)(words))
x = Attention()(Bidirectional(LSTM(4, return_sequences=True))(x))
model = Model(inputs=words, outputs=Dense(1, activation='sigmoid')(x))
model.compile('adam', 'binary_crossentropy', metrics=['acc'])
history = model.fit(data, labels, validation_split=0.2, epochs=2, verbose=0, class_weight={0: 1., 1: 2.})
print(sorted(history.history))
"""

WORDS_AGAIN = r"""
model.fit(data, labels, epochs=1, verbose=0)
model.save('words.h5')
again = load_model('words.h5', custom_objects={'Attention': Attention})
print(np.allclose(again.predict(data), model.predict(data), atol=1e-6))
fresh = model_from_json(model.to_json(), custom_objects={'Attention': Attention})
fresh.set_weights(model.get_weights())
print(np.allclose(fresh.predict(data), model.predict(data), atol=1e-6))
def create_model(units=4):
    model = Sequential()
    model.add(Dense(units, input_dim=8, activation='relu'))
    model.add(Dense(1, activation='sigmoid'))
    model.compile(loss='binary_crossentropy', optimizer='adam', metrics=['accuracy'])
    return model
grid = GridSearchCV(KerasClassifier(build_fn=create_model, verbose=0), dict(units=[2, 4], epochs=[1]), cv=2)
print(grid.fit(data, labels).best_params_['epochs'])
pipe = make_pipeline(StandardScaler(), KerasRegressor(build_fn=create_model, epochs=1, verbose=0))
print(cross_val_score(pipe, data, labels, cv=2).shape, pipe.fit(data, labels).predict(data[:3]).shape)
"""


GENERATIVE = r"""
import numpy as np
from sklearn.datasets import load_digits
from keras.layers import Input, Dense, Lambda, LSTM
from keras.models import Model
from keras.losses import binary_crossentropy
from keras import backend as K
np.random.seed(0)
x_train = load_digits().data[:400] / 16.
inputs = Input(shape=(64,))
h = Dense(16, activation='relu')(inputs)
z_mean, z_log_var = Dense(2)(h), Dense(2)(h)
def sampling(args):
    z_mean, z_log_var = args
    epsilon = K.random_normal(shape=(K.shape(z_mean)[0], K.int_shape(z_mean)[1]))
    return z_mean + K.exp(0.5 * z_log_var) * epsilon
z = Lambda(sampling, output_shape=(2,), name='z')([z_mean, z_log_var])
encoder = Model(inputs, [z_mean, z_log_var, z], name='encoder')
latent = Input(shape=(2,))
decoder = Model(latent, Dense(64, activation='sigmoid')(Dense(16, activation='relu')(latent)), name='decoder')
outputs = decoder(encoder(inputs)[2])
vae = Model(inputs, outputs, name='vae')
kl_loss = -0.5 * K.sum(1 + z_log_var - K.square(z_mean) - K.exp(z_log_var), axis=-1)
vae.add_loss(K.mean(64 * binary_crossentropy(inputs, outputs) + kl_loss))
vae.compile(optimizer='adam')
first = vae.fit(x_train, epochs=2, batch_size=50, verbose=0)
"""

GENERATED = r"""
second = vae.fit(x_train, epochs=3, batch_size=50, validation_data=(x_train[:50], None), verbose=0)
vae.save_weights('vae.h5')
print(first.history['loss'][0] > second.history['loss'][-1], encoder.predict(x_train)[0].shape)
"""

TRANSLATION = r"""
tokens, steps, size = 8, 5, 12
encoder_inputs = Input(shape=(None, tokens))
_, state_h, state_c = LSTM(size, return_state=True)(encoder_inputs)
decoder_inputs = Input(shape=(None, tokens))
decoder_lstm = LSTM(size, return_sequences=True, return_state=True)
decoded, _, _ = decoder_lstm(decoder_inputs, initial_state=[state_h, state_c])
decoder_dense = Dense(tokens, activation='softmax')
pairs = Model([encoder_inputs, decoder_inputs], decoder_dense(decoded))
pairs.compile(optimizer='rmsprop', loss='categorical_crossentropy', metrics=['accuracy'])
numbers = np.random.randint(1, tokens, (64, steps))
source = np.eye(tokens)[numbers]
target = source[:, ::-1]
shifted = np.concatenate([np.eye(tokens)[np.zeros((64, 1), int)], target[:, :-1]], axis=1)
pairs.fit([source, shifted], target, batch_size=16, epochs=2, validation_split=0.25, verbose=0)
encoder_model = Model(encoder_inputs, [state_h, state_c])
given_h, given_c = Input(shape=(size,)), Input(shape=(size,))
step, new_h, new_c = decoder_lstm(decoder_inputs, initial_state=[given_h, given_c])
decoder_model = Model([decoder_inputs, given_h, given_c], [decoder_dense(step), new_h, new_c])
states, word, sentence = encoder_model.predict(source[:1]), np.eye(tokens)[[[0]]], []
while len(sentence) < steps:
    probabilities, h, c = decoder_model.predict([word] + states)
    sentence.append(int(np.argmax(probabilities[0, -1])))
    states, word = [h, c], np.eye(tokens)[[[sentence[-1]]]]
teacher = pairs.predict([source[:1], np.eye(tokens)[[[0] + sentence[:-1]]]])
print(teacher[0].argmax(axis=-1).tolist() == sentence)
"""


def test_old_programs_run_and_are_swapped_on_their_way(tmp_path: Path) -> None:
    programs = [IMAGES, "%kbackend torch", LOOK_INTO_IT, WORDS, "%kbackend numpy", WORDS_AGAIN, GENERATIVE]
    results = run_cells(
        [
            f"import os\nos.chdir({str(tmp_path)!r})",
            BEGIN,
            *programs,
            "%kbackend torch",
            GENERATED,
            "%kbackend numpy",
            TRANSLATION,
        ],
        KERNELK_BACKEND="numpy",
    )
    for result in results:
        assert result["error"] is None, result["err"] + result["out"]
    images, words, again, generated, translated = (results[i]["out"].splitlines() for i in (4, 5, 7, 10, 12))
    assert images[-4:] == ["True True", "True", "(6, 6)", "2 weights, loss float32"]
    assert words[-1] == "['acc', 'loss', 'val_acc', 'val_loss']"
    assert again[-4:] == ["True", "True", "1", "(2,) (3,)"]
    assert (generated[-1], translated[-1]) == ("True (400, 2)", "True")
