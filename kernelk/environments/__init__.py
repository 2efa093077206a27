"""The old engines' environments: Pythons, pins, builds, bundles. Knows neither registry nor session."""
