"""No figure in the documentation is typed: the files of docs/measured are those that the stored results give."""

import json
import shutil
from pathlib import Path

from benchmarks.accuracy import docs
from rskd.models import weights
from rskd.models.presets import BUNDLED

README = docs.ROOT / "README.md"


def test_the_documentation_is_what_the_stored_results_give():
    assert docs.check() == []


def test_a_figure_that_was_changed_by_hand_is_found_and_put_right(tmp_path: Path):
    shutil.copytree(docs.DOCS / docs.MEASURED, tmp_path / docs.MEASURED)
    pages = "\n".join(path.read_text() for path in docs.DOCS.rglob("*.md"))
    (tmp_path / "page.md").write_text(pages.replace("acdc-small.inc", ""))
    changed = tmp_path / docs.MEASURED / "exports.inc"
    changed.write_text(changed.read_text().replace("0.80", "0.90"))
    (tmp_path / docs.MEASURED / "gone.inc").write_text("a study without results")
    assert docs.check(tmp_path) == [
        "docs/measured/exports.inc is not what the stored results give.",
        "docs/measured/gone.inc is not what the stored results give.",
        "No page includes docs/measured/acdc-small.inc.",
    ]
    assert docs.write(tmp_path) == ["exports.inc: written", "gone.inc: removed, nothing is stored for it"]
    assert docs.write(tmp_path) == []


def test_the_readme_gives_the_size_and_the_scores_of_the_bundled_networks():
    rows = {line.split("`")[1]: line for line in README.read_text().splitlines() if line.startswith("| `")}
    for name, path in BUNDLED.items():
        passport = weights.inspect(path)
        said = [f"{passport.parameters / 1e6:.2g} M", f"{path.stat().st_size / 1e6:.1f} MB"]
        words = passport.card["test Dice"].replace(";", "").replace(",", "").split()
        said += [f"{float(word):.3f}" for word in words if word.startswith("0.")]
        assert all(value in rows[name] for value in said), (name, said)


def test_the_readme_gives_what_frangis_filter_reaches():
    value = json.loads((docs.RESULTS / "frangi.json").read_text())
    assert f"| Frangi's filter, best settings on these very images | | | {value['dice']:.3f} |" in README.read_text()


def test_the_bundled_hippocampus_pair_scores_what_is_stored_of_it():
    value = json.loads((docs.RESULTS / "hippocampus-pair.json").read_text())
    for role, scores in value["scores"].items():
        card = weights.inspect(BUNDLED[f"hippocampus-{role}"]).card["test Dice"]
        for name in scores["classes"]:
            found = [row["dice"][name] for row in scores["cases"]]
            assert f"{name} {sum(found) / len(found):.4f}" in card
