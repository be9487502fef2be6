"""What the pages take from elsewhere: generated parts, the tree, pictures."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import dllm
from benchmarks import allowed, front, picture
from dllm.constraints import Regex
from dllm.models.families import FAMILIES
from dllm.trace import record_of
from tests.golden.replay import KNOWN_DIFFERENCES, NOT_END_TO_END, STEPS
from tests.support import GOLDEN, ROOT
from tests.support.pages import DOCS, PAGES

SVG = "{http://www.w3.org/2000/svg}"
LONGEST = 120  # lines of the README


def test_the_reference_is_up_to_date() -> None:
    stale = runpy.run_path(str(DOCS / "generate.py"))["stale"]()
    assert stale == [], "not what the code says: run `make docs` and look at the difference"


def test_the_page_of_families_has_every_family_and_every_recorded_run() -> None:
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    own = [f for f in FAMILIES.values() if f.network_of.__module__.startswith("dllm.models.")]
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [one.architecture for one in own]
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    for family in own:
        part = sections[family.architecture]
        assert all(f"`{token}`" in part for token in family.mask_tokens)
        assert ("logits: of the next column" in part) == bool(family.logit_shift)
        fit = {"full": "dual", "masks_last": "streaming", "block_causal": "block_causal"}
        fit["encoder_decoder"] = "encoder"
        if family.attention in fit:
            assert f"`{fit[family.attention]}`" in re.findall("caches: (.*)", part)[0]
    cases = [
        case
        for path in (GOLDEN / "cases").glob("*.json")
        if path.stem not in STEPS
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]
        if case["method"] not in NOT_END_TO_END
    ]
    counts = re.findall(r"code: (\d+) of (\d+) decode", text)
    assert sum(int(recorded) for _, recorded in counts) == len(cases)
    hold = [case for case in cases if case["id"] not in KNOWN_DIFFERENCES]
    assert sum(int(same) for same, _ in counts) == len(hold)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"- (?:[\w.]+: )?([\w./]+\.md)$", text, re.MULTILINE)
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents]
    assert sorted(named) == sorted(pages)
    assert yaml.safe_load(text)["theme"]["font"] is False


def test_the_readme_is_short_and_the_links_of_the_root_lead_somewhere() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_tree_has_every_room() -> None:
    text = (DOCS / "notes" / "tree.md").read_text(encoding="utf-8")
    named, parent = set(), ""
    for indent, name in re.findall(r"^ {4}( *)([\w./]+)", text, re.MULTILINE):
        parent = parent if indent else name
        named.add(parent + name if indent else name)
    links = {f"dllm/{part}" for part in ("schedulers", "cache", "constraints", "eval")}
    rooms = {f"{path.name}/" for path in folders_of(ROOT)}
    for part in ("dllm", "constraints", "eval"):
        inside = {f"{part}/{path.name}" for path in folders_of(ROOT / part)}
        rooms |= {name if name in links else f"{name}/" for name in inside}
    assert {name for name in named if not name.endswith(".py")} == rooms
    assert all((ROOT / name).is_file() for name in named if name.endswith(".py"))


def folders_of(folder: Path) -> list[Path]:
    """Returns the folders that belong to the repository."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    names = {name.strip("/") for name in ignored}
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"]
    return [path for path in folders if path.name not in names and path.suffix != ".egg-info"]


def test_the_picture_shows_every_commit(tiny: dllm.HostedModel) -> None:
    options = {"scheduler": "threshold:0.95", "max_new_tokens": 32, "block_length": 16}
    out = dllm.generate(tiny, [picture.QUESTION], **options)  # type: ignore[arg-type]
    record = record_of(out, 0, tiny.tokenizer)
    root = ElementTree.fromstring(picture.draw(record, 16, "a <b> & c"))
    style = root.findtext(f"{SVG}style") or ""
    groups = [group.attrib["class"].split() for group in root.iter(f"{SVG}g")]
    cells = [names[1] for names in groups if names[0] == "cell"]
    assert cells.count("c1") == sum(step == 0 for step, _, _ in record.writes)
    assert len(cells) == len({column for _, column, _ in record.writes})
    assert all(f"@keyframes {name} " in style for name in cells)
    assert f"forward {record.num_steps} of {record.num_steps}: " in "".join(root.itertext())


def test_the_picture_of_allowed_sets_is_that_of_the_engine(tiny: dllm.HostedModel) -> None:
    asked = (allowed.QUESTION, Regex(allowed.PATTERN), 14, "threshold:0.97")
    states = allowed.canvases(tiny, *asked)
    assert all(slot.token is None for slot in states[0])
    assert states[0][0].allowed == tuple("0123456789")
    assert all(slot.token is not None for slot in states[-1])
    for before, after in itertools.pairwise(states):
        for slot, later in zip(before, after, strict=True):
            assert later.token is None or later.token in (slot.token, *slot.allowed)
    drawn = allowed.draw(states, "a <b> & c", allowed.PATTERN, "about")
    cells = list(ElementTree.fromstring(drawn).iter(f"{SVG}g"))
    assert len(cells) == 14 * len(states)


def test_the_front_is_what_no_setting_beats() -> None:
    points = front.read((DOCS / "notes" / "comparison.md").read_text(encoding="utf-8"))
    assert len(front.SHOWN) <= 10
    leaders = front.front_of(points)
    for point in points:
        beaten = any(
            other.speed >= point.speed and other.accuracy >= point.accuracy and other != point
            for other in points
        )
        assert beaten == (point not in leaders), point.label
    drawn = front.draw(points, "figures of comparison.md")
    assert (DOCS / "figures" / "front.svg").read_text(encoding="utf-8") == drawn
    boxes = [
        (float(text.attrib["x"]), float(text.attrib["y"]), len(text.text or ""))
        for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")
        if "class" not in text.attrib
    ]
    for index, (x, y, size) in enumerate(boxes):
        for left, top, other in boxes[index + 1 :]:
            apart = x + 7.2 * size < left or left + 7.2 * other < x or abs(y - top) >= 12
            assert apart, (points[index].label, left, top)
    with pytest.raises(ValueError, match=r"has no row 'threshold:0\.95'"):
        front.read("| threshold | 90.0% (83-94) | 5.51 | 4.8 |")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", mkdocs.__name__, "build", "--strict", "--site-dir", "site"]
    for name in ("docs", "dllm", "schedulers", "cache", "constraints", "eval", "mkdocs.yml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert pages
    asset = re.compile(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)')
    assert not any(asset.search(page.read_text(encoding="utf-8")) for page in pages)
