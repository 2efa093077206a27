"""What a notebook's user types: the magics besides `%kbackend`, their parser, completion at the Tab key, settings.

Their modules are imported one by one, and each magic imports its Python twin when it is called: `%load_ext kernelk` has
to stay light.
"""
