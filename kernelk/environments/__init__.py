"""Makes and finds the environments of the old engines: Pythons, pins, builds, bundles; knows no registry or session.

Nothing is imported here: listing engines reads `places` alone, and must not pay for what installs.
"""
