"""What the documents say is true of the tree and the program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from proteinlm.cli.main import VERBS

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each ``proteinlm`` command in the shell blocks of a document."""
    for language, block in _FENCE.findall(text):
        if language not in {"sh", "bash", "console", "shell"}:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            typed = re.split(r"\s[|>&;]+\s|\s#\s", line.strip().removeprefix("$ "))[0]
            words = shlex.split(typed) if re.search(r"(^|\s)proteinlm\s", typed) else []
            if "proteinlm" in words:
                yield words[words.index("proteinlm") + 1 :]


def links(text: str) -> list[str]:
    """Return where a document points to inside the tree."""
    targets = _LINK.findall(_FENCE.sub("", text))
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def test_links_lead_to_files_that_exist(document: Path):
    missing = [
        target for target in links(document.read_text(encoding="utf-8")) if not (document.parent / target).exists()
    ]
    assert missing == []


def test_links_to_a_heading_lead_to_one_that_exists(document: Path):
    missing = []
    for target in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        path, hash_sign, anchor = target.partition("#")
        if hash_sign and not re.match(r"[a-z]+:", target):
            page = (document.parent / path if path else document).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page), re.MULTILINE)
            if anchor not in {anchor_of(heading) for heading in headings}:
                missing.append(target)
    assert missing == []


def anchor_of(heading: str) -> str:
    """Return what a heading is called in a link to it: lower case, blanks to hyphens, signs left out."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_commands_name_verbs_and_options_that_exist(document: Path, options_of: Callable[[str], set[str]]):
    unknown = []
    for verb, *words in commands(document.read_text(encoding="utf-8")):
        known = options_of(verb) | {"-", "--", "--help", "-h"} if verb in VERBS else {"--help", "--version", "-h"}
        typed = [] if verb in VERBS else [verb]
        typed += [word.partition("=")[0] for word in words if re.match(r"-(\D|$)", word)]
        unknown += [word for word in typed if word not in known]
    assert unknown == []


def test_documents_name_no_place_of_one_machine(document: Path):
    places = re.findall(r"(?<![\w.])/(?:tmp|work|root|home)/\w+", document.read_text(encoding="utf-8"))
    assert places == []


def test_documents_quote_no_number_of_tests(document: Path):
    # it is another after every change
    text = document.read_text(encoding="utf-8")
    assert re.findall(r"\d[\d,]*\s+(?:(?:slow|fast)\s+)?(?:passed|skipped|deselected|tests\b)", text) == []


# TODO: take a page out when it is written as a question: ingesting, reading and shards with the new ingestion
NO_QUESTION_YET = {
    "architecture",
    "attention",
    "ingesting",
    "reading",
    "recipe_keys",
    "recipes",
    "shards",
    "troubleshooting",
}


def test_a_page_begins_with_its_question_and_something_to_type_or_see(project_root: Path):
    faults = []
    for page in sorted((project_root / "docs").glob("*.md")):
        heading, *first = page.read_text(encoding="utf-8").splitlines()[:40]
        if page.stem in NO_QUESTION_YET:
            continue
        if not re.fullmatch(r"# .+\?", heading):
            faults.append(f"{page.name}: '{heading}' is no question")
        if not any(re.match(r"```(sh|bash)$|\| |!\[", line) for line in first[:8]):
            faults.append(f"{page.name}: no command, table or picture in its first lines")
        if not any(re.match(r"\||!\[|```text$", line) for line in first):
            faults.append(f"{page.name}: nothing printed, drawn or in a table on its first screen")
    assert faults == []


def test_pages_tell_no_history_and_no_aims(project_root: Path):
    told = re.compile(r"\bthe aim (?:was|of)|\baimed at|\bin (?:an )?earlier versions?\b|\bformerly\b", re.IGNORECASE)
    pages = [*(project_root / "docs").glob("*.md"), project_root / "README.md"]
    found = {page.name: told.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {name: words for name, words in found.items() if words} == {}


def test_block_finder_reads_prompts_continuations_and_pipes():
    text = "```console\n$ OMP=1 proteinlm embed a.fasta \\\n    -o x.h5 | head\nproteinlm inspect x\nread 3\n```\n"
    assert list(commands(text)) == [["embed", "a.fasta", "-o", "x.h5"], ["inspect", "x"]]


def test_link_finder_leaves_addresses_and_code_alone():
    assert links("[a](b.md#c) [d](https://e.org) ![f](g.png) [h](#i)\n```\n[j](k)\n```\n") == ["b.md", "g.png"]
