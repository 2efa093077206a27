"""TensorFlow 2."""
