"""The manifest is closed: npe2 does not look whether what it names exists."""

import copy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import npe2
import pytest
import yaml
from napari._app_model.constants._menus import MenuId

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "src" / "napari_rskd" / "napari.yaml"
IGNORED_BY_NAPARI = {"default_dock_area", "tabify"}


@pytest.fixture
def manifest() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())


def problems(manifest: dict[str, Any]) -> Iterator[str]:
    """Say what napari would pass over in silence."""
    known = set(npe2.PluginManifest.model_fields) - {"package_metadata", "npe1_shim"}
    yield from (f"unknown top-level key {key}" for key in set(manifest) - known)
    parts = manifest["contributions"]
    allowed = {info.alias or name for name, info in npe2.manifest.contributions.ContributionPoints.model_fields.items()}
    yield from (f"unknown contribution {key}" for key in set(parts) - allowed - {"keybindings"})
    commands = {command["id"] for command in parts["commands"]}
    submenus = {submenu["id"] for submenu in parts.get("submenus", ())}
    contributable = {str(menu) for menu in MenuId.contributables()}
    for kind in ("widgets", "sample_data", "readers", "writers"):
        for item in parts.get(kind, ()):
            if "command" in item and item["command"] not in commands:
                yield f"{kind} name the missing command {item['command']}"
            yield from (f"{key} does nothing in napari" for key in IGNORED_BY_NAPARI & set(item))
    for menu, items in parts.get("menus", {}).items():
        if menu not in contributable | submenus:
            yield f"unknown menu {menu}"
        for item in items:
            if item.get("command", next(iter(commands))) not in commands:
                yield f"menu {menu} names the missing command {item['command']}"
            if "submenu" in item and item["submenu"] not in submenus:
                yield f"menu {menu} names the undeclared submenu {item['submenu']}"
    placed = {item["submenu"] for items in parts.get("menus", {}).values() for item in items if "submenu" in item}
    yield from (f"submenu {submenu} is in no menu" for submenu in submenus - placed)


def test_manifest_is_closed(manifest: dict[str, Any]) -> None:
    assert list(problems(manifest)) == []


def plant_missing_menu_command(m: dict[str, Any]) -> None:
    m["contributions"]["menus"]["rskd"].append({"command": "napari-rskd.gone"})


def plant_missing_widget_command(m: dict[str, Any]) -> None:
    m["contributions"]["widgets"].append({"command": "napari-rskd.gone", "display_name": "Gone"})


def plant_unknown_menu(m: dict[str, Any]) -> None:
    m["contributions"]["menus"]["napari/plugins"] = [{"command": "napari-rskd.demo"}]


def plant_undeclared_submenu(m: dict[str, Any]) -> None:
    m["contributions"]["menus"]["napari/layers/track"] = [{"submenu": "nowhere"}]


def plant_unknown_key(m: dict[str, Any]) -> None:
    m["widgets"] = []


def plant_ignored_key(m: dict[str, Any]) -> None:
    m["contributions"]["widgets"][0]["tabify"] = True


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (plant_missing_menu_command, "menu rskd names the missing command napari-rskd.gone"),
        (plant_missing_widget_command, "widgets name the missing command napari-rskd.gone"),
        (plant_unknown_menu, "unknown menu napari/plugins"),
        (plant_undeclared_submenu, "menu napari/layers/track names the undeclared submenu nowhere"),
        (plant_unknown_key, "unknown top-level key widgets"),
        (plant_ignored_key, "tabify does nothing in napari"),
    ],
)
def test_planted_mistake_is_caught(manifest: dict[str, Any], plant: Any, said: str) -> None:
    broken = copy.deepcopy(manifest)
    plant(broken)
    assert said in list(problems(broken))


def test_npe2_accepts_it() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "napari-rskd"


def test_every_command_can_be_called(manifest: dict[str, Any]) -> None:
    for command in manifest["contributions"]["commands"]:
        module, name = command["python_name"].split(":")
        assert callable(getattr(import_module(module), name)), command["id"]


def test_top_level_link_is_the_manifest_of_the_package() -> None:
    assert (ROOT / "napari.yaml").resolve() == MANIFEST.resolve()


def test_it_is_found_as_an_installed_plugin() -> None:
    manager = npe2.PluginManager()
    manager.discover()
    assert "napari-rskd" in manager
