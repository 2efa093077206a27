"""An engine for kernelk in plain Python, as an example of how one is written: see docs/write_a_backend.md."""

from kernelk.engines import Engine

# Found by the entry point `tinyarray = "kernelk_tinyarray:ENGINE"`. Listing engines imports this file and no more.
ENGINE = Engine(
    name="tinyarray",
    title="tinyarray",
    module="kernelk_tinyarray.backend",
    backend="TinyBackend",
    imports="kernelk_tinyarray",
    install="pip install kernelk-tinyarray",
)
