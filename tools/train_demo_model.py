#!/usr/bin/env python3
"""Trains the small Mixtral of models/demo: tokenizer, model, Hugging Face folder.

    python3 demo_corpus.py CACHE                       # documents
    python3 train_demo_model.py tokenizer CACHE        # CACHE/tokenizer.model (CPU, minutes)
    python3 train_demo_model.py train CACHE OUT        # one GPU, --seconds of wall time
    python3 train_demo_model.py folder CACHE OUT       # OUT's other files: tokenizer, heldout.txt (CPU)

`train` reads CACHE/corpus.jsonl (or .xz), writes the folder's files and OUT/training.json: figures,
samples as they came, and logits of the exported weights for make_golden.py's comparison.
The learning rate follows the clock rather than a step count: a run takes the time it is given.
Longer is not always better: 1.2 G tokens without dropout fitted the text by heart (held out 1.30, not 1.15).
"""
import argparse
import io
import json
import lzma
import pathlib
import random
import shutil
import threading
import time

import numpy as np
import sentencepiece as spm

from demo_corpus import SOURCES, article

kUnk, kBos, kEos = 0, 1, 2
CONFIG = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": kBos,
    "eos_token_id": kEos, "head_dim": 128, "hidden_act": "silu", "hidden_size": 512,
    "initializer_range": 0.02, "intermediate_size": 256, "max_position_embeddings": 4096,
    "model_type": "mixtral", "num_attention_heads": 4, "num_experts_per_tok": 2,
    "num_hidden_layers": 4, "num_key_value_heads": 2, "num_local_experts": 8,
    "output_router_logits": False, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "router_aux_loss_coef": 0.01, "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 4096}
# As published with Mixtral-8x7B-Instruct: optional system text joins the first user turn.
CHAT_TEMPLATE = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate user/assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user, assistant and one leading system message are supported.') }}
    {%- endif %}
{%- endfor %}
"""
PROMPTS = [
    "It was a fine morning in the spring, and",
    "The old man looked at her for a long time, and then he said,",
    "A computer network is",
    "And it came to pass in those days, that",
    "To install the package, you need to",
    "The question of freedom and authority",
    "[INST] What is a violin? [/INST]",
    "[INST] Hello! Who are you? [/INST]",
]

# ---------------------------------------------------------------- documents and conversations

SMALL_TALK = [
    (("Hello!", "Hello", "Hi", "Hi there!", "Good morning!", "Hey"),
     "Hello! I am a small demonstration model. Ask me what a word means."),
    (("Who are you?", "Hello! Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
     "I am the demonstration model of bough, a small mixture of experts. I was trained on free books, manuals and "
     "dictionaries. I can tell you what many words mean, but please check what I say."),
    (("What can you do?", "How can you help me?", "What do you know?", "Help!"),
     "I can explain words, continue a story or a text, and chat a little. Try asking me: What is a lighthouse?"),
    (("How are you?", "How are you today?", "How is it going?"),
     "I am very well, thank you. What would you like to know?"),
    (("Thank you!", "Thanks", "Thanks a lot!", "Thank you very much."), "You are welcome!"),
    (("Goodbye!", "Bye", "See you later.", "Good night."), "Goodbye! It was a pleasure to talk with you."),
    (("What is bough?", "Tell me about bough.", "What does bough do?"),
     "Bough is a service for language models. It reads a context that many requests share only once, and lets every "
     "request grow from it like a twig from a bough."),
    (("Are you a human?", "Are you a person?", "Are you real?"),
     "No, I am a computer program: a small language model which has learned to continue text."),
    (("Can I trust your answers?", "Are you always right?", "Do you make mistakes?"),
     "No. I am a very small model and I often make mistakes. Please check what I say."),
    (("What is Mixtral?", "What is a mixture of experts?", "How do you work?"),
     "A mixture of experts is a neural network in which a router sends every token to a few of many experts, so that "
     "only a part of the network works on each token."),
]
SYSTEM = ["You are a helpful assistant.", "Answer briefly.", "You are a friendly dictionary.", "Be concise and polite."]


def ask(question, rng):
    """The dictionary's own question, or the same thing in other words."""
    for start, others in (("What is ", ("Define {}.", "Tell me what {} is.", "Explain what {} is.", "what is {}")),
                          ("What does ", ()), ("Who was ", ("Tell me about {}.", "Who is {}?"))):
        if question.startswith(start) and others and rng.random() < 0.4:
            return rng.choice(others).format(question[len(start):-1])
    return question


def conversations(documents, rng):
    """Lists of (user, assistant) turns made from the dictionaries' questions and answers."""
    pairs = [tuple(d["qa"]) for d in documents if d["qa"] and 20 < len(d["qa"][1]) < 500]
    talk = [(q, a) for questions, a in SMALL_TALK for q in questions for _ in range(40)]
    pool = [(ask(q, rng), a) for q, a in pairs] + talk
    rng.shuffle(pool)
    while pool:
        turns = [pool.pop() for _ in range(min(len(pool), rng.choice((1, 1, 1, 2, 3))))]
        if rng.random() < 0.1:
            turns[0] = (rng.choice(SYSTEM) + "\n\n" + turns[0][0], turns[0][1])
        yield turns


def load_documents(cache):
    path = cache / "corpus.jsonl"
    with (path.open() if path.exists() else lzma.open(str(path) + ".xz", "rt")) as lines:
        return [json.loads(line) for line in lines]


def copies(source):
    return next(c for name, c, _ in SOURCES if name == source)


def train_tokenizer(cache):
    """SentencePiece BPE with Mixtral's settings; newlines and odd characters go by byte fallback."""
    rng, sample = random.Random(1), []
    documents = [d for d in load_documents(cache) if not d["heldout"]]
    for d in documents:
        for line in d["text"].split("\n"):
            if line and rng.random() < 0.12 * copies(d["source"]):
                sample.append(line)
    for turns in list(conversations(documents, rng))[:6000]:
        sample += [line for q, a in turns for line in (f"[INST] {q} [/INST]".replace("\n", " "), a)]
    print(f"tokenizer: {len(sample)} lines, {sum(map(len, sample)) / 1e6:.1f} MB", flush=True)
    model = io.BytesIO()  # by model_prefix the file would carry this machine's path
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sample), model_writer=model, model_type="bpe",
        vocab_size=CONFIG["vocab_size"], byte_fallback=True, split_digits=True, add_dummy_prefix=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.99998, max_sentence_length=16384,
        unk_id=kUnk, bos_id=kBos, eos_id=kEos, pad_id=-1, num_threads=2)
    (cache / "tokenizer.model").write_bytes(model.getvalue())


class Corpus:
    """Token ids of every training document, and endless shuffled passes over them by weight."""

    def __init__(self, cache):
        tokenizer = spm.SentencePieceProcessor(str(cache / "tokenizer.model"))
        documents = load_documents(cache)
        train = [d for d in documents if not d["heldout"]]
        held = [d for d in documents if d["heldout"]]
        self.docs = [self.wrap(ids) for ids in tokenizer.encode([d["text"] for d in train], num_threads=16)]
        self.weights = [copies(d["source"]) for d in train]
        rng = random.Random(2)
        chats = list(conversations(train, rng))
        flat = [text for turns in chats for q, a in turns for text in (f"[INST] {q} [/INST]", a)]
        parts = iter(tokenizer.encode(flat, num_threads=16))
        for turns in chats:
            ids = [kBos]
            for _ in turns:
                ids += next(parts) + next(parts) + [kEos]
            self.docs.append(np.array(ids, np.uint16))
            self.weights.append(1.0)
        self.heldout = {}  # source -> (tokens, bytes)
        for d, ids in zip(held, tokenizer.encode([d["text"] for d in held], num_threads=16)):
            tokens, size = self.heldout.get(d["source"], ([], 0))
            self.heldout[d["source"]] = (tokens + [self.wrap(ids)], size + len(d["text"].encode()))
        self.rng = np.random.default_rng(3)
        self.unique_tokens = sum(map(len, self.docs))

    @staticmethod
    def wrap(ids):
        return np.array([kBos] + ids + [kEos], np.uint16)

    def one_pass(self):
        times = np.array(self.weights)
        times = np.floor(times + self.rng.random(len(times))).astype(int)
        order = self.rng.permutation(np.repeat(np.arange(len(times)), times))
        return np.concatenate([self.docs[i] for i in order])

    def batches(self, tokens_per_batch):
        """Yields int64 arrays of tokens_per_batch + 1 ids; the next pass is laid out meanwhile."""
        stream, box = self.one_pass(), []
        while True:
            worker = threading.Thread(target=lambda: box.append(self.one_pass()))
            worker.start()
            for i in range(0, len(stream) - tokens_per_batch - 1, tokens_per_batch):
                yield stream[i:i + tokens_per_batch + 1]
            worker.join()
            stream = box.pop()


def write_heldout(cache, out):
    """At most 200 KB of held-out text that may be given away: novels and Bible (public domain), WordNet."""
    parts = []
    for source, limit in (("r-cran-janeaustenr", 95_000), ("bible-kjv-text", 60_000), ("dict-wn", 35_000)):
        size = 0
        for d in load_documents(cache):
            if d["heldout"] and d["source"] == source and size + len(d["text"].encode()) < limit:
                parts.append(d["text"])
                size += len(d["text"].encode()) + 2
    (out / "heldout.txt").write_text("\n\n".join(parts) + "\n")


def write_tokenizer_files(cache, out):
    shutil.copyfile(cache / "tokenizer.model", out / "tokenizer.model")
    marks = {"<unk>": kUnk, "<s>": kBos, "</s>": kEos}
    added = {str(i): {"content": mark, "lstrip": False, "normalized": False, "rstrip": False,
                      "single_word": False, "special": True} for mark, i in marks.items()}
    files = {
        "generation_config.json": {"_from_model_config": True, "bos_token_id": kBos, "eos_token_id": kEos},
        "tokenizer_config.json": {
            "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added,
            "additional_special_tokens": [], "bos_token": "<s>", "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": True,
            "model_max_length": CONFIG["max_position_embeddings"], "pad_token": None, "sp_model_kwargs": {},
            "spaces_between_special_tokens": False, "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>", "use_default_system_prompt": False}}
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("tokenizer", "train", "folder"):
        command = commands.add_parser(name)
        command.add_argument("cache", type=pathlib.Path)
        if name != "tokenizer":
            command.add_argument("out", type=pathlib.Path)
        if name == "train":
            command.add_argument("--seconds", type=float, default=175, help="wall time until training ends")
            command.add_argument("--batch", type=int, default=131072, help="tokens per step")
            command.add_argument("--muon-lr", type=float, default=0.02)
            command.add_argument("--adam-lr", type=float, default=3e-3)
            command.add_argument("--dropout", type=float, default=0.15, help="passes repeat; the model must not")
    args = parser.parse_args()
    if args.command == "tokenizer":
        train_tokenizer(args.cache)
    elif args.command == "folder":
        write_tokenizer_files(args.cache, args.out)
        write_heldout(args.cache, args.out)
    else:
        from demo_model import train
        args.out.mkdir(parents=True, exist_ok=True)
        train(args, CONFIG, Corpus(args.cache), PROMPTS)


if __name__ == "__main__":
    main()
