"""How float32 is multiplied: chosen at any time, the same on every engine, and never changed by anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate, require_installed
from helpers.fake_engines import lacking_engine
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.backends.choosing import check_environment
from kernelk.backends.errors import OptionError
from kernelk.cli.main import main
from kernelk.engines import process_environment
from kernelk.errors import ArgumentError
from kernelk.session.current import current

NARROW = ("tensorflow", "jax", "torch")


def rounded(values: Any) -> np.ndarray:
    """float32 as bfloat16 has it: the upper half of the bits, rounded to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


class Products:
    """Every kind of product, and its value for factors that are rounded first, or not."""

    def __init__(self) -> None:
        a, b, self.x, self.k = drawn(5, 7), drawn(7, 4), drawn(2, 6, 6, 3), drawn(3, 3, 3, 4)
        self.s, self.r = drawn(2, 3, 5), drawn(5, 5)
        self.a, self.b = a, b
        w = K.variable(b)
        image, kernel = K.constant(self.x), K.variable(self.k)
        convolved = K.conv2d(image, kernel, padding="same", data_format="channels_last")
        loss = K.sum(convolved)

        def step(x: Any, states: Any) -> Any:
            product = K.dot(x, K.constant(self.r))
            return product, [product]

        self.tensors = [
            K.dot(K.constant(a), w),
            K.batch_dot(K.constant(a[None, :, :]), K.constant(b[None, :, :])),
            convolved,
            K.gradients(loss, [kernel])[0],
            K.rnn(step, K.constant(self.s), [K.zeros((2, 5))])[1],
            # Not float32
            K.dot(K.constant(a, dtype="float64"), K.constant(b, dtype="float64")),
        ]

    def values(self) -> list[np.ndarray]:
        return [K.eval(tensor) for tensor in self.tensors]

    def expected(self, cut: Any) -> list[np.ndarray]:
        """In float64, from factors that `cut` returns."""
        a, b, x, k, s, r = (cut(v).astype(np.float64) for v in (self.a, self.b, self.x, self.k, self.s, self.r))
        framed = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3), (1, 2))
        convolved = np.einsum("nhwcij,ijco->nhwo", windows, k)
        slope = np.einsum("nhwcij->ijc", windows)[..., None].repeat(4, 3)
        return [a @ b, (a @ b)[None], convolved, slope, s @ r, self.a.astype(np.float64) @ self.b.astype(np.float64)]


def agree(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, rtol=2e-6, atol=2e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("engine", NARROW)
def test_bfloat16_rounds_the_factors_of_every_product_and_nothing_else(engine: str) -> None:
    activate(engine)
    products = Products()
    assert agree(products.values(), products.expected(lambda x: x))
    report = kernelk.set_backend(engine, precision="bfloat16")
    assert (report.restarted, report.facts["precision"], report.options) == (
        True,
        "bfloat16",
        {"precision": "bfloat16"},
    )
    assert "precision" in repr(report)
    narrow = products.values()
    assert agree(narrow, products.expected(rounded))
    assert not agree(narrow[:5], products.expected(lambda x: x)[:5])
    report = kernelk.set_backend(engine, precision="float32")
    assert (report.restarted, report.facts["precision"], report.options) == (True, "float32", {})
    assert agree(products.values(), products.expected(lambda x: x))


def test_a_precision_is_an_option_like_the_others() -> None:
    activate("torch")
    v = K.variable(drawn(3))
    before = K.get_value(v)
    kernelk.set_backend("torch", precision="bfloat16")
    pid = current().host().pid
    again = kernelk.set_backend("torch", precision="bfloat16", device="cpu")
    assert (again.restarted, again.started, current().host().pid) == (False, False, pid)
    (row,) = [row for row in kernelk.list_backends().engines if row.name == "torch"]
    assert (row.precision, row.precisions, row.options["precision"]) == (
        "bfloat16",
        ("float32", "bfloat16"),
        "bfloat16",
    )
    assert "bfloat16" in repr(kernelk.list_backends())
    result = kernelk.time(v * 2.0, budget=0.1)
    assert result.conditions.precision == "bfloat16"
    assert "products in bfloat16" in result.conditions.words()
    # What the device lacks changes nothing, and no process is started to find that out.
    with pytest.raises(ArgumentError) as caught:
        kernelk.set_backend("torch", precision="tf32")
    assert str(caught.value) == (
        "PyTorch has no tf32 on cpu:0: allowed are float32, bfloat16; "
        "next: kernelk.set_backend('torch', precision='float32')"
    )
    assert current().host().pid == pid
    # Through a swap, a stop, and another option.
    kernelk.set_backend("numpy")
    kernelk.stop_backend("torch")
    assert kernelk.set_backend("torch").facts["precision"] == "bfloat16"
    with kernelk.using("torch", precision="float32") as inside:
        assert inside.facts["precision"] == "float32"
    assert current().host().facts["precision"] == "bfloat16"
    assert kernelk.set_backend("torch", precision="default").facts["precision"] == "float32"
    assert np.array_equal(K.get_value(v), before)


def test_a_device_that_lacks_the_precision_is_refused_by_a_new_worker_too() -> None:
    require_installed("torch")
    kernelk.stop_backend("torch")
    with pytest.raises(ArgumentError, match="PyTorch has no tf32 on cpu:0: allowed are float32, bfloat16; next: "):
        kernelk.set_backend("torch", precision="tf32", device="cpu:0")
    assert (current().active, current().engine_options.get("torch", {})) == ("numpy", {})


@pytest.mark.parametrize("wrong", ["fp16", "", "TF32", 16, True, "float64"])
def test_an_unknown_precision(wrong: Any) -> None:
    with pytest.raises(ArgumentError) as e:
        kernelk.set_backend("torch", precision=wrong)
    allowed, _, step = one_line(e.value).partition("allowed are float32, tf32, bfloat16 and 'default'; next: ")
    assert allowed == f"precision={wrong!r} isn't allowed: " + ("did you mean 'tf32'? " if wrong == "TF32" else "")
    assert step == f"kernelk.set_backend('torch', precision='{'tf32' if wrong == 'TF32' else 'float32'}')"
    assert (current().active, current().engine_options.get("torch", {})) == ("numpy", {})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *[(one, "float32") for one in ("32", 32, "fp32", "F32", "single", "flaot32", np.float32, np.dtype("float32"))],
        *[(one, "tf32") for one in ("TF-32", "tensorfloat32")],
        *[(one, "bfloat16") for one in ("bf16", "BFloat16", "torch.bfloat16", "bfloat")],
        ("defualt", "default"),
        # Other formats, however near their letters are.
        *[(one, "") for one in ("16", 16, "float16", "half", "float64", "64", "fp8", "int8", "x")],
    ],
)
def test_another_name_of_a_precision_is_understood_by_its_meaning(given: Any, meant: str) -> None:
    with pytest.raises(ArgumentError) as e:
        kernelk.set_backend("torch", precision=given)
    text = one_line(e.value)
    assert (f"did you mean '{meant}'? allowed are " if meant else "isn't allowed: allowed are ") in text
    assert text.endswith(f"precision='{meant if meant and meant != 'default' else 'float32'}')")


def test_a_magics_precision_is_told_in_the_magics_words() -> None:
    (_, torch, numpy, compared, asked, after) = run_cells(
        [
            "%load_ext kernelk\nfrom kernelk import backend as K\nimport kernelk",
            "%kbackend torch --precision 32",
            "%kbackend numpy --precision bf16",
            "%%kcompare numpy --precision bf16\nK.eval(K.ones(3))",
            "kernelk.set_backend('torch', precision=32)",
            "print(K.backend())",
        ],
        KERNELK_BACKEND="numpy",
    )
    allowed = "allowed are float32, tf32, bfloat16 and 'default'; next: "
    assert f"--precision 32 isn't allowed: did you mean 'float32'? {allowed}%kbackend torch --p" in torch["out"]
    # What it means is nothing that this engine has.
    assert f"did you mean 'bfloat16'? {allowed}%kbackend numpy --precision float32" in numpy["out"]
    assert f"--precision bf16 isn't allowed; did you mean 'bfloat16'? {allowed}--precision bfloat16" in compared["out"]
    assert f"precision=32 isn't allowed: did you mean 'float32'? {allowed}kernelk.set_backend('t" in asked["out"]
    assert after["out"] == "numpy\n"


@pytest.mark.parametrize("engine", ["numpy", "theano", "cntk"])
def test_engines_that_have_float32_alone(engine: str) -> None:
    host = current().hosts.get(engine)
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(ArgumentError) as caught:
            kernelk.set_backend(engine, precision=precision)
        assert f"has no {precision}: allowed is float32, and {precision} on tensorflow, jax, torch; next: " in str(
            caught.value
        )
    assert current().hosts.get(engine) is host
    kernelk.set_backend("numpy", precision="float32")


def test_the_magic() -> None:
    first, shown, narrow, refused, after = run_cells(
        [
            "%load_ext kernelk\nfrom kernelk import backend as K\n%kbackend numpy --precision float32",
            "%kbackend",
            "%kbackend torch --precision bfloat16",
            "%kbackend torch --precision tf32 --device cpu:0",
            "%kbackend",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert first["error"] is None
    assert "precision" in shown["value"]
    assert "bfloat16" in narrow["value"]
    assert refused["error"] == "ArgumentError"
    assert refused["out"].startswith(
        "ArgumentError: PyTorch has no tf32 on cpu:0: allowed are float32, bfloat16; next: "
    )
    assert len(refused["out"].strip().splitlines()) == 1
    assert "bfloat16" in after["value"]


def test_no_verdict_between_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lacking_engine(monkeypatch, "coarse")
    facts = module.Lacking.facts
    module.Lacking.facts = lambda self: {**facts(self), "precision": "tf32"}
    v = K.variable(drawn(4, 4))

    def body() -> None:
        K.eval(K.dot(v, v))

    result = kernelk.compare(body, "numpy", "coarse", budget=0.5, per_op=True)
    assert not result.comparable  # type: ignore[union-attr]
    text = repr(result)
    assert text.splitlines()[0] == "no verdict: precision differs"
    assert "precision differs (numpy float32, coarse tf32): these are different computations" in text
    assert "fastest" not in text
    assert "next: precision='float32'" in text
    assert [row["precision"] for row in result.records()] == ["float32", "tf32"]
    swept = kernelk.compare(lambda n: body(), "numpy", "coarse", sweep={"n": [1]}, budget=0.2)
    assert "precision differs" in repr(swept)
    alone = kernelk.compare(body, "numpy", budget=0.2)
    assert alone.comparable  # type: ignore[union-attr]


def test_a_comparison_in_a_precision_that_one_side_lacks(spare: str) -> None:
    v = K.variable(drawn(4, 4))
    result = kernelk.compare(K.dot(v, v), "numpy", spare, budget=0.2, precision="bfloat16")
    assert [side.failure.partition(":")[0] for side in result.sides] == [  # type: ignore[union-attr]
        "numpy has no bfloat16",
        "Spare has no bfloat16",
    ]
    with pytest.raises(ArgumentError, match=r"compare: precision='fp8'.*next: precision='float32'"):
        kernelk.compare(K.dot(v, v), "numpy", spare, precision="fp8")


def test_the_program_of_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "one.py"
    script.write_text("from kernelk import backend as K\nK.eval(K.ones((2, 2)) * 2.0)\n")
    assert main(["compare", str(script), "numpy", "--precision", "fp8"]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            "compare: --precision fp8 isn't allowed; allowed are float32, tf32, bfloat16 and 'default'; "
            "next: --precision float32"
        )
    )
    assert main(["compare", str(script), "numpy", "--precision", "float32", "--budget", "0.1"]) == 0
    assert "products in float32" in capsys.readouterr().out


def test_the_users_variables_reach_no_worker_and_a_line_says_so_once(
    spare: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KERNELK_QUIET", raising=False)
    monkeypatch.setattr(process_environment, "_told", set())
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "bfloat16")
    monkeypatch.setenv("KERNELK_TEST_OTHER", "here")
    for _ in range(2):
        kernelk.set_backend(spare)
        variables = Path(f"/proc/{current().host().pid}/environ").read_bytes().split(b"\0")
        assert b"KERNELK_TEST_OTHER=here" in variables
        assert not any(name.startswith((b"NVIDIA_TF32", b"JAX_DEFAULT_MATMUL")) for name in variables)
        kernelk.stop_backend(spare)
    captured = capsys.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if "kept out of workers" in line]
    assert lines == [
        f"kernelk: {setting} is kept out of workers, where precision decides (float32 by default)"
        for setting in ("NVIDIA_TF32_OVERRIDE=1", "JAX_DEFAULT_MATMUL_PRECISION=bfloat16")
    ]


@pytest.mark.parametrize(
    ("value", "precision", "refused"),
    [("0", "tf32", True), ("0", "float32", False), ("1", "float32", True), ("1", "tf32", False), ("", "tf32", False)],
)
def test_a_variable_that_the_kernel_was_started_with(
    monkeypatch: pytest.MonkeyPatch, value: str, precision: str, refused: bool
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    # Not the processor's.
    check_environment("JAX", "jax", precision, "cpu:0")
    if not refused:
        check_environment("JAX", "jax", precision, "cuda:0")
        return
    with pytest.raises(OptionError) as caught:
        check_environment("JAX", "jax", precision, "cuda:0")
    assert str(caught.value) == (
        f"JAX can't be kept to {precision} in the notebook's own process: NVIDIA_TF32_OVERRIDE={value} is set there"
    )
