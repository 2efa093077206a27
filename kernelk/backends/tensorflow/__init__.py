"""TensorFlow 2: a program is traced once into a graph, for all shapes."""
