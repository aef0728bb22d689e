#!/usr/bin/env python3
"""Openly licensed English text from Debian packages, as documents for train_demo_model.py.

    python3 demo_corpus.py CACHE_DIR      # needs a Debian bookworm with apt; installs nothing

Downloads and unpacks the packages of SOURCES under CACHE_DIR, and writes CACHE_DIR/corpus.jsonl:
one {"source", "key", "heldout", "text"} per line. Text is cleaned to paragraphs of prose (no code,
tables or markup), paragraphs seen before are dropped, and whole documents (1 in 20, by a hash of
their key) are held out before anything is weighted. A dictionary's key is its head-word, so a word
that is held out is held out of every dictionary.
"""
import gzip
import hashlib
import html
import json
import pathlib
import re
import struct
import subprocess
import sys
import zlib

STOPWORDS = frozenset(
    "the of and to a in is that it for as was with be on not he his by this are or an from at which "
    "you i have but they had her she we their has can if will who your one when all there no".split())

# ---------------------------------------------------------------- cleaning


def unwrap(text):
    """Joins hard-wrapped lines; one string per blank-line separated paragraph."""
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def plain(text):
    """Typographic variants to ASCII: a vocabulary of 4096 has no room for two kinds of quotes."""
    return text.translate(plain.table)


plain.table = str.maketrans({
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "´": "'", "‐": "-", "‑": "-", "–": "-",
    "—": " - ", "…": "...", "\u00a0": " ", "\u00ad": "", "\u200b": "", "\ufeff": "", "\f": ""})


def is_prose(paragraph, least=40):
    """English sentences, by letters, end mark, odd symbols and the share of small words."""
    if len(paragraph) < least or paragraph[-1] not in ".!?:;\"')]":
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph) / len(paragraph)
    if letters < 0.86 or sum(paragraph.count(c) for c in "{}<>|=\\_$#@~^`*/") > len(paragraph) * 0.012:
        return False
    words = [w.strip(".,;:!?\"'()") for w in paragraph.lower().split()]
    return sum(w in STOPWORDS for w in words) >= 0.18 * len(words)


def prose(paragraphs, least=40):
    paragraphs = (" ".join(plain(p).split()) for p in paragraphs)
    return [p for p in paragraphs if is_prose(p, least)]


def html_paragraphs(page):
    page = re.sub(r"(?is)<(script|style|pre|table|head|nav|dt|h\d|footer|title)\b.*?</\1\s*>", "\n\n", page)
    page = re.sub(r"(?s)<!--.*?-->", "", page)
    page = re.sub(r"(?i)</?(p|div|li|ul|ol|dd|dl|blockquote|br\s*/?|section|note|item|hr)\b[^>]*>", "\n\n", page)
    return unwrap(html.unescape(re.sub(r"(?s)<[^>]+>", "", page)))


# ---------------------------------------------------------------- readers: root -> (key, paragraphs)


def read(path):
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def pages(pattern, least=50):
    """HTML or XML pages, one document each."""
    def reader(root):
        for path in sorted(root.glob(pattern)):
            yield path.stem, prose(html_paragraphs(read(path)), least)
    return reader


def rst(pattern):
    """reStructuredText: indented blocks (code, directives) go, inline marks are removed."""
    def reader(root):
        for path in sorted(root.glob(pattern)):
            blocks = re.split(r"\n\s*\n", read(path))
            text = (re.sub(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", b) for b in blocks if b[:1].strip())
            text = (re.sub(r"`+([^`<]*?)(?:\s*<[^`]*>)?`+_*", r"\1", b) for b in text)
            yield "/".join(path.parts[-2:]), prose(unwrap("\n\n".join(re.sub(r"\*+|^[-#] ", "", b) for b in text)), 60)
    return reader


def pod(root):
    for path in sorted(root.glob("usr/share/perl/*/**/*.pod")):
        text = re.sub(r"[IBCFLSXZ]<+\s*(?:[^<>|]*\|)?([^<>]*?)\s*>+", r"\1", read(path))
        blocks = (b for b in re.split(r"\n\s*\n", text) if b[:1].strip() and b[0] != "=")
        yield path.stem, prose(unwrap("\n\n".join(blocks)), 60)


def anarchism(root):
    for path in sorted(root.glob("usr/share/doc/anarchism/markdown/*.md.gz")):
        text = re.sub(r"(?m)^[> ]+|^#.*$|^\s*\* ", "", read(path))
        text = re.sub(r"(\w)- ?\n(?=[a-z])", r"\1-", text)
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(r"\s*\[[^\]]*\bpp?\. ?[^\]]*\]", "", re.sub(r"[*_\\]+", "", text))
        text = re.sub(r" +([.,;:])(?! ?\.)", r"\1", text).replace(". . .", "...")
        yield path.stem, prose(unwrap(text), 60)


def austen(root):
    """Novels out of an R data base: zlib chunks of XDR, where a string is flags, length, bytes."""
    data = next(root.glob("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")).read_bytes()
    position = 0
    while position + 4 < len(data):
        unpacker = zlib.decompressobj()
        chunk = unpacker.decompress(data[position + 4:])
        position = len(data) - len(unpacker.unused_data)
        lines, i = [], 0
        while (i := chunk.find(b"\x00\x04\x00\x09", i)) >= 0:
            size = struct.unpack(">i", chunk[i + 4:i + 8])[0]
            lines.append(chunk[i + 8:i + 8 + max(size, 0)].decode("latin-1"))
            i += 8 + max(size, 0)
        title = lines[0].title() if lines else ""
        for number, chapter in enumerate(re.split(r"(?im)^\s*chapter [\divxlc]+\.?.*$", "\n".join(lines))):
            text = re.sub(r"_", "", chapter).replace("--", " - ")
            yield f"{title}/{number}", prose(unwrap(text), 8)


def kjv(root):
    """The Bible by chapters. Its own program decodes it; it lives in the package beside this one."""
    program = root.parent / "bible-kjv/usr/bin/bible"
    text = subprocess.run([program, "-f", "-p", root / "usr/lib", "gen1:1-rev22:21"], capture_output=True, text=True).stdout
    chapters = {}
    for line in text.splitlines():
        if match := re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line.strip()):
            chapters.setdefault(match[1], {}).setdefault(match[2], []).append(re.sub(r"[{}<>\[\]]", "", match[4]))
    for book, parts in chapters.items():
        for number, verses in parts.items():
            yield f"kjv-{book}/{number}", [" ".join(verses[i:i + 5]) for i in range(0, len(verses), 5)]


def gutenberg_in_go(root):
    for path in root.glob("usr/share/go-*/src/**/testdata/*.txt"):
        if "Twain" in path.name or "Opticks" in path.name:
            parts = re.split(r"(?m)^\s*(?:CHAPTER|PROP\.|BOOK) .*$", read(path).replace("--", " - ").replace("_", ""))
            for number, part in enumerate(parts):
                yield f"{path.name}/{number}", prose(unwrap(part), 8)


def wesnoth(root):
    for path in sorted(root.glob("usr/share/games/wesnoth/*/data/campaigns/*/scenarios/*.cfg")):
        out = []
        for tag, body in re.findall(r"(?s)\[(message|part)\](.*?)\[/\1\]", read(path)):
            said = re.search(r'(?s)(?:message|story)\s*=\s*_\s*"((?:[^"]|"")*)"', body)
            who = re.search(r'(?m)^\s*speaker\s*=\s*"?([A-Z][^"\n#]*)', body)
            if said:
                text = " ".join(re.sub(r"<[^>]*>|\*", "", said[1].replace('""', '"')).split())
                out.append(f"{who[1].strip()}: {text}" if who else text)
        yield path.stem, prose(out, 20)


def endless_sky(root):
    for path in sorted(root.glob("usr/share/games/endless-sky/data/**/*.txt")):
        missions = re.split(r"(?m)^(?=mission |conversation |event )", read(path))
        for number, mission in enumerate(missions):
            lines = [re.sub(r"<(\w+)>", lambda m: {"last": "Smith", "first": "Alex", "ship": "Star Queen"}.get(m[1], "Earth"), s)
                     for s in re.findall(r"`\s*([^`]*)`", mission)]
            yield f"{path.stem}/{number}", prose(lines, 20)


def crawl(root):
    for path in sorted((root / "usr/share/crawl/dat/descript").glob("*.txt")):
        for entry in re.split(r"(?m)^%%%%$", read(path)):
            lines = [line for line in entry.strip().splitlines() if not line.startswith(("#", ":"))]
            if lines and not re.search(r"[{}@]", entry):
                text = prose(unwrap("\n".join(lines[1:])), 30)
                yield f"{path.stem}/{lines[0]}", text


def fortunes(root):
    skipped = ("ascii-art", "ethnic", "men-women", "drugs", "translate-me", "zippy", "linux", "debian", "kids")
    for path in sorted((root / "usr/share/games/fortunes").glob("*")):
        if path.suffix or path.name in skipped or path.is_symlink():
            continue
        for number, entry in enumerate(re.split(r"(?m)^%$", read(path))):
            if len(entry) > 120 and not re.search(r"[\b{}<>|]", entry):
                paragraphs = unwrap(re.sub(r"\n(?=\t\w)", "\n\n", entry))
                yield f"{path.name}/{number}", prose([re.sub(r"\s+-- ", " - ", p) for p in paragraphs], 20)


def project_history(root):
    path = root / "usr/share/doc/debian-history/docs/project-history.en.txt.gz"
    yield "history", prose(unwrap(read(path)), 60)


# Dictionaries yield (head-word, paragraphs, question and answer or None).


def entries(text, head):
    """(head-word, body) of a dict-format file whose head-words match `head` at the line's start."""
    found = list(re.finditer(head, text))
    for here, after in zip(found, found[1:] + [None]):
        yield here[1].strip(), text[here.end():after.start() if after else len(text)]


def gcide(root):
    text = read(next(root.glob("usr/share/dictd/*.dict.dz")))
    for word, body in entries(text[20000:], r"(?m)^([A-Z][A-Za-z' -]*) \\[^\\\n]*\\"):
        if "WordNet" in body:
            body = re.split(r"\n\s*\n(?=[^\n]*WordNet)", body)[0]
        body = re.sub(r"(?s)^,?[^.\[\n]{0,25}\.(?: ?[a-z&]{1,3}\.){0,3}\s*|\[[^\]]*\]", " ", body)
        body = re.sub(r"(?m)^ *Syn:(?s:.*)|--[A-Z][\w. ]*(?:\([^)]*\))?\.?|[{}]|\\[^\\\n]*\\|\|\|", "", body)
        senses = []
        for p in unwrap(body):
            p = re.sub(r"^(?:\([a-z]\) |\d+\. |\([A-Z][\w. &]*\) )*", "", p)
            if p[:1].isupper() and len(p) > 25:
                senses.append(p)
        yield word, prose([f"{word}: {senses[0]}"] + senses[1:], 30) if senses else [], None


def article(noun):
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def wordnet(root):
    text = read(next(root.glob("usr/share/dictd/*.dict.dz")))
    kinds = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}
    for word, body in entries(text[text.index("\n    adj 1:") - 40:], r"(?m)^(\S[^\n]*)\n(?=    (?:n|v|adj|adv) )"):
        body = " ".join(re.sub(r"\[(?:syn|ant|also)[^\]]*\]", "", body).split())
        out, kind, answer = [], "", None
        for match in re.finditer(r"(?:\b(n|v|adj|adv) )?(?<!\S)(\d+): (.*?)(?=(?: (?:n|v|adj|adv) 1: )| \d+: |$)", body):
            kind = kinds[match[1]] if match[1] else kind
            gloss = re.sub(r"[{}]", "", match[3]).strip(" ;")
            define, _, example = gloss.partition('; "')
            example = example.split('"')[0]
            out.append(f"{word} ({kind}): {define}." + (f" For example: {example[:1].upper()}{example[1:]}." if example else ""))
            if answer is None and kind == "noun" and re.match(r"(?:an?|the|any|someone|something) ", define) and '"' not in define:
                if word[0].isupper() and re.search(r"\(\d{4}-|born", define):
                    answer = (f"Who was {word}?", f"{word} was {define}.")
                elif word[0].islower():
                    answer = (f"What is {article(word)}?", f"{article(word).capitalize()} is {define}.")
            elif answer is None and kind == "adjective":
                answer = (f'What does "{word}" mean?', f'"{word.capitalize()}" means {define}.')
        yield word, [p for p in out if 30 < len(p) and p.isprintable()], answer


def foldoc(root):
    text = read(next(root.glob("usr/share/dictd/*.dict.dz")))
    for word, body in entries(text[3000:], r"(?m)^(\S[^\n]{0,50})\n\n(?=   )"):
        body = re.sub(r"\{\([^)]*\)\}|\([-\d]+\)\s*$|\[[^\]]*\]|[{}]|__", "", body)
        paragraphs = prose((re.sub(r"^(?:\d+\. )?(?:<[^>]*> )?", "", p) for p in unwrap(body)), 40)
        if not paragraphs:
            continue
        first = paragraphs[0]
        question = None
        if match := re.match(r"(An?|The|Any) ", first):
            lower = first[:1].lower() + first[1:]
            question = (f"What is {word}?", f"{word} is {lower}")
        yield word, [f"{word}: {first}"] + paragraphs[1:], question


def jargon(root):
    text = read(root / "usr/share/doc/jargon-text/jargon.txt.gz")
    for word, body in entries(text, r"(?m)^   :([^:\n]{2,40}): ?"):
        body = re.sub(r"[{}]", "", re.sub(r"^(?: ?/[^/\n]*/,?)?(?: ?(?:n|v|vi|vt|adj|adv|interj|prov|obs|also)\.,?)*", "", body))
        paragraphs = prose((re.sub(r"^\d+\. (?:\[[^\]]*\] )?|^\[[^\]]*\] ", "", p) for p in unwrap(body)), 40)
        if paragraphs:
            yield word, [f"{word}: {paragraphs[0]}"] + paragraphs[1:], (f'What does "{word}" mean among hackers?', paragraphs[0])


def devil(root):
    text = read(next(root.glob("usr/share/dictd/*.dict.dz")))
    for word, body in entries(text, r"(?m)^([A-Z][A-Z' -]+), (?:n|adj|v\.[ti]|adv|p\.p|pp)\.\s+"):
        word = word.capitalize()
        yield word, prose([f"{word}: " + p if i == 0 else p for i, p in enumerate(unwrap(body))], 30), None


# package, copies of each document in one pass, reader; licences stand in models/demo/README.md
SOURCES = [
    ("r-cran-janeaustenr", 1.4, austen),
    ("golang-1.19-src", 1.4, gutenberg_in_go),
    ("bible-kjv-text", 1.2, kjv),
    ("anarchism", 1.2, anarchism),
    ("wesnoth-1.16-*", 1.4, wesnoth),
    ("endless-sky-data", 1.4, endless_sky),
    ("crawl-common", 1.4, crawl),
    ("fortunes", 1.2, fortunes),
    ("fortunes-min", 1.2, fortunes),
    ("dict-gcide", 1, gcide),
    ("dict-wn", 1, wordnet),
    ("dict-foldoc", 1, foldoc),
    ("jargon-text", 1.2, jargon),
    ("dict-devil", 1.2, devil),
    ("debian-handbook", 1.3, pages("usr/share/doc/debian-handbook/html/en-US/*.html")),
    ("debian-reference-en", 1.2, pages("usr/share/debian-reference/*.en.html")),
    ("harden-doc", 1.2, pages("usr/share/doc/harden-doc/html/en-US/*.html")),
    ("developers-reference", 1, pages("usr/share/developers-reference/*.html")),
    ("debian-policy", 1, pages("usr/share/doc/debian-policy/policy.html/*.html")),
    ("debian-faq", 1, pages("usr/share/doc/debian/FAQ/*.en.html")),
    ("maint-guide", 1, pages("usr/share/doc/maint-guide/html/*.en.html")),
    ("aptitude-doc-en", 1, pages("usr/share/doc/aptitude/html/en/*.html")),
    ("debian-history", 1, project_history),
    ("gnome-user-docs", 1.3, pages("usr/share/help/C/**/*.page")),
    ("png-definitive-guide", 1, pages("usr/share/doc/png-definitive-guide/html/*.html")),
    ("abs-guide", 1, pages("usr/share/doc/abs-guide/html/*.html")),
    ("git-doc", 1, pages("usr/share/doc/git-doc/**/*.html")),
    ("apache2-doc", 1, pages("usr/share/doc/apache2-doc/manual/en/**/*.html")),
    ("postgresql-doc-15", 0.7, pages("usr/share/doc/postgresql-doc-15/html/*.html")),
    ("sqlite3-doc", 1, pages("usr/share/doc/sqlite3/**/*.html")),
    ("python-django-doc", 1, pages("usr/share/doc/python-django-doc/html/**/*.html")),
    ("rust-doc", 1, pages("usr/share/doc/rust-doc/html/book/*.html")),
    ("python-sqlalchemy-doc", 0.5, pages("usr/share/doc/python-sqlalchemy-doc/html/**/*.html")),
    ("gimp-help-en", 1, pages("usr/share/gimp/2.0/help/en/*.html")),
    ("python3.11-doc", 0.8, pages("usr/share/doc/python3.11/html/**/*.html")),
    ("perl-doc", 0.8, pod),
    ("linux-doc-6.1", 0.5, rst("usr/share/doc/linux-doc-6.1/**/*.rst*")),
]

# ---------------------------------------------------------------- assembly


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def is_heldout(key):
    return digest(key.lower())[0] < 13  # 5 %


def unpack(cache):
    """Downloads what is not there yet. The system needs the package lists only (apt-get update)."""
    wanted = [p for p, *_ in SOURCES if "*" not in p] + ["bible-kjv"] + [
        f"wesnoth-1.16-{c}" for c in "httt did dw ei l low nr sof sotbe thot trow tsg ttb utbs sota dm".split()]
    for package in wanted:
        folder = cache / "root" / package
        if not folder.exists():
            subprocess.run(["apt-get", "download", "-q", package], cwd=cache, check=True)
            deb = next(cache.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg", "-x", deb, folder], check=True)
            deb.unlink()


def documents(cache):
    for package, _, reader in SOURCES:
        for root in sorted((cache / "root").glob(package)):
            for key, paragraphs, *qa in reader(root):
                name = key if qa else f"{package}/{key}"
                yield {"source": package, "key": name, "heldout": is_heldout(name),
                       "paragraphs": paragraphs, "qa": qa[0] if qa else None}


def main():
    cache = pathlib.Path(sys.argv[1])
    cache.mkdir(parents=True, exist_ok=True)
    unpack(cache)
    found = list(documents(cache))
    seen, sizes = set(), {}
    with (cache / "corpus.jsonl").open("w") as out:
        for doc in sorted(found, key=lambda d: not d["heldout"]):  # what is held out claims its text first
            kept = []
            for paragraph in doc.pop("paragraphs"):
                mark = digest(re.sub(r"\W+", "", paragraph.lower()))
                if mark not in seen:
                    seen.add(mark)
                    kept.append(paragraph)
            doc["text"] = "\n\n".join(kept)
            if len(doc["text"]) >= 30:
                out.write(json.dumps(doc, ensure_ascii=False) + "\n")
                size = sizes.setdefault(doc["source"], [0, 0, 0])
                size[0] += 1
                size[1 + doc["heldout"]] += len(doc["text"].encode())
    for source, (count, train, held) in sizes.items():
        print(f"{source:24} {count:7} documents {train / 1e6:7.2f} MB train {held / 1e6:6.2f} MB held out")


if __name__ == "__main__":
    main()
