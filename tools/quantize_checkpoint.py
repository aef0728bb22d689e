#!/usr/bin/env python3
"""Writes an FP8 (e4m3) copy of a bf16, f16 or f32 Mixtral, Mistral or Llama folder.

    python3 quantize_checkpoint.py MODEL OUT [--scales channel|tensor]

The linear layers of attention, experts and MLP are quantised; embedding, norms, the experts' gate and
lm_head stay as they are. Needs numpy, takes about a minute per 10 GB and memory for one tensor.

    --scales channel   one scale per output channel, a compressed-tensors folder. The numbers are
                       those of bough-worker --quantization=fp8.
    --scales tensor    one scale per tensor, as AutoFP8 publishes them

value = element * X.weight_scale, elements rounded to the nearest even. scale = amax / 448; per channel
the best of that times 1, 1 1/16, ... 1 15/16: the one with the least sum of (value - weight)^2.
"""
import argparse
import json
import pathlib
import shutil
import struct

import numpy as np

MAX = np.float32(448)
SCALE_STEPS = 16  # kNumScaleSteps of kernels/elementwise.h
INDEX = "model.safetensors.index.json"
SCHEMES = {
    "tensor": {"quant_method": "fp8", "activation_scheme": "dynamic",
               "ignored_layers": ["lm_head", "re:.*gate$"]},
    "channel": {
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True,
                        "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token",
                                  "symmetric": True, "dynamic": True}}}}}


def is_linear(name):
    return name.endswith("_proj.weight") or (".experts." in name and name.endswith(".weight"))


def to_f32(raw, dtype):
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise SystemExit(f"dtype {dtype} cannot be quantised (only F32, F16, BF16)")


def to_e4m3(x):
    """Bytes of f32 values, |x| <= 448; nearest even."""
    bits = x.view(np.uint32)
    sign = ((bits >> 24) & 0x80).astype(np.uint8)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # Normal: cut 20 of 23 mantissa bits, exponent bias 127 becomes 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Subnormal (below 2^-6): a multiple of 2^-9.
    subnormal = np.rint(magnitude.view(np.float32) * np.float32(2**9))
    small = magnitude < np.float32(2**-6).view(np.uint32)
    return sign | np.where(small, subnormal, np.minimum(normal, 0x7E)).astype(np.uint8)


def e4m3_values():
    """The value of each byte."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0**(exponent - 10.0))
    return np.where(code < 128, size, -size).astype(np.float32)


def quantize(values, scales):
    """[rows, cols] f32 -> bytes, scales; a group without a value but 0 gets scale 1."""
    axis = 1 if scales == "channel" else None
    amax = np.abs(values).max(axis=axis, keepdims=True).astype(np.float32)
    if not np.isfinite(amax).all():
        raise SystemExit("holds inf or NaN")
    some = amax > 0
    inverse = np.divide(MAX, amax, where=some, out=np.zeros_like(amax))
    if scales == "tensor":
        scale = np.where(some, amax / MAX, np.float32(1)).astype(np.float32)
        return to_e4m3(values * inverse), scale.reshape(())
    value_of = e4m3_values()
    best_step, least_error = np.ones_like(amax), np.full_like(amax, np.inf)
    for j in range(SCALE_STEPS):
        step = np.float32(1 + j / SCALE_STEPS)
        rounded = value_of[to_e4m3(values * (inverse / step))] * (amax / MAX * step)
        error = ((rounded - values) ** 2).sum(axis=1, keepdims=True)
        best_step = np.where(error < least_error, step, best_step)
        least_error = np.minimum(error, least_error)
    scale = np.where(some, amax / MAX * best_step, np.float32(1)).astype(np.float32)
    return to_e4m3(values * (inverse / best_step)), scale


def read_header(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def new_header(header, scales):
    """Entries of the FP8 file, in the order in which they are written."""
    entries, end = {}, 0

    def add(name, dtype, shape, num_bytes):
        nonlocal end
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes

    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, finish) = entry["shape"], entry["data_offsets"]
        if not is_linear(name):
            add(name, entry["dtype"], shape, finish - begin)
            continue
        add(name, "F8_E4M3", shape, shape[0] * shape[1])
        rows = [shape[0], 1] if scales == "channel" else []
        add(name + "_scale", "F32", rows, 4 * (shape[0] if rows else 1))
    return entries, end


def convert(path, out, scales):
    header, data_begin = read_header(path)
    entries, num_bytes = new_header(header, scales)
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    data = np.memmap(path, np.uint8, "r", data_begin) if header else None
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in entries:
            if name not in header:
                continue  # a scale, written with its tensor
            begin, end = header[name]["data_offsets"]
            raw = np.array(data[begin:end])
            if not is_linear(name):
                file.write(raw.tobytes())
                continue
            try:
                values = to_f32(raw, header[name]["dtype"]).reshape(header[name]["shape"])
                elements, scale = quantize(values, scales)
            except SystemExit as error:
                raise SystemExit(f"{path}: tensor '{name}' {error}") from None
            file.write(elements.tobytes())
            file.write(scale.astype("<f4").tobytes())
    return list(entries), num_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--scales", choices=SCHEMES, default="channel")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    if config.get("quantization_config"):
        raise SystemExit(f"{args.model}/config.json: is quantised already")
    args.out.mkdir(parents=True, exist_ok=True)
    weight_map, total = {}, 0
    # A folder may also hold the weights in another vendor's layout; the index knows which are ours.
    index = args.model / INDEX
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [
        "model.safetensors"]
    for name in files:
        tensors, num_bytes = convert(args.model / name, args.out / name, args.scales)
        weight_map.update({tensor: name for tensor in tensors})
        total += num_bytes
        print(f"{args.out / name}: {num_bytes / 1e6:.1f} MB", flush=True)
    if index.exists():
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (args.out / INDEX).write_text(text + "\n")
    config["quantization_config"] = SCHEMES[args.scales]
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for pattern in ("tokenizer*", "special_tokens_map.json", "generation_config.json"):
        for path in args.model.glob(pattern):
            shutil.copy(path, args.out)


if __name__ == "__main__":
    main()
