"""What torch's attention takes for the shapes of bench-kernels-attention, on the same GPU.

    bench-kernels-attention --list | python3 bench/attention_peers.py --out=peers.json

A line of the list: name, heads, KV heads, sequences, queries each, shared keys, own keys. Everything is
bf16 (torch has no FP8 attention), KV contiguous, one tensor a sequence; a shared context is copied for
every sequence except where a peer can read it once:
  cuDNN, FlashAttention-2   scaled_dot_product_attention's backends
  bifurcated einsum         the context's product, the own keys' product, one softmax over both, compiled
                            (the method of arXiv 2403.08845 as its authors run it)
  FlexAttention             compiled; a shared context as a block mask over one row of keys
Times: medians of CUDA graph replays over rotating KV copies of 1 GiB in all, two at least.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

HEAD_DIM = 128
ROTATED_BYTES = 1 << 30
MAX_BYTES = 10 << 30  # of one copy
# A compilation takes seconds: these shapes only.
COMPILED = {
    "decode/heads=32:8/ctx=4096/b=32",
    "shared/heads=32:8/ctx=8192/private=64/b=64",
    "shared/heads=32:8/ctx=8192/private=64/b=256",
}


def median_us(launch, num_launches, replays=7):
    """Of launch(i), i counting, in a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            launch(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(num_launches):
                launch(i)
        times = []
        for _ in range(replays + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / num_launches)
    return statistics.median(times[1:])


def normal(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def rotate(make, num_bytes):
    """Copies of what make() gives, and how many launches take turns over them."""
    num = max(2, min(64, ROTATED_BYTES // num_bytes))
    return [make() for _ in range(num)], max(8, num)


class Case:
    def __init__(self, line):
        self.name = line.split()[0]
        numbers = map(int, line.split()[1:])
        self.heads, self.kv_heads, self.seqs, self.queries, self.shared, self.own = numbers
        self.keys = self.shared + self.own

    def token_bytes(self):
        return 2 * self.kv_heads * HEAD_DIM * 2

    def sdpa(self, backend):
        num_bytes = self.seqs * self.keys * self.token_bytes()
        if num_bytes > MAX_BYTES:
            return None
        q = normal(self.seqs, self.heads, self.queries, HEAD_DIM)
        shape = (self.seqs, self.kv_heads, self.keys, HEAD_DIM)
        kv, num_launches = rotate(lambda: (normal(*shape), normal(*shape)), num_bytes)

        def launch(i):
            k, v = kv[i % len(kv)]
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=self.queries > 1, enable_gqa=self.kv_heads < self.heads)

        with sdpa_kernel(backend), torch.no_grad():
            return median_us(launch, num_launches)

    def bifurcated_einsum(self):
        if self.shared == 0:
            return None
        group = self.heads // self.kv_heads
        q = normal(self.seqs, self.kv_heads, group, HEAD_DIM)
        own_shape = (self.seqs, self.kv_heads, self.own, HEAD_DIM)
        shared_shape = (self.kv_heads, self.shared, HEAD_DIM)
        num_bytes = (self.shared + self.seqs * self.own) * self.token_bytes()
        kv, num_launches = rotate(
            lambda: [normal(*s) for s in (shared_shape, shared_shape, own_shape, own_shape)],
            num_bytes)

        def attend(q, k_shared, v_shared, k_own, v_own):
            scores = torch.cat((torch.einsum("sgpd,gmd->sgpm", q, k_shared),
                                torch.einsum("sgpd,sgmd->sgpm", q, k_own)), dim=-1)
            weights = torch.softmax(scores.float() * HEAD_DIM ** -0.5, dim=-1).to(q.dtype)
            w_shared, w_own = weights.split((self.shared, self.own), dim=-1)
            return (torch.einsum("sgpm,gmd->sgpd", w_shared, v_shared)
                    + torch.einsum("sgpm,sgmd->sgpd", w_own, v_own))

        compiled = torch.compile(attend, dynamic=False)
        with torch.no_grad():
            return median_us(lambda i: compiled(q, *kv[i % len(kv)]), num_launches)

    def flex(self):
        compiled = torch.compile(flex_attention, dynamic=False)
        mask = None
        if self.shared > 0:
            # All sequences' queries in a row over the context and all own keys in a row.
            q = normal(1, self.heads, self.seqs, HEAD_DIM)
            shape = (1, self.kv_heads, self.shared + self.seqs * self.own, HEAD_DIM)

            def sees(_batch, _head, query, key):
                return (key < self.shared) | ((key - self.shared) // self.own == query)

            mask = create_block_mask(sees, None, None, self.seqs, shape[2], device="cuda")
        else:
            q = normal(self.seqs, self.heads, self.queries, HEAD_DIM)
            shape = (self.seqs, self.kv_heads, self.keys, HEAD_DIM)
        num_bytes = shape[0] * shape[2] * self.token_bytes()
        kv, num_launches = rotate(lambda: (normal(*shape), normal(*shape)), num_bytes)
        with torch.no_grad():
            return median_us(
                lambda i: compiled(q, *kv[i % len(kv)], block_mask=mask,
                                   enable_gqa=self.kv_heads < self.heads), num_launches)


def ceilings():
    """GFLOP/s of large products."""
    a, b = normal(8192, 8192), normal(8192, 8192)
    bf16 = 2 * 8192 ** 3 / median_us(lambda _: a @ b, 4) * 1e-3
    m, n, k = 4096, 28672, 4096
    x = normal(m, k).to(torch.float8_e4m3fn)
    w = normal(n, k).to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    fp8 = 2 * m * n * k / median_us(
        lambda _: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16),
        4) * 1e-3
    return {"matmul_bf16_gflops": bf16, "matmul_fp8_gflops": fp8}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=60, help="begin nothing after so long")
    args = parser.parse_args()
    start = time.monotonic()
    cases = [Case(line) for line in sys.stdin if line.strip()]
    result = {"ceilings": ceilings(), "peers": {}}
    print(result["ceilings"], flush=True)
    jobs = [("cuDNN bf16", c, lambda c: c.sdpa(SDPBackend.CUDNN_ATTENTION)) for c in cases]
    jobs += [("FlashAttention-2 bf16", c, lambda c: c.sdpa(SDPBackend.FLASH_ATTENTION))
             for c in cases if c.kv_heads < c.heads]
    compiled = [c for c in cases if c.name in COMPILED]
    jobs += [("bifurcated einsum bf16", c, Case.bifurcated_einsum) for c in compiled]
    jobs += [("FlexAttention bf16", c, Case.flex) for c in compiled]
    for peer, case, measure in jobs:
        if time.monotonic() - start > args.seconds:
            print(f"{peer} {case.name}: no time left", flush=True)
            continue
        try:
            us = measure(case)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            print(f"{peer} {case.name}: {str(error).splitlines()[0]}", flush=True)
            continue
        finally:
            torch.cuda.empty_cache()
        if us is not None:
            result["peers"].setdefault(case.name, {})[peer] = us
            print(f"{time.monotonic() - start:5.1f} s  {case.name}  {peer} {us:.1f} us", flush=True)
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
