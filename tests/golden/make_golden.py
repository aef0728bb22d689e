#!/usr/bin/env python3
"""Writes the golden files beside this script: what Hugging Face transformers computes in fp32 on a CPU.

    pip install torch transformers safetensors sentencepiece
    python3 make_golden.py tiny         # tiny_mixtral/ tiny_llama/ tiny_mistral/
    python3 make_golden.py demo         # demo.safetensors, demo.json   (reads models/demo)
    python3 make_golden.py tokenizer    # tokenizer.json                (reads models/demo)

Tiny models are seeded and random, with odd sizes on purpose; token id = byte + 3, so that 259 ids
cover <unk>, <s>, </s> and all bytes. Their golden.safetensors holds, for prompts i = 0..3:
    ids_<i>     int32 [T]           T = 1, 7, 70, 130
    logits_<i>  f32   [T, vocab]    at every position
    greedy_<i>  int32 [32]          argmax continuation; ids_<i> + greedy_<i> is one sequence
demo.json: "logits" prompts (ids) whose last-position logits are rows of demo.safetensors `logits`
[8, vocab] f32; "greedy": {"prompts": 32 lists of ids, "tokens": 64 argmax ids each, EOS ignored}.

Weights are stored in 16 or 32 bits; the reference widens them to fp32 and stays there. No greedy step
has a gap under kMinGap between its best two logits, and no tiny Mixtral router has one between the
last expert chosen and the first one left out, so an fp32 implementation has no coin to toss.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
DEMO = HERE.parent.parent / "models" / "demo"
kMinGap = 1e-4
kTinyLengths = (1, 7, 70, 130)
kTinyGreedy = 32
kDemoGreedy = 64

TINY = {
    # Nothing is a power of two: 3 query heads on 1 KV head, 5 experts.
    "tiny_mixtral": dict(
        architectures=["MixtralForCausalLM"], model_type="mixtral", hidden_size=96, head_dim=32,
        num_attention_heads=3, num_key_value_heads=1, intermediate_size=80, num_local_experts=5,
        num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.02,
        rms_norm_eps=1e-5, rope_theta=1e6, sliding_window=None, tie_word_embeddings=False,
        torch_dtype="bfloat16"),
    # Plain multi-head attention, shared embeddings, fp32 weights; head_dim is left to be derived.
    "tiny_llama": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=112, attention_bias=False,
        mlp_bias=False, pretraining_tp=1, rope_scaling=None, rms_norm_eps=1e-6, rope_theta=1e4,
        tie_word_embeddings=True, torch_dtype="float32"),
    # Prompts of 70 and 130 tokens run far past the window of 16; fp16 weights.
    "tiny_mistral": dict(
        architectures=["MistralForCausalLM"], model_type="mistral", hidden_size=64, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=112, rms_norm_eps=1e-5,
        rope_theta=1e4, sliding_window=16, tie_word_embeddings=False, torch_dtype="float16"),
}
COMMON = dict(
    attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu", initializer_range=0.02,
    max_position_embeddings=512, num_hidden_layers=2, use_cache=True, vocab_size=259)


def tiny_weights(c, generator):
    """Random weights under the published tensor names, large enough that logits are not flat."""
    dtype = getattr(torch, c["torch_dtype"])
    h, inter = c["hidden_size"], c["intermediate_size"]
    d = c.get("head_dim", h // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    weights = {}

    # A tied head makes a model echo its input unless the layers outweigh the embedding.
    tied = c["tie_word_embeddings"]

    def add(name, *shape, std=0.25 if tied else 0.12, mean=0.0):
        weights[name] = (mean + std * torch.randn(shape, generator=generator)).to(dtype)

    def add_mlp(prefix, names):
        for name, shape in zip(names, ((inter, h), (h, inter), (inter, h))):
            add(f"{prefix}.{name}.weight", *shape)

    add("model.embed_tokens.weight", c["vocab_size"], h, std=0.15 if tied else 0.5)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        add(f"{layer}.input_layernorm.weight", h, mean=1.0)
        add(f"{layer}.post_attention_layernorm.weight", h, mean=1.0)
        add(f"{layer}.self_attn.q_proj.weight", q, h)
        add(f"{layer}.self_attn.k_proj.weight", kv, h)
        add(f"{layer}.self_attn.v_proj.weight", kv, h)
        add(f"{layer}.self_attn.o_proj.weight", h, q)
        if "num_local_experts" in c:
            add(f"{layer}.block_sparse_moe.gate.weight", c["num_local_experts"], h)
            for e in range(c["num_local_experts"]):
                add_mlp(f"{layer}.block_sparse_moe.experts.{e}", ("w1", "w2", "w3"))
        else:
            add_mlp(f"{layer}.mlp", ("gate_proj", "down_proj", "up_proj"))
    add("model.norm.weight", h, mean=1.0)
    if not tied:
        add("lm_head.weight", c["vocab_size"], h)
    return weights


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def gap(logits, k=1):
    """Smallest distance between the k-th largest logit and the next one."""
    top = logits.topk(k + 1, dim=-1).values
    return (top[..., k - 1] - top[..., k]).min().item()


@torch.inference_mode()
def greedy(model, ids, num_tokens):
    """Argmax continuation through the KV cache and its smallest top-2 gap."""
    step, cache, out, smallest = torch.tensor([ids]), None, [], float("inf")
    for _ in range(num_tokens):
        result = model(step, past_key_values=cache, use_cache=True)
        cache, last = result.past_key_values, result.logits[0, -1]
        smallest = min(smallest, gap(last))
        out.append(int(last.argmax()))
        step = torch.tensor([out[-1:]])
    return out, smallest


@torch.inference_mode()
def tiny_prompt(model, config, length, generator):
    """Draws prompts until neither the continuation nor the routing hangs on a near-tie."""
    is_moe = "num_local_experts" in config
    while True:
        ids = [1] + torch.randint(3, config["vocab_size"], (length - 1,), generator=generator).tolist()
        if length == 1:
            ids = [int(torch.randint(3, config["vocab_size"], (1,), generator=generator))]
        tokens, smallest = greedy(model, ids, kTinyGreedy)
        whole = model(torch.tensor([ids + tokens]), use_cache=False,
                      **({"output_router_logits": True} if is_moe else {}))
        assert whole.logits[0, length - 1:-1].argmax(-1).tolist() == tokens  # cache or not: the same
        if is_moe:
            top_k = config["num_experts_per_tok"]
            smallest = min([smallest] + [gap(r, top_k) for r in whole.router_logits])
        if smallest >= kMinGap:
            return ids, whole.logits[0, :length].clone(), tokens, smallest


def make_tiny():
    for seed, (name, own) in enumerate(TINY.items()):
        config = dict(sorted({**COMMON, **own}.items()))
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generator = torch.Generator().manual_seed(1000 + seed)
        save_file(tiny_weights(config, generator), folder / "model.safetensors", {"format": "pt"})
        model, golden, smallest = load(folder), {}, float("inf")
        for i, length in enumerate(kTinyLengths):
            ids, logits, tokens, g = tiny_prompt(model, config, length, generator)
            smallest = min(smallest, g)
            golden[f"ids_{i}"] = torch.tensor(ids, dtype=torch.int32)
            golden[f"logits_{i}"] = logits
            golden[f"greedy_{i}"] = torch.tensor(tokens, dtype=torch.int32)
        save_file(golden, folder / "golden.safetensors")
        std = golden["logits_3"].std().item()
        print(f"{name}: logits std {std:.2f}, smallest gap {smallest:.1e}")


def heldout_prompts(tokenizer, lengths):
    """BOS + consecutive stretches of the model's held-out text, one per length."""
    ids = tokenizer.encode((DEMO / "heldout.txt").read_text())
    start = 0
    for length in lengths:
        yield [1] + ids[start:start + length - 1]
        start += 1400


@torch.inference_mode()
def make_demo():
    import sentencepiece
    tokenizer = sentencepiece.SentencePieceProcessor(str(DEMO / "tokenizer.model"))
    model = load(DEMO)
    prompts = list(heldout_prompts(tokenizer, (1, 2, 5, 17, 64, 65, 150, 300)))
    logits = torch.stack([model(torch.tensor([p]), use_cache=False).logits[0, -1] for p in prompts])
    save_file({"logits": logits.contiguous()}, HERE / "demo.safetensors")
    lengths = torch.linspace(5, 200, 32).int().tolist()
    candidates = heldout_prompts(tokenizer, lengths + [40] * 3)
    greedy_prompts, greedy_tokens, smallest = [], [], float("inf")
    for prompt in candidates:
        if len(greedy_prompts) == 32:
            break
        tokens, g = greedy(model, prompt, kDemoGreedy)
        if g >= kMinGap:
            greedy_prompts.append(prompt)
            greedy_tokens.append(tokens)
            smallest = min(smallest, g)
    assert len(greedy_prompts) == 32
    content = {"logits": {"prompts": prompts}, "greedy": {"prompts": greedy_prompts, "tokens": greedy_tokens}}
    (HERE / "demo.json").write_text(json.dumps(content) + "\n")
    print(f"demo: smallest gap {smallest:.1e}")


STRINGS = [
    "", " ", "  ", "\n", "\n\n", "\t", "a", "A", "Hello", " Hello", "Hello ", "  Hello  ", "Hello, world!",
    "hello world", "HELLO WORLD", "The quick brown fox jumps over the lazy dog.", "Hello\nworld", "Hello\n\nworld\n",
    "\r\nwindows\r\n", "one\ttwo", "   three leading", "trailing three   ", "in   the   middle", "don't", "it's 'quoted'",
    '"double"', "semi;colon:comma,", "0", "42", "1234567890", "3.14159", "1,000,000", "2026-11-22", "v1.2.3-rc4",
    "café", "naïve façade", "Ünïcödé", "Straße", "Привет, мир", "你好，世界", "こんにちは", "مرحبا", "שלום", "नमस्ते",
    "😀", "Hi 😀!", "👨‍👩‍👧‍👦", "e\u0301 combining", "\u00a0nbsp", "zero\u200bwidth", "“curly” ‘quotes’ — dash…",
    "<s>", "</s>", "<unk>", "<s> text </s>", "<0x0A>", "[INST] hi [/INST]", "▁", "x = {a[0] | b & ~c}; // code",
    "In the beginning God created the heaven and the earth. " * 3]
CONVERSATIONS = [
    [("user", "Hello!")],
    [("user", "What is a violin?")],
    [("user", "Hello!"), ("assistant", "Hi. What would you like to know?"), ("user", "What is a lighthouse?")],
    [("system", "You are a helpful assistant."), ("user", "Who are you?")],
    [("system", "Answer briefly."), ("user", "Define river."), ("assistant", "A river is a large stream."), ("user", "Thanks!")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "Goodbye!")],
    [("user", "Two\nlines\n\nand 😀 Straße 123")],
    [("system", "Système."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "[INST] e [/INST]")],
]


def chat_ids(tokenizer, messages):
    """Mixtral-8x7B-Instruct's rule, a turn at a time; each piece of text is encoded by itself, so that
    the tokenizer's dummy prefix supplies the space which the published template writes before it:
        <s>  then for every turn   encode("[INST] " + user + " [/INST]")   or   encode(assistant) </s>
    A leading system message joins the first user message: system + "\\n\\n" + user. Marks such as "<s>"
    inside a message are plain text. An assistant turn at the end is closed with </s> too.
    """
    ids, system = [tokenizer.bos_id()], ""
    for role, content in messages:
        if role == "system":
            system = content + "\n\n"
        elif role == "user":
            ids += tokenizer.encode(f"[INST] {system}{content} [/INST]")
            system = ""
        else:
            ids += tokenizer.encode(content) + [tokenizer.eos_id()]
    return ids


def make_tokenizer():
    import sentencepiece
    tokenizer = sentencepiece.SentencePieceProcessor(str(DEMO / "tokenizer.model"))
    assert len(STRINGS) == 60 and len(CONVERSATIONS) == 8
    strings = [{"text": s, "ids": tokenizer.encode(s), "decoded": tokenizer.decode(tokenizer.encode(s))} for s in STRINGS]
    chats = [{"messages": [{"role": r, "content": c} for r, c in m], "ids": chat_ids(tokenizer, m)} for m in CONVERSATIONS]
    content = {"strings": strings, "chats": chats}
    (HERE / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    print("tokenizer:", sum(s["decoded"] == s["text"] for s in strings), "of 60 strings decode to themselves")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("tiny", "demo", "tokenizer"))
    for what in parser.parse_args().what:
        {"tiny": make_tiny, "demo": make_demo, "tokenizer": make_tokenizer}[what]()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
