"""Each operation that GPUs override, in Triton's interpreter on the CPU, against the definitions."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tests.device.interpreted  # noqa: F401 (before Triton is imported)

# isort: split
from tests.device import packed_cases
from tgi.config import ROUNDINGS
from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.cuda import cuda_operations, packed_weight
from tgi.device.cuda.cuda_operations import CudaOperations
from tgi.device.experts import Experts
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.weights.formats import DenseWeight


def load_attention_tests():
    path = Path(__file__).with_name("test_attention.py")
    spec = importlib.util.spec_from_file_location("attention_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


attention = load_attention_tests()


@pytest.mark.parametrize("name", attention.SPECS)
def test_decode_attention_agrees_with_scores_one_by_one(name):
    """Seven rows, the last of them padding, whose blocks fill parts in every way."""
    spec, seen = attention.SPECS[name]
    attention.check(CudaOperations(1), attention.make_rows(attention.STEPS["decode"]), [spec], seen)


@pytest.mark.parametrize("step", attention.STEPS)
def test_groups_of_layers_have_their_own_blocks(step):
    attention.check_groups(CudaOperations(1), attention.alternating(attention.STEPS[step]))


def test_decode_attention_over_many_parts():
    rows = attention.make_rows([(127, 1), (290, 1), (128, 1)])
    attention.check(CudaOperations(1), rows, [AttentionSpec(0.2), AttentionSpec(0.2, window=7)])


@pytest.mark.parametrize("step", ["prompts", "chunks"])
def test_attention_of_prompts_agrees_with_scores_one_by_one(step, monkeypatch):
    monkeypatch.setattr(cuda_operations, "_QUERIES", 16)
    rows = attention.make_rows(attention.STEPS[step])
    for spec, seen in attention.SPECS.values():
        attention.check(CudaOperations(1), rows, [spec], seen)
    attention.check(CudaOperations(1), rows, [AttentionSpec(0.2)])


@pytest.mark.parametrize(
    ("step", "dtype"),
    [("decode", torch.float16), ("prompts", torch.bfloat16), ("chunks", torch.bfloat16)],
    ids=str,
)
def test_attention_in_16_bits(step, dtype):
    """Triton's interpreter cannot multiply matrices of bfloat16."""
    specs = [attention.SPECS[name][0] for name in ("window", "slopes", "cap", "sinks")]
    attention.check(CudaOperations(1), attention.make_rows(attention.STEPS[step]), specs, None, dtype)


def normal(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_layers_agree_with_the_definition(dtype, tolerance):
    plain, mine = Device(1), CudaOperations(1)

    def same(got, wanted):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)

    x, weight = normal(3, 2600, dtype=dtype) * 3, normal(2600, dtype=dtype, seed=1)
    same(mine.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    same(mine.silu_mul(x), plain.silu_mul(x))
    fused = normal(5, 9 * 24, dtype=dtype, seed=2)
    heads = fused[:, : 6 * 24].view(5, 6, 24)  # as queries are in the output of a fused layer
    for size in (24, 8):
        angles = normal(5, size // 2, dtype=torch.float32, seed=3) * 9
        rotation = plain.rotation(angles.cos().to(dtype), angles.sin().to(dtype))
        same(mine.rotary(heads, *rotation), plain.rotary(heads, *rotation))


@pytest.mark.parametrize(("first", "count", "tokens"), [(0, 5, 6), (3, 2, 6), (0, 2, 70), (1, 3, 1)])
@pytest.mark.parametrize("kind", ["silu", "swiglu"])
def test_experts_agree_with_the_definition(kind, first, count, tokens):
    """Of five experts; other ranks have the rest, and no token chooses one of them twice."""
    up_bias, down_bias = (
        (normal(count, 96, dtype=torch.float32), normal(count, 70, dtype=torch.float32, seed=1))
        if kind == "swiglu"
        else (None, None)
    )
    experts = Experts(
        up=[DenseWeight(normal(96, 70, dtype=torch.float32, seed=seed) / 8) for seed in range(count)],
        down=[DenseWeight(normal(70, 48, dtype=torch.float32, seed=9 + seed) / 8) for seed in range(count)],
        up_bias=up_bias,
        down_bias=down_bias,
        first=first,
        kind=kind,
    )
    x = normal(tokens, 70, dtype=torch.float32)
    weights, chosen = normal(tokens, 5, dtype=torch.float32, seed=2).abs().topk(2)
    mine = CudaOperations(1)
    got = mine.experts(x, weights, chosen.int(), mine.prepare_experts(experts))
    torch.testing.assert_close(got, Device(1).experts(x, weights, chosen, experts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", packed_cases.KINDS)
def test_products_with_packed_weights(name):
    for rows, dtype in ((1, torch.float16), (20, torch.float32), (150, torch.float16)):
        packed_cases.check_product(CudaOperations(1), name, rows, dtype)


@pytest.mark.parametrize("name", [name for name in packed_cases.KINDS if "fp8" in name])
def test_gpus_that_do_not_multiply_fp8(name, monkeypatch):
    monkeypatch.setattr(packed_weight, "has_fp8_products", lambda: False)
    packed_cases.check_product(CudaOperations(1), name, 20, torch.float16)


@pytest.mark.parametrize("name", packed_cases.EXPERTS)
def test_experts_of_packed_weights(name):
    for tokens in (1, 70):
        packed_cases.check_experts(CudaOperations(1), name, tokens, torch.float32)


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_total_does_not_depend_on_other_rows(size):
    x = normal(50, size, dtype=torch.float32).exp()
    together = CudaOperations(1).total(x)
    torch.testing.assert_close(together.double(), x.double().sum(-1, keepdim=True), atol=0, rtol=1e-6)
    alone = torch.cat([CudaOperations(1).total(row[None]) for row in x])
    assert torch.equal(together, alone)


def test_a_model_computes_what_the_definition_does(tmp_path):
    """Prompts in chunks and together, then decode steps, in programs of buckets with padding."""
    folder = make_llama(tmp_path)
    results = []
    for device in (Device(1), CudaOperations(1)):
        driver = make_driver(folder, device)
        for lane, length in enumerate((20, 5)):
            driver.start(lane, prompt_length=length)
        rows = [driver.prefill({0: range(1, 17)}, unfinished=[0])]
        rows.append(driver.prefill({0: [17, 18, 19, 20], 1: range(40, 45)}, pad=(1, 3, 1)))
        rows += [driver.decode([1, 0], pad=(1, 0, 2)) for _ in range(3)]
        results.append([answers[lane] for answers in rows[1:] for lane in (0, 1)])
    for mine, wanted in zip(results[1], results[0], strict=True):
        assert mine.token == wanted.token
        torch.testing.assert_close(mine.logits, wanted.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", packed_cases.CHECKPOINTS)
def test_a_quantized_checkpoint(tmp_path, kind):
    packed_cases.check_checkpoint(CudaOperations(1), kind, tmp_path)


def test_a_checkpoint_in_fp8(tmp_path):
    packed_cases.check_fp8(CudaOperations(1), tmp_path)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_checkpoint_that_is_rounded(tmp_path, rounding):
    packed_cases.check_rounding(CudaOperations(1), rounding, tmp_path)


@pytest.mark.parametrize("name", packed_cases.BLOCKS)
def test_a_checkpoint_in_blocks(tmp_path, name):
    packed_cases.check_blocks(CudaOperations(1), name, tmp_path)


COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from tgi.device.cuda import triton_experts, triton_kernels, triton_packed

kinds = dict.fromkeys(("ids", "owners", "counts", "starts", "order", "experts", "begins", "ends"), "*i32")
kinds |= dict.fromkeys(("slopes", "sinks", "sums", "peaks", "outs", "scales", "factors"), "*fp32")
kinds |= dict.fromkeys(("octets", "zeros"), "*u8")
kinds |= dict.fromkeys(("entries", "rows", "window", "size", "stride", "columns"), "i32")
kinds |= dict.fromkeys(("group", "offset", "groups", "step"), "i32")
kinds |= {"scale": "fp32", "softcap": "fp32"}
constants = dict(
    KV_HEADS=8, GROUPS=4, HEADS=32, DIM=96, DIM_UP=128, SIZE=64, BLOCK=32, PART=8, GROUPS_UP=16, TOGETHER=16,
    WIDTH=1024, WINDOW=True, SLOPES=True, SOFTCAP=True, SINKS=True, TOP=8, BIAS=True, ROWS=16, COLUMNS=64,
    DEPTH=32, BITS=8, FLOATS=False, WHOLE=True, ZEROS=True, FACTORS=True, RESIDUAL=True, PAIRS=True,
)
for name, variant in json.load(sys.stdin):
    module = next(each for each in (triton_experts, triton_kernels, triton_packed) if hasattr(each, name))
    names, here = getattr(module, name).arg_names, kinds | {"x": variant.pop("x", "*bf16")}
    options, fixed = {"num_warps": variant.pop("num_warps", 4)}, constants | variant
    source = ASTSource(
        fn=getattr(module, name),
        signature={each: "constexpr" if each in fixed else here.get(each, "*bf16") for each in names},
        constexprs={(place,): fixed[each] for place, each in enumerate(names) if each in fixed},
        attrs={(place,): [["tt.divisibility", 16]] for place, each in enumerate(names) if each not in fixed},
    )
    compiled = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= int(sys.argv[2]), (name, variant, compiled.metadata.shared)
    print(name)
"""

ALONE = {"PAIRS": False, "TOP": 0}
PROMPTS = {**ALONE, "ROWS": 128, "DEPTH": 128, "num_warps": 8}
FLOATS = {"FLOATS": True, "ZEROS": False, "DEPTH": 128}
KERNELS = [
    *[(name, {}) for name in ("_attend_part", "_join_pieces", "_total", "_silu_mul", "_rotate")],
    ("_multiply_tile", {}),
    ("multiply_packed", {**PROMPTS, "BITS": 4}),
    ("multiply_packed", {**ALONE, "BITS": 4, "COLUMNS": 32, "WHOLE": False}),
    ("multiply_packed", {"ZEROS": False}),
    ("multiply_packed", FLOATS),
    ("multiply_packed", {**PROMPTS, **FLOATS, "x": "*fp16", "WHOLE": False}),
    ("multiply_packed", {"ROWS": 64, "DEPTH": 128, "x": "*fp32"}),
]
FP8_PRODUCTS = [("multiply_packed", {**sizes, **FLOATS, "x": "*fp8e4nv"}) for sizes in ({}, PROMPTS)]
"""Which GPUs of 8.9 and newer have."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generation", "shared", "kernels"),
    [("80", 163 << 10, KERNELS), ("90", 227 << 10, KERNELS + FP8_PRODUCTS)],
    ids=["A100", "H100"],
)
def test_the_compiler_takes_the_kernels(generation, shared, kernels, tmp_path):
    """Triton's interpreter takes more than its compiler, which needs no GPU and tells the shared memory."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, generation, str(shared)],
        env=environment,
        input=json.dumps(kernels),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [name for name, _ in kernels], done.stderr
