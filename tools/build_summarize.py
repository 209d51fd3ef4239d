"""Build the embedded task `summarize` (body of a docstring -> its summary line) from Python packages.

    pip download --no-deps --only-binary :all: -d wheels NAME==VERSION ...      (the versions of DISTRIBUTIONS)
    python tools/build_summarize.py --packages wheels [site-packages ...]

Writes src/assay/data/corpora/summarize.parquet, one row a docstring, and summarize.LICENSE.txt beside it. The
docstrings of modules, classes and functions are read with `ast` from the standard library of the running Python
and from wheels (or a folder where they are installed): nothing is imported. Markup is reduced to plain words, and
a sentence that still holds code or formulae ends the body.

A package path (the first two components) lies in one split. A path that holds more than GIANT of the rows goes to
`base`, the split that is used for pretraining and tokenizer only. Rows of the other splits whose summary, body or
most of whose words also occur in another split are left out.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import platform
import re
import sys
import sysconfig
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from corpus_file import write_compactly

PYTHON = "3.11.7"
DISTRIBUTIONS = {
    "Apache-2.0": """accelerate==1.15.0 aiohttp==3.14.5 cinder==29.0.0 cirq-core==1.7.0 cvxpy==1.9.3 diffusers==0.42.1
        flax==0.12.8 huggingface-hub==2.4.0 jax==0.10.2 keras==3.15.1 mlflow-skinny==3.17.2 neutron==29.0.0 nltk==3.10.4
        nova==34.0.0 numpyro==0.22.0 openmdao==3.45.1 pennylane==0.45.1 pymc==5.28.5 pyro-ppl==1.9.2
        pytorch-lightning==2.6.6 qiskit==2.6.2 tensorflow-probability==0.25.0 tornado==6.6.1 transformers==5.23.0
        xarray==2026.9.0""",
    "BSD-2-Clause": "sphinx==9.0.4 sunpy==7.0.5",
    "BSD-3-Clause": """astropy==8.0.2 bokeh==3.9.2 celery==5.7.0 dask==2026.8.0 dipy==1.12.1 distributed==2026.8.0
        django==5.2.19 evennia==5.0.1 fsspec==2026.9.0 geopandas==1.2.0 holoviews==1.23.2 ipython==9.18.1 metpy==1.7.1
        mne==1.13.2 networkx==3.6.1 nilearn==0.14.1 numpy==2.4.6 pandas==3.1.1 plasmapy==2025.8.0 scikit-image==0.26.0
        scikit-learn==1.9.1 scipy==1.17.1 scrapy==2.19.0 statsmodels==0.15.0 sympy==1.14.0 torch==2.13.0
        wagtail==8.0.1 werkzeug==3.1.9""",
    "MIT": """botorch==0.18.1 fonttools==4.68.0 gpytorch==1.15.2 nibabel==5.4.2 pymatgen==2026.10.24 pytest==9.2.0
        pyvista==0.49.1 rich==15.0.0 sqlalchemy==2.1.9 stable-baselines3==2.9.2 twisted==26.10.0""",
    "matplotlib": "matplotlib==3.11.2",
}
"""Licence -> the distributions read under it."""
STANDARD_LIBRARY = "Python standard library"
LICENCE_TEXTS = {
    "Apache-2.0": "transformers",
    "BSD-2-Clause": "sunpy",
    "BSD-3-Clause": "scikit-learn",
    "MIT": "sqlalchemy",
    "matplotlib": "matplotlib",
    "PSF-2.0": STANDARD_LIBRARY,
}
"""Licence -> the source whose copy of it is quoted."""
SHARES = {"base": 0.45, "oracle": 0.27, "distillation": 0.18, "held_out": 0.10}
GIANT = 0.04
MAX_BODY, MIN_BODY_WORDS, MAX_SUMMARY, MIN_SUMMARY_WORDS = 160, 6, 72, 3
MAX_REPEATS = 3
"""A sentence in more docstrings than this is boilerplate and left out of all bodies."""
ALIKE = 0.7

LEFT_OUT = re.compile(
    r"(^|/)(tests?|_?testing|_?vendor(ed)?|_?extern(als?)?|third_party|thirdparty|site-packages|examples?|migrations"
    r"|idlelib|lib2to3|turtledemo|array_api_\w+|_lib)/|(^|/)(test_\w+|conftest|setup)\.py$"
    r"|^(build|doc|scripts|setup|sphinx/source|evennia/contrib|tensorflow_probability/substrates)/"
)
"""Tests, build folders, copies, and code that a package took from another one with another licence."""
SECTION_NAMES = (
    r"(param(eter)?s?|(keyword |other )?(arg(ument)?s?|parameters)|returns?|yields?|raises?|receives?|warns?|examples?"
    r"|usage|notes?|references?|attributes|methods|see also|inputs?|outputs?|shape|todo|warnings?|options|properties"
    r"|exceptions?|kwargs)"
)
SECTION = re.compile(rf"^\s*({SECTION_NAMES}\s*(:.*)?$|[:@]\w|>>>|-{{3,}}|={{3,}})", re.IGNORECASE | re.MULTILINE)
NOT_PROSE = re.compile(r"\s|[-*+•#|=~^>.\\{\[<@$%!]|\(?\d+[.)]\s|.*\n\s*[-*+•|#>]", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)(?<!Eq\.)(?<!al\.)\s+(?=[A-Z\"'(])")
PLAIN = re.compile(r"[A-Za-z0-9 ,;:.!?'\"()/+%&_-]+")
CODE = re.compile(r"__|_(?!\w)|\w\(\w|\(\)|\w[.]\w+[.]\w|\w/\w+/|https?|www\.|:\w|::|: \d|\d \d|--|\.\.|''|\"\"")
POINTER = re.compile(r"(See|Refer to|Please (see|refer)|For (more|further))\b")
FILE_ENDING = r"(?:py|c|h|cc|cpp|so|dll|exe|txt|json|ya?ml|xml|csv|html?|ini|cfg|conf|toml|md|rst|log|gz|zip|npz?)"
TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\xa0": " "})
COMMON_STEMS = {"this", "that", "with", "from", "when", "will", "have", "been", "only", "used", "usin", "whic", "retu"}
"""Stems shared by almost any two docstrings."""
PREFACE = """\
summarize.parquet holds excerpts of docstrings of the Python packages below: a summary line and the sentences that
follow it, with markup removed and cut in length. Each excerpt remains under the licence of its package, which is
found by the first component of the column `module`. The licences are quoted once each, after the list; in the BSD
licences read the holders named with the package, in the clause on endorsement too."""


@dataclass(frozen=True)
class Source:
    """One distribution: path -> reader of the module's bytes, and the texts of its licence and metadata files."""

    name: str
    version: str
    licence: str
    modules: dict[str, Callable[[], bytes]]
    notices: dict[str, str]


def read_distribution(folders: list[Path], requirement: str, licence: str) -> Source:
    """The pinned distribution, from a wheel or from the folder where it is installed."""
    name, version = requirement.split("==")
    stem = re.compile(rf"{name.replace('-', '_')}-{re.escape(version)}(\+\w+)?(-.*\.whl|\.dist-info)", re.IGNORECASE)
    for path in sorted(path for folder in folders for path in folder.iterdir() if stem.fullmatch(path.name)):
        if path.suffix == ".whl":
            wheel = zipfile.ZipFile(path)
            files = {file: partial(wheel.read, file) for file in wheel.namelist()}
        else:
            record = (path / "RECORD").read_text(encoding="utf-8").splitlines()
            files = {file: (path.parent / file).read_bytes for file in (line.split(",")[0] for line in record)}
        notice = re.compile(r"[^/]+\.dist-info/(licenses/)?(METADATA|(LICENSE|LICENCE|COPYING|NOTICE)[^/]*)")
        return Source(
            name,
            version,
            licence,
            {file: read for file, read in files.items() if file.endswith(".py")},
            {Path(file).name: files[file]().decode("utf-8") for file in sorted(files) if notice.fullmatch(file)},
        )
    sys.exit(f"{requirement} is in none of the folders given: pip download --no-deps it into one of them")


def read_standard_library() -> Source:
    """The modules of the running Python, which must be the pinned one."""
    if platform.python_version() != PYTHON:
        sys.exit(f"the corpus is built from the standard library of Python {PYTHON}, not {platform.python_version()}")
    root = Path(sysconfig.get_path("stdlib"))
    modules = {path.relative_to(root).as_posix(): path.read_bytes for path in root.rglob("*.py")}
    licence = (root / "LICENSE.txt").read_text(encoding="utf-8")
    return Source(STANDARD_LIBRARY, PYTHON, "PSF-2.0", modules, {"LICENSE.txt": licence})


def docstrings(source: Source) -> Iterator[dict[str, str]]:
    """Docstrings with the kind and last name of what they document, in the order of the files."""
    for path in sorted(source.modules):
        module = re.sub(r"(/__init__)?\.py$", "", path).replace("/", ".")
        if LEFT_OUT.search(path) or not all(part.isidentifier() for part in module.split(".")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the packages' own strings
            tree = ast.parse(source.modules[path]())
        for kind, name, text in documented(tree, module.rsplit(".", 1)[-1]):
            yield {"source": source.name, "module": module, "kind": kind, "name": name, "text": text}


def documented(node: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, docstring) of a module or class and of the classes and functions in it, in the file's order."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    text = ast.get_docstring(node)
    if text:
        yield {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function"), name, text
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            yield from documented(child, getattr(child, "name", ""))


def plain_words(text: str) -> str:
    """One line without reST, Markdown and epytext markup: roles, literals, links and emphasis become their words."""
    text = text.translate(TYPOGRAPHY)
    text = re.sub(r":(?:\w+:)*math:`[^`]*`", "$", text)
    text = re.sub(r"(?::[\w+-]+)*:?`([^`<]+?)\s*<[^`>]*>`(?:__?)?", r"\1", text)
    text = re.sub(r"(?::[\w+-]+)+:`([^`]*)`", r"`\1`", text)
    text = re.sub(rf"`[~!.]*(?:[A-Za-z_]\w*\.)+(?!{FILE_ENDING}`)(\w+)(\(\))?`", r"`\1`", text)
    text = re.sub(r"``+([^`]*)``+|`[~!]?([^`]*)`(?:__?\b)?", r"\1\2", text)
    text = re.sub(r"\b[A-Z]\{([^{}<]*?)\s*(?:<[^{}]*>)?\}", r"\1", text)
    text = re.sub(r"\s*\[[\w#*]+\]_|\[([^\[\]]+)\]\([^()]*\)", r"\1", text)
    text = re.sub(r"(?<!\w)(\*{1,2})(\w[^*]*)\1(?!\w)", r"\2", text)
    text = re.sub(r"(?<=\w)\(\)", "", text)
    return re.sub(r"\s+", " ", text).strip()


def is_plain(sentence: str) -> bool:
    """Whether a sentence is prose in plain words: no formula, code, link or unbalanced bracket."""
    return (
        PLAIN.fullmatch(sentence) is not None
        and CODE.search(sentence) is None
        and sentence.count("(") == sentence.count(")")
        and sentence.count('"') % 2 == 0
    )


def summary_and_sentences(docstring: str) -> tuple[str, list[str]] | None:
    """The first sentence and those of the paragraphs up to the first section; None when there is no summary line."""
    prose = SECTION.split(inspect.cleandoc(docstring), maxsplit=1)[0]
    first, *others = re.split(r"\n[ \t]*\n", prose)
    lines = first.split("\n")
    has_title = any(a[-1:].isalnum() and b[:1].isupper() for a, b in pairwise(lines))
    if not first.strip() or has_title or NOT_PROSE.match(first):
        return None
    summary, *sentences = SENTENCE_END.split(plain_words(first))
    summary = re.sub(r"\.{2,}$", ".", summary)
    right_size = len(summary) <= MAX_SUMMARY and len(summary.split()) >= MIN_SUMMARY_WORDS
    if not (right_size and is_plain(summary) and re.match(r"[A-Z][a-z ]", summary) and summary[-1] not in ":,;-?"):
        return None
    for paragraph in others:
        if paragraph and not NOT_PROSE.match(paragraph):
            sentences += SENTENCE_END.split(plain_words(paragraph))
    return summary, [sentence for sentence in sentences if sentence]


def body_of(sentences: list[str], boilerplate: set[str]) -> str:
    """Leading plain sentences within MAX_BODY characters; a sentence that is not plain ends the body."""
    body = ""
    for sentence in sentences:
        if loose(sentence) in boilerplate or POINTER.match(sentence):
            continue
        longer = f"{body} {sentence}".strip()
        if len(longer) > MAX_BODY or not is_plain(sentence) or sentence[-1] not in ".!?" or not sentence[0].isupper():
            break
        body = longer
    return body


def loose(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def stems(text: str) -> set[str]:
    """The first four letters of the words that have as many, without the commonest."""
    return {word[:4] for word in re.findall(r"[a-z]{4,}", text.lower())} - COMMON_STEMS


def build_rows(sources: Iterable[Source]) -> list[dict[str, str]]:
    """Rows (source, module, kind, name, body, summary) of the docstrings whose body and summary have a stem in common.

    The name counts as a part of the body.
    """
    found = []
    for source in sources:
        for row in docstrings(source):
            parts = summary_and_sentences(row.pop("text"))
            if parts:
                found.append((row, *parts))
    repeats = Counter(key for _, _, sentences in found for key in {loose(sentence) for sentence in sentences})
    boilerplate = {key for key, count in repeats.items() if count > MAX_REPEATS}
    rows = [{**row, "body": body_of(sentences, boilerplate), "summary": summary} for row, summary, sentences in found]
    return [
        row
        for row in rows
        if len(row["body"].split()) >= MIN_BODY_WORDS
        and loose(row["body"]) != loose(row["summary"])
        and stems(row["summary"]) & stems(f"{row['body']} {re.sub('(?=[A-Z][a-z])|_', ' ', row['name'])}")
    ]


def package_path(row: dict[str, str]) -> str:
    """The first two components of the module's name: what lies in one split."""
    return ".".join(row["module"].split(".")[:2])


def assign_splits(rows: list[dict[str, str]], seed: int) -> list[str]:
    """The split of each row: giant package paths to `base`, then each path, in random order, where most is missing."""
    sizes = Counter(package_path(row) for row in rows)
    giants = sorted(path for path, size in sizes.items() if size > GIANT * len(rows))
    others = sorted(set(sizes) - set(giants))
    split_of = dict.fromkeys(giants, "base")
    filled = Counter({"base": sum(sizes[path] for path in giants)})
    for i in np.random.default_rng(seed).permutation(len(others)):
        split = min(SHARES, key=lambda split: filled[split] / SHARES[split])
        split_of[others[i]] = split
        filled[split] += sizes[others[i]]
    return [split_of[package_path(row)] for row in rows]


def straddlers(rows: list[dict[str, str]], splits: list[str]) -> set[int]:
    """Rows outside `base` whose summary alone or body alone, read loosely, also occurs in another split."""
    splits_of = defaultdict(set)
    keys = [(f"summary {loose(row['summary'])}", f"body {loose(row['body'])}") for row in rows]
    for row_keys, split in zip(keys, splits, strict=True):
        for key in row_keys:
            splits_of[key].add(split)
    return {
        i for i, row_keys in enumerate(keys) if splits[i] != "base" and any(len(splits_of[k]) > 1 for k in row_keys)
    }


def near_duplicates(rows: list[dict[str, str]], splits: list[str]) -> set[int]:
    """Rows outside `base` whose words (of body and summary) have Jaccard >= ALIKE with a row of another split.

    Exact and quick by prefix filtering [Bayardo 2007]: two sets that similar share one of their rarest words.
    """
    words = [frozenset(re.findall(r"[a-z0-9]+", f"{row['body']} {row['summary']}".lower())) for row in rows]
    frequency = Counter(word for row_words in words for word in row_words)
    rows_with = defaultdict(list)
    for i, row_words in enumerate(words):
        num_rarest = len(row_words) - math.ceil(ALIKE * len(row_words)) + 1
        for word in sorted(row_words, key=lambda word: (frequency[word], word))[:num_rarest]:
            rows_with[word].append(i)
    alike = set()
    for members in rows_with.values():
        for i, j in combinations(members, 2):
            if splits[i] != splits[j] and len(words[i] & words[j]) >= ALIKE * len(words[i] | words[j]):
                alike |= {k for k in (i, j) if splits[k] != "base"}
    return alike


def repeated(rows: list[dict[str, str]], splits: list[str]) -> set[int]:
    """Rows whose pair, read loosely, is in an earlier row of the same split."""
    first_with: dict[tuple[str, str, str], int] = {}
    keys = [(split, loose(row["body"]), loose(row["summary"])) for row, split in zip(rows, splits, strict=True)]
    return {i for i, key in enumerate(keys) if first_with.setdefault(key, i) != i}


def licence_file(sources: list[Source], rows: list[dict[str, str]]) -> str:
    """The notice of every source with rows in the corpus, and each licence once."""
    imports = defaultdict(set)
    for row in rows:
        imports[row["source"]].add(row["module"].split(".")[0])
    parts = [PREFACE]
    for source in sources:
        if source.name in imports:
            names = ", ".join(sorted(imports[source.name]))
            lines = [
                f"{source.name}=={source.version}: {source.licence}",
                f"  modules: {names}",
                *copyright_lines(source),
            ]
            parts.append("\n".join(lines))
    by_name = {source.name: source for source in sources}
    for licence, name in LICENCE_TEXTS.items():
        text = own_licence(by_name[name]).strip("\n")
        parts.append(f"{'=' * 80}\n{licence}, as it comes with {name}\n{'=' * 80}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def own_licence(source: Source) -> str:
    """The licence and notice files of a source, without the licences of software that its binaries bundle."""
    texts = [text for file, text in source.notices.items() if file != "METADATA"]
    return "\n".join(re.split(r"^----$", text, maxsplit=1, flags=re.MULTILINE)[0] for text in texts)


def copyright_lines(source: Source) -> list[str]:
    """The copyright lines of the source's licence; the authors its metadata names when it has none."""
    text = own_licence(source)
    found = re.findall(
        r"^\W*(Copyright:? (?!\[|[Ll]icen|[Nn]otice|[Hh]older|[Oo]wner|law).+)$", text, flags=re.MULTILINE
    )
    found += [re.sub(r"\s+", " ", line) for line in re.findall(r'"(Copyright \(c\)[^"]+\d{4}[^"]+)"', text)]
    authors = re.findall(
        r"^(?:Author|Author-email|Maintainer): (.*)$", source.notices.get("METADATA", ""), re.MULTILINE
    )
    return [f"  {line.strip()}" for line in dict.fromkeys(found)] or [f"  Authors: {', '.join(authors) or source.name}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, nargs="+", help="folders of wheels or site-packages")
    parser.add_argument("--seed", type=int, default=0)
    corpora = Path(__file__).parents[1] / "src/assay/data/corpora"
    parser.add_argument("--out", type=Path, default=corpora / "summarize.parquet")
    arguments = parser.parse_args()

    pinned = [(requirement, licence) for licence, names in DISTRIBUTIONS.items() for requirement in names.split()]
    sources = [read_standard_library(), *(read_distribution(arguments.packages, *pin) for pin in sorted(pinned))]
    rows = build_rows(sources)
    splits = assign_splits(rows, arguments.seed)
    dropped = straddlers(rows, splits) | near_duplicates(rows, splits)
    dropped |= repeated(rows, splits)
    kept = [i for i in range(len(rows)) if i not in dropped]
    columns = {key: pa.array([rows[i][key] for i in kept]) for key in ("module", "kind", "name", "body", "summary")}
    columns["split"] = pa.array([splits[i] for i in kept])
    write_compactly(pa.table(columns), arguments.out, ["module", "kind", "split"])
    notice = arguments.out.with_suffix(".LICENSE.txt")
    notice.write_text(licence_file(sources, [rows[i] for i in kept]), encoding="utf-8")
    print(f"{arguments.out}: {len(kept)} of {len(rows)} rows, {arguments.out.stat().st_size / 1e6:.2f} MB")
    print({split: sum(splits[i] == split for i in kept) for split in SHARES})


if __name__ == "__main__":
    main()
