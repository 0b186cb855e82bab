"""Scales for fp8 from measurements of Neural Compressor, worked by hand, and from `tgi calibrate`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.compiling import open_compiling
from tests.test_fp8 import PROMPT, Keeping, Rounded, assert_near
from tgi import calibrate
from tgi.config import DEMO_MODEL
from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.hub import Source
from tgi.plugins import ConfigError
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import decoded, transformers_logprobs, whole
from tgi.text.tokenizer import Tokenizer
from tgi.weights.measurements import Measurements

LAYER = "model.layers.0"
NODES: dict[str, Any] = {
    f"{LAYER}.self_attn.qkv_proj": {"inputs": [[[4.40625]]], "params": {"weight": [[91.5]]}},
    f"{LAYER}.self_attn.o_proj": {"inputs": [[[0.1162109375]]]},
    f"{LAYER}.self_attn.attn.impl.k_cache": {"inputs": [[[192.0]]]},
    f"{LAYER}.self_attn.attn.impl.v_cache": {"inputs": [[[0.25]]]},
    f"{LAYER}.mlp.down_proj": {"inputs": [[[2000.0]]]},
}
"""Of a rank, with names that vLLM gives modules; the first two are of a published measurement of a Llama."""
QUANTIZE: dict[str, Any] = {
    "method": "HOOKS", "mode": "QUANTIZE", "observer": "maxabs", "scale_method": "maxabs_hw",
    "allowlist": {"types": [], "names": []}, "blocklist": {"types": [], "names": []},
    "dump_stats_path": "/elsewhere/inc_output",
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], *ranks: dict[str, Any], nodes: Any = NODES) -> Path:
    """Write a config file, and beside it the measurements of one rank, or of several."""
    for rank, more in enumerate(ranks or [{}]):
        suffix = f"_{rank}_{len(ranks)}" if ranks else ""
        data = {"GlobalRank": None, "LocalRank": rank, "Mode": "DynamicRange", "Nodes": nodes | more}
        (folder / f"inc_output_hooks_maxabs{suffix}.json").write_text(json.dumps(data))
    path = folder / "quant.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("method", "limit", "scales"),
    [
        # 4.40625 / (240 / 4) is 0.073; of 2^-8, 2^-4, 1 and 16 the next is 1. 0.116 / 60 is 0.0019: 2^-8.
        ("maxabs_hw", 240, (1, 2**-8, 16, 16, 2**-4)),
        ("maxabs_pow2", 240, (2**-3, 2**-9, 64, 4, 2**-7)),
        # Up to 448, every power of 2 is as fast. 4.40625 / 112 is 0.039, 2000 / 112 is 17.9.
        ("MAXABS_HW", 448, (2**-4, 2**-9, 32, 2, 2**-8)),
        ("unit_scale", 448, (1, 1, 1, 1, 1)),
        ("hw_aligned_single_scale", 240, (16, 16, 16, 16, 16)),
        ("act_maxabs_pow2_weights_pcs_maxabs_pow2", 240, (2**-3, 2**-9, 64, 4, 2**-7)),
    ],
)
def test_scales_by_hand(tmp_path: Path, method: str, limit: float, scales: tuple[float, ...]) -> None:
    read = Measurements.read(write(tmp_path, QUANTIZE | {"scale_method": method}))
    names = [f"{LAYER}.{name}" for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")]
    found = [read.input_scale(name, limit) for name in names]
    assert [*found, *(read.cache_scales(f"{LAYER}.self_attn", limit) or ())] == list(scales)


def test_scales_that_are_not_rounded(tmp_path: Path) -> None:
    read = Measurements.read(write(tmp_path, QUANTIZE | {"scale_method": "maxabs_arbitrary"}))
    scale = read.input_scale(f"{LAYER}.self_attn.q_proj", 240)
    assert scale is not None
    assert float(scale) == pytest.approx(4.40625 / 60, rel=2**-8)


def test_the_greatest_of_all_ranks_counts(tmp_path: Path) -> None:
    other = {f"{LAYER}.self_attn.o_proj": {"inputs": [[[0.9]]]}}
    read = Measurements.read(write(tmp_path, QUANTIZE | {"scale_method": "maxabs_pow2"}, {}, other, {}))
    assert read.input_scale(f"{LAYER}.self_attn.o_proj", 240) == 2**-6


def test_chosen_modules(tmp_path: Path) -> None:
    def scales(**changes: Any) -> list[bool]:
        read = Measurements.read(write(tmp_path, QUANTIZE | changes))
        names = (f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.o_proj")
        found = [read.input_scale(name, 240) is not None for name in names]
        return [read.has_weights, *found, read.cache_scales(f"{LAYER}.self_attn", 240) is not None]

    assert scales() == [True] * 4
    assert scales(allowlist={"types": ["VLLMKVCache"]}) == [False, False, False, True]
    assert scales(whitelist={"types": ["Linear"]}, allowlist={}) == [True, True, True, False]
    assert scales(blocklist={"names": ["o_proj"]}) == [True, True, False, True]
    assert scales(blocklist={"types": ["KVCache", "Softmax"]}) == [True, True, True, False]
    assert scales(allowlist={"names": [r"layers\.\d+\.self_attn"]}) == [True, True, True, True]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mode": "MEASURE"}, "'mode' is MEASURE: measure with `tgi calibrate`"),
        ({"mode": "LOAD"}, "'mode' is LOAD"),
        ({"fp8_config": "E5M2"}, "'fp8_config' is 'E5M2', and only E4M3"),
        ({"observer": "maxabs_per_channel"}, "'observer' is 'maxabs_per_channel'"),
        ({"scale_method": "maxabs_hw_opt_weight"}, "'maxabs_hw_opt_weight'; the measurements serve any of"),
        ({"scale_method": {"default": {}}}, "'scale_method' is {"),
        ({"dynamic_quantization": "True"}, "use --quantize fp8"),
        ({"new_setting": 1}, "the setting 'new_setting' is unknown"),
        ({"dump_stats_path": "other"}, "there is no other_hooks_maxabs.json"),
    ],
    ids=str,
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Measurements.read(write(tmp_path, QUANTIZE | changes))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, QUANTIZE | {"dump_stats_path": str(tmp_path / "a")})
    (tmp_path / "a_hooks_maxabs_0_1.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"\.npz, which is a pickle"):
        Measurements.read(path)


def test_a_layer_without_measurement_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, QUANTIZE)
    with pytest.raises(ConfigError, match=r"no measurement of 'model\.layers\.1\.mlp\.up_proj'"):
        Measurements.read(path).input_scale("model.layers.1.mlp.up_proj", 240)
    path.write_text(json.dumps(QUANTIZE | {"ignore_modules_wo_measures": "True"}))
    assert Measurements.read(path).input_scale("model.layers.1.mlp.up_proj", 240) is None


def measured_llama(folder: Path, limit: float, *, inputs: bool = True) -> tuple[Path, Any]:
    """A Llama with measurements, and transformers' model with its layers rounded by them (maxabs_pow2).

    `inputs`: whether that rounds inputs as well.
    """
    make_llama(folder)
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    greatest = {"qkv_proj": 3.0, "o_proj": 1.5, "gate_up_proj": 3.0, "down_proj": 2.0}
    nodes = {}
    for name, layer in list(reference.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        start, _, last = name.rpartition(".")
        joined = {"q": "qkv_proj", "k": "qkv_proj", "v": "qkv_proj", "g": "gate_up_proj", "u": "gate_up_proj"}
        last = joined.get(last[0], last)
        nodes[f"{start}.{last}"] = {"inputs": [[[greatest[last]]]]}
        weight = layer.weight.detach()
        scale = 2.0 ** torch.ceil(torch.log2(weight.abs().max().bfloat16() / (limit / 2))).item()
        used = 2.0 ** torch.ceil(torch.log2(torch.tensor(greatest[last] / (limit / 4)))).item()
        numbers = (weight / scale).to(torch.float8_e4m3fn)
        reference.set_submodule(name, Rounded(numbers, scale, used if inputs else None))
    return write(folder, QUANTIZE | {"scale_method": "maxabs_pow2"}, nodes=nodes), reference


@pytest.mark.parametrize("card", ["", "gaudi2-lazy", "gaudi3-compile"])
def test_logits_are_those_of_rounded_layers(tmp_path: Path, card: str) -> None:
    path, reference = measured_llama(tmp_path, 240 if card.startswith("gaudi2") else 448)
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])

    def run(device: Device) -> torch.Tensor:
        driver = make_driver(tmp_path, device, quant_config=str(path))
        return whole(driver, [*PROMPT, 0], len(PROMPT))

    if card:
        with open_compiling(card) as device:
            got = run(device)
    else:
        got = run(Keeping(1))
    assert_near(got, wanted[-1:])
    (exact,) = transformers_logprobs(tmp_path, None, [PROMPT])
    assert (exact[-1] - wanted[-1]).abs().median() > 0.01


def test_a_device_that_does_not_keep_fp8_has_dense_weights(tmp_path: Path) -> None:
    """Its inputs are not rounded."""
    path, reference = measured_llama(tmp_path, 448, inputs=False)
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])
    driver = make_driver(tmp_path, CpuDevice(1), quant_config=str(path))
    assert (whole(driver, [*PROMPT, 0], len(PROMPT)) - wanted[-1:]).abs().max() < 1e-4


def make_texts(folder: Path) -> Path:
    lines = [{"text": "the river of a small town"}, {"messages": [{"role": "user", "content": "violin"}]}]
    data = folder / "texts.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    return data


def test_calibration_finds_the_greatest_inputs_keys_and_values(tmp_path: Path) -> None:
    """As hooks in transformers' model do."""
    data, source = make_texts(tmp_path), Source(str(DEMO_MODEL))
    assert calibrate.calibrate(source, data, tmp_path / "a", weights=True, texts=9, tokens=12) == 0
    nodes = json.loads((tmp_path / "a" / calibrate.MEASUREMENTS).read_text())["Nodes"]
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    wanted: dict[str, float] = {}

    def note(name: str, x: torch.Tensor) -> None:
        wanted[name] = max(wanted.get(name, 0), float(x.abs().max()))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
    with torch.no_grad():
        for prompt in calibrate.read_prompts(DEMO_MODEL, data, 9, 12):
            cache = model(torch.tensor([prompt]), use_cache=True).past_key_values
            for index, layer in enumerate(cache.layers):
                for kind, tensor in (("k", layer.keys), ("v", layer.values)):
                    note(f"model.layers.{index}.self_attn.{kind}_cache", tensor)
    assert nodes.keys() == wanted.keys()
    for name, most in wanted.items():
        assert nodes[name]["inputs"][0][0][0] == pytest.approx(most, rel=0.05), name


def test_texts_may_have_the_line_separators_of_unicode(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a\u2028b"}\r\n\n{"text": "c"}\n', "utf-8")
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    wanted = [tokenizer.encode(text) for text in ("a\u2028b", "c")]
    assert list(calibrate.read_prompts(DEMO_MODEL, data, 9, 12)) == wanted


def test_a_calibrated_cache_is_nearer_than_one_with_scales_of_1(tmp_path: Path) -> None:
    """Values of this model are too small for 8 bits without a scale."""
    model = make_llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if "v_proj" in name:
            tensors[name] *= 1e-3
        elif "o_proj" in name:
            tensors[name] *= 1e3
    save_file(tensors, model / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (model / name).exists():
            (model / name).write_bytes((DEMO_MODEL / name).read_bytes())
    data, source, output = make_texts(tmp_path), Source(str(model)), tmp_path / "a"
    assert calibrate.calibrate(source, data, output, weights=False, texts=9, tokens=64) == 0
    found, fp8 = [], "fp8_e4m3fn"
    for kv_cache_dtype, scales in (("", ""), (fp8, ""), (fp8, str(output / calibrate.CONFIG))):
        with open_compiling("gaudi2-lazy") as device:
            driver = make_driver(model, device, kv_cache_dtype=kv_cache_dtype, quant_config=scales)
            found.append(decoded(driver, 0, [*PROMPT, 5, 6, 7], len(PROMPT)))
    exact, plain, calibrated = found
    assert (calibrated - exact).abs().mean() < 0.3 * (plain - exact).abs().mean()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "line 1 is not JSON"),
        (b'{"a": 1}', 'line 1 has neither "text"'),
        (b"", "has no text"),
        (b"\xff", "is not text in UTF-8"),
    ],
)
def test_texts_that_cannot_be_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], line: bytes, fault: str
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_bytes(line)
    source = Source(str(DEMO_MODEL))
    assert calibrate.calibrate(source, data, tmp_path, weights=False, texts=9, tokens=9) == 1
    assert fault in capfd.readouterr().err
