"""The demo model in plain PyTorch: Mixtral's equations, Muon + AdamW, and the published file layout.

All experts are computed for every token and the ones not chosen are multiplied by zero: at this size
two large matrix products beat gathering tokens by expert, and the function is the same.
"""
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

kShortSeq, kLongSeq = 1024, 4096
kLongShare = 0.18  # the last part of the training time, at kLongSeq
kProbe = ("r-cran-janeaustenr", "anarchism", "endless-sky-data", "python-django-doc")
kAuxLoss, kRouterZLoss, kLogitZLoss = 0.01, 1e-3, 1e-5


def rms_norm(x, weight, eps):
    return (F.rms_norm(x.float(), (x.shape[-1],), eps=eps) * weight).to(x.dtype)


def rope_tables(seq_len, head_dim, theta, device):
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.arange(seq_len, device=device).float()[:, None] * inverse
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x, cos, sin):  # [batch, heads, seq, head_dim]
    first, second = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        h, d, inter, e = c["hidden_size"], c["head_dim"], c["intermediate_size"], c["num_local_experts"]
        self.c = c
        out_std = 0.02 / math.sqrt(2 * c["num_hidden_layers"])

        def matrix(*shape, std=0.02):
            return nn.Parameter(std * torch.randn(shape))

        self.attn_norm, self.moe_norm = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.q = matrix(c["num_attention_heads"] * d, h)
        self.k = matrix(c["num_key_value_heads"] * d, h)
        self.v = matrix(c["num_key_value_heads"] * d, h)
        self.o = matrix(h, c["num_attention_heads"] * d, std=out_std)
        self.gate = matrix(e, h)
        self.w1, self.w3 = matrix(e, inter, h), matrix(e, inter, h)
        self.w2 = matrix(e, h, inter, std=out_std)

    def attention(self, x, cos, sin):
        c, (b, t, _) = self.c, x.shape
        q, k, v = (F.linear(x, w.to(x.dtype)).view(b, t, -1, c["head_dim"]).transpose(1, 2)
                   for w in (self.q, self.k, self.v))
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = rotate(k, cos, sin).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        return F.linear(out.transpose(1, 2).reshape(b, t, -1), self.o.to(x.dtype))

    def moe(self, x):
        e, top_k = self.c["num_local_experts"], self.c["num_experts_per_tok"]
        logits = F.linear(x.float(), self.gate)
        probs = logits.softmax(-1)
        best, chosen = probs.topk(top_k, -1)
        weights = torch.zeros_like(probs).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        w1, w3 = (w.to(x.dtype).flatten(0, 1) for w in (self.w1, self.w3))
        hidden = F.silu(F.linear(x, w1)) * F.linear(x, w3)
        hidden = (hidden.unflatten(-1, (e, -1)) * weights.to(x.dtype)[..., None]).flatten(-2)
        y = F.linear(hidden, self.w2.to(x.dtype).transpose(0, 1).flatten(1))
        load = (weights > 0).float().flatten(0, -2).mean(0) / top_k
        aux = kAuxLoss * e * (load * probs.flatten(0, -2).mean(0)).sum()
        return y, aux + kRouterZLoss * logits.logsumexp(-1).square().mean(), load

    def forward(self, x, cos, sin):
        eps = self.c["rms_norm_eps"]
        x = x + self.drop(self.attention(rms_norm(x, self.attn_norm, eps), cos, sin))
        y, aux, load = self.moe(rms_norm(x, self.moe_norm, eps))
        return x + self.drop(y), aux, load


class DemoModel(nn.Module):
    def __init__(self, c, dropout=0.0, dtype=torch.bfloat16):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.c, self.dtype = c, dtype
        self.embed = nn.Parameter(0.02 * torch.randn(c["vocab_size"], c["hidden_size"]))
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.head = nn.Parameter(0.02 * torch.randn(c["vocab_size"], c["hidden_size"]))

    def forward(self, ids):
        """Logits [batch, seq, vocab], auxiliary loss, share of tokens per expert [layers, experts]."""
        cos, sin = rope_tables(ids.shape[1], self.c["head_dim"], self.c["rope_theta"], ids.device)
        x, total, loads = self.drop(F.embedding(ids, self.embed).to(self.dtype)), 0.0, []
        for layer in self.layers:
            x, aux, load = layer(x, cos, sin)
            total = total + aux
            loads.append(load)
        x = rms_norm(x, self.norm, self.c["rms_norm_eps"])
        return F.linear(x, self.head.to(self.dtype)), total, torch.stack(loads)

    def loss(self, ids, targets):
        logits, aux, loads = self(ids)
        logits = logits.float()
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return nll + aux + kLogitZLoss * logits.logsumexp(-1).square().mean(), nll, loads

    def published(self):
        """Tensors by their published names, rounded to bf16."""
        out = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm, "lm_head.weight": self.head}
        for i, layer in enumerate(self.layers):
            name = f"model.layers.{i}"
            out[f"{name}.input_layernorm.weight"] = layer.attn_norm
            out[f"{name}.post_attention_layernorm.weight"] = layer.moe_norm
            for p in "qkvo":
                out[f"{name}.self_attn.{p}_proj.weight"] = getattr(layer, p)
            out[f"{name}.block_sparse_moe.gate.weight"] = layer.gate
            for e in range(self.c["num_local_experts"]):
                for w in ("w1", "w2", "w3"):
                    out[f"{name}.block_sparse_moe.experts.{e}.{w}.weight"] = getattr(layer, w)[e]
        return {k: v.detach().to(torch.bfloat16).contiguous().cpu() for k, v in out.items()}


# ---------------------------------------------------------------- optimiser


def orthogonalise(g):
    """Newton-Schulz iteration of Muon on a stack of wide matrices [n, rows, columns]."""
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Muon:
    """Orthogonalised momentum for the layers' matrices; stacks equal shapes into one batch."""

    def __init__(self, params, weight_decay):
        self.weight_decay, self.groups = weight_decay, {}
        for p in params:
            self.groups.setdefault(tuple(sorted(p.shape[-2:])), []).append(p)
        self.momentum = {shape: None for shape in self.groups}

    @torch.no_grad()
    def step(self, lr, beta):
        for shape, params in self.groups.items():
            tall = [p.shape[-2] > p.shape[-1] for p in params]
            grads = [p.grad.mT if t else p.grad for p, t in zip(params, tall)]
            stack = torch.cat([g.reshape(-1, *shape) for g in grads])
            if self.momentum[shape] is None:
                self.momentum[shape] = torch.zeros_like(stack)
            m = self.momentum[shape].lerp_(stack, 1 - beta)
            update = orthogonalise(stack.lerp(m, beta)).float()
            for p, t, u in zip(params, tall, update.split([g.numel() // (shape[0] * shape[1]) for g in grads])):
                u = (u.mT if t else u).reshape(p.shape)
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - lr * self.weight_decay).add_(u, alpha=-lr * scale)


# ---------------------------------------------------------------- training


def schedule(progress):
    """Warm-up, plateau, linear decay to zero, by the share of the training time gone."""
    return min(1.0, progress / 0.015, (1 - progress) / 0.6) if progress < 1 else 0.0


@torch.no_grad()
def nats(model, docs, device, window=kLongSeq):
    """Sum of -log p over a stream of documents, in windows of `window` tokens."""
    stream, total = np.concatenate(docs).astype(np.int64), 0.0
    for i in range(0, len(stream) - 1, window):
        ids = torch.from_numpy(stream[i:i + window + 1]).to(device)[None]
        total += F.cross_entropy(model(ids[:, :-1])[0].float()[0], ids[0, 1:], reduction="sum").item()
    return total


@torch.no_grad()
def sample(model, tokenizer, prompt, device, seed, count=180, temperature=0.7, top_p=0.95):
    ids, generator = [1] + tokenizer.encode(prompt), torch.Generator(device).manual_seed(seed)
    start = len(ids)
    while len(ids) < start + count:
        padded = torch.tensor([ids + [0] * (512 - len(ids))], device=device)
        probs = (model(padded)[0][0, len(ids) - 1].float() / temperature).softmax(-1)
        ordered, index = probs.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered > top_p] = 0
        ids.append(int(index[torch.multinomial(ordered, 1, generator=generator)]))
        if ids[-1] == 2:
            break
    return tokenizer.decode(ids[start:]), ids[-1] == 2


def train(args, config, corpus, prompts):
    import sentencepiece as spm
    started, device = time.time(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    tokenizer = spm.SentencePieceProcessor(str(args.cache / "tokenizer.model"))
    model = DemoModel(config, args.dropout).to(device)
    matrices = [p for layer in model.layers for p in (layer.q, layer.k, layer.v, layer.o, layer.w1, layer.w2, layer.w3)]
    muon = Muon(matrices, weight_decay=0.1)
    ids = {id(p) for p in matrices}
    adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in ids], lr=args.adam_lr,
                             betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda")
    loss_of = torch.compile(model.loss, dynamic=False) if device == "cuda" else model.loss
    source = corpus.batches(args.batch)

    def batch(seq):
        flat = torch.from_numpy(next(source).astype(np.int64)).to(device, non_blocking=True)
        return flat[:-1].view(-1, seq), flat[1:].view(-1, seq)

    for seq in (kLongSeq, kShortSeq):  # compile both shapes before the clock of the schedule starts
        loss_of(*batch(seq))[0].backward()
        model.zero_grad()
        print(f"compiled at {seq}: {time.time() - started:.0f} s", flush=True)
    begin, step, tokens, nll = time.time(), 0, 0, None
    while True:
        if step % 10 == 0 and nll is not None:
            nll.item()  # keep the clock honest: the device's queue must not run ahead
        progress = (time.time() - begin) / (args.seconds - (begin - started))
        if progress >= 1:
            break
        seq = kLongSeq if progress > 1 - kLongShare else kShortSeq
        loss, nll, loads = loss_of(*batch(seq))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = schedule(progress)
        adam.param_groups[0]["lr"] = args.adam_lr * rate
        adam.step()
        muon.step(args.muon_lr * rate, min(0.95, 0.85 + 0.1 * step / 300))
        model.zero_grad()
        step, tokens = step + 1, tokens + args.batch
        if step % 400 == 0:
            model.eval()
            for name in kProbe:
                docs = corpus.heldout[name][0][:20]
                print(f"held out, nats/token: {name} {nats(model, docs, device, seq) / sum(map(len, docs)):.3f}")
            model.train()
        if step % 100 == 0 or step in (1, 5, 20):
            print(f"step {step} {progress:.3f} seq {seq} nll {nll.item():.4f} load {loads.min():.3f}-{loads.max():.3f} "
                  f"{tokens / (time.time() - begin) / 1e6:.2f} M tok/s", flush=True)
    seconds = time.time() - begin
    finish(args, config, model, corpus, tokenizer, prompts, device, dict(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu", steps=step, tokens=tokens,
        unique_tokens=corpus.unique_tokens, train_seconds=round(seconds, 1), muon_lr=args.muon_lr, adam_lr=args.adam_lr, dropout=args.dropout,
        expert_load=[[round(x, 3) for x in row] for row in loads.tolist()]))


def finish(args, config, model, corpus, tokenizer, prompts, device, report):
    """Exports first, then measures what was exported: the model is reloaded with the rounded weights."""
    model.eval()
    weights = model.published()
    write_folder(args.out, config, weights)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    per_source, all_nats, all_bytes = {}, 0.0, 0
    for name, (docs, size) in corpus.heldout.items():
        n = nats(model, docs, device)
        per_source[name] = round(n / math.log(2) / size, 4)
        all_nats, all_bytes = all_nats + n, all_bytes + size
    held_tokens = sum(len(d) for docs, _ in corpus.heldout.values() for d in docs)
    report.update(heldout_bits_per_byte=round(all_nats / math.log(2) / all_bytes, 4), heldout_bytes=all_bytes,
                  heldout_nats_per_token=round(all_nats / held_tokens, 4), per_source=per_source)
    report["samples"] = []
    for i, prompt in enumerate(prompts):
        text, ended = sample(model, tokenizer, prompt, device, seed=i)
        report["samples"].append({"prompt": prompt, "text": text, "ended": ended})
        print(f"--- {prompt}\n{text}", flush=True)
    model.dtype = torch.float32
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        check = torch.from_numpy(next(corpus.batches(256))[:256].astype(np.int64)).to(device)[None]
        save_file({"ids": check[0].int().cpu(), "logits": model(check)[0][0, -8:].float().cpu()}, args.out / "check.safetensors")
    (args.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "samples"}), flush=True)


def write_folder(out, config, weights, num_shards=3):
    """config.json and the weights as numbered shards with an index, as large checkpoints come."""
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = {k: v.numel() * v.element_size() for k, v in weights.items()}
    total, shards, filled = sum(size.values()), [{}], 0
    for name, tensor in weights.items():
        if filled + size[name] > total / num_shards * 1.02 and len(shards) < num_shards:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size[name]
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, out / file, {"format": "pt"})
        index["weight_map"].update({name: file for name in shard})
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
