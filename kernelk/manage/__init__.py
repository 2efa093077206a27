"""Does what `%kbackend --list`, `--install`, `--doctor` and `--log` and the same commands of the program ask for.

Nothing is imported here: `kernelk list` needs no numpy, and `doctor` all of K.
"""
