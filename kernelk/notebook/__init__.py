"""The magics besides `%kbackend`, their parser, Tab completion and the settings.

Their modules are imported one by one, and each magic imports its Python twin when it is called: `%load_ext kernelk` has
to stay light.
"""
